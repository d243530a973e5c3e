"""The kernel, as the agent asks it. The rules for every method are in agent/ports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Protocol

from agent.ipam.model import (
    Address,
    AttachmentKey,
    Eni,
    Holder,
    Instance,
    Mac,
)


class Transport(StrEnum):
    """What a host port can be of."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapping:
    """A port of the node that leads to a port of the pod. host_address: None for every address of the node."""

    host_port: int
    container_port: int
    transport: Transport
    host_address: IPv4Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """A token bucket: what passes in the long run, and what may pass at once."""

    rate_bits_per_s: int
    burst_bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PodWiring:
    """Everything the kernel must know of one attachment.

    netns: absolute path of the container's network namespace.
    addresses: at least one; IPv4 first. All belong to the same ENI.
    table_id: routing table of the ENI the addresses are on; 254 (main) for the primary ENI.
    port_mappings: no two claim the same port of the node.
    ingress, egress: as the pod sees it; None for no limit.
    """

    holder: Holder
    netns: str
    addresses: tuple[Address, ...]
    table_id: int
    mtu: int
    port_mappings: tuple[PortMapping, ...] = ()
    ingress: Shaping | None = None
    egress: Shaping | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wired:
    """The links of one attachment, as the CNI result reports them."""

    host_ifname: str
    host_mac: Mac
    pod_mac: Mac


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentSeen:
    """An attachment found in the kernel: a host veth with our alias, and the pod routes that lead to it.

    addresses: empty for a torn ADD or a released attachment: nobody holds an address through this link.
    """

    holder: Holder
    host_ifname: str
    host_ifindex: int
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoolingSeen:
    """An address in the kernel's cooldown set and the seconds it has left there."""

    address: IPv4Address
    remaining_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSeen:
    """One consistent look at what the kernel knows of our attachments."""

    attachments: tuple[AttachmentSeen, ...]
    cooling: tuple[CoolingSeen, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """Something of ours in the kernel that was not as it should be, and was put right.

    subject: the object, as people find it: "link eni0123456789a", "route 10.0.0.11", "table inet enoki".
    difference: what was found.
    strike_count: how many times in a row, without a quiet minute between.
    contested: something else keeps changing it; from now on the repairs come later and later.
    error: why putting it right failed; empty when it did not.
    """

    subject: str
    difference: str
    strike_count: int
    contested: bool
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathSeen:
    """Where the kernel would send a first packet of a pod, and what our table does to it.

    mark: the packet mark after our table, 0 when it sets none; mark_reasons: one sentence per part of it.
    rule_pref, rule: the policy rule that decides, as `ip rule` prints it; None and empty when no rule explains it.
    table_id: routing table of the answer; 255 is `local`.
    route_type: `unicast`, `local`, `blackhole`, ... (ip-route(8)).
    out_ifname, out_mac, gateway: empty, None and None where the route has none.
    snat_address: what the source becomes on its way out; None when it stays.
    inside_sets: names of our destination sets that contain the destination.
    refusal: the kernel's error name (`ENETUNREACH`, ...) when it has no route; everything after the mark is empty then.
    """

    mark: int
    mark_reasons: tuple[str, ...]
    inside_sets: tuple[str, ...]
    rule_pref: int | None = None
    rule: str = ""
    table_id: int = 0
    route_type: str = ""
    out_ifname: str = ""
    out_mac: Mac | None = None
    gateway: Address | None = None
    snat_address: IPv4Address | None = None
    refusal: str = ""


class Datapath(Protocol):
    """The kernel of this node. Methods never block the event loop: blocking work has threads of its own."""

    async def prepare_node(self, instance: Instance) -> None:
        """Sysctls, policy rules, the nftables table.

        Idempotent: adds what is missing, changes what differs, never removes first.
        """
        ...

    async def set_vpc_cidrs(self, cidrs: Sequence[IPv4Network]) -> None:
        """Replace the set of VPC CIDRs in one transaction."""
        ...

    async def count_leaving(self) -> int:
        """Connections that pods have opened out of the VPC, as far as its CIDRs are known; from 0 again with every new
        table. 0 where the source stays whatever the destination.

        Raises: KernelFailed.
        """
        ...

    async def wait_for_eni_link(self, mac: Mac, timeout_s: float) -> None:
        """Return when a link with this MAC exists in the node's namespace, told by the kernel, not by polling.

        Raises: KernelFailed(eni_link_missing) after `timeout_s`.
        """
        ...

    async def ensure_eni(self, eni: Eni) -> int:
        """Bring the ENI's link up, give it its address, table and rules; returns its table id. Idempotent.

        The primary ENI only gets its MTU and rp_filter; its table is 254.
        Raises: KernelFailed.
        """
        ...

    async def forget_eni(self, eni: Eni) -> None:
        """Remove the rules and the group's chain of an ENI that is going away. Idempotent."""
        ...

    async def wire(self, wiring: PodWiring) -> Wired:
        """Create the veth, its addresses, routes and neighbours. Replaces an older attempt of the same attachment.

        Raises: InvalidRequest(netns_invalid) when `netns` is not a network namespace; TryAgain(host_port_taken) that
        names the port's owner; KernelFailed after undoing what was done.
        Idempotent: yes. Cancel: runs to its end in its thread; the caller shields it.
        """
        ...

    async def unwire(self, key: AttachmentKey, addresses: Sequence[Address], cooldown_s: float) -> None:
        """Remove the host ports, the pod routes and the connections, and put the addresses into the kernel's cooldown
        set.

        The link goes with its namespace, or in the background: nobody waits for it.

        Success when there is nothing of it (any more). Raises: KernelFailed.
        """
        ...

    async def check(self, wiring: PodWiring) -> None:
        """Compare the kernel with what should be.

        Raises: InvalidRequest(attachment_drifted) that names the first difference.
        """
        ...

    async def observe(self) -> KernelSeen:
        """Read links, pod routes and the cooldown set."""
        ...

    async def discard_link(self, host_ifname: str) -> None:
        """Delete a host veth of ours (a torn ADD, a superseded attachment). Gone already is success."""
        ...

    def subscribe(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, on the event loop, whenever a host veth of ours disappears.

        Events carry no data: observe anew.
        """
        ...

    async def run(self) -> None:
        """The kernel monitor: a long-lived task for the supervisor. Returns only by cancellation."""
        ...
