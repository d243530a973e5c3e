"""What stands behind the API, as a protocol, and the values of the CNI calls. The agent implements it.

The CNI values are plain dataclasses and not pydantic models: they are on the path of every pod's start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol

from api.operators import Operators
from api.schemas import AllocationView, EniView, HealthView, PoolView, StartupView

Address = IPv4Address | IPv6Address
Attachment = tuple[str, str]
"""(container id, interface name inside the container): the identity of an attachment (CNI spec 1.1, section 2)."""


class Verb(StrEnum):
    """The commands that reach the agent; VERSION is answered by the plugin itself."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    STATUS = "STATUS"
    GC = "GC"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPort:
    """One of `runtimeConfig.portMappings` (CNI conventions, "Capabilities").

    protocol: "tcp", "udp" or "sctp". host_address: None for every address of the node.
    """

    host_port: int
    container_port: int
    protocol: str
    host_address: IPv4Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """One direction of `runtimeConfig.bandwidth`; both numbers are positive."""

    rate_bits_per_s: int
    burst_bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CniCall:
    """One invocation of the plugin, already checked against the CNI and Kubernetes character sets and lengths.

    request_id: made by the plugin; ties its call to our log lines. Letters, digits and hyphens, at most 64.
    cni_version: "0.3.1", "0.4.0", "1.0.0" or "1.1.0"; at least 0.4.0 for CHECK, 1.1.0 for STATUS and GC.
    container_id, ifname: empty for STATUS and GC.
    netns: absolute path, not yet known to be a network namespace; may be empty for DEL; empty for STATUS and GC.
    pod_namespace, pod_name: both or neither; empty when the runtime did not say.
    pod_uid, pod_infra_container_id: empty when the runtime did not say.
    mtu: `mtu` of the network configuration (576 to 9001), or None when it does not set one. ADD and CHECK only.
    port_mappings, ingress, egress: what `runtimeConfig` asks; ADD and CHECK only. Ingress is towards the pod.
    prev_result: the raw `prevResult` of CHECK and DEL; None when absent. ADD ignores it: we are the main plugin.
    config: the whole network configuration, decoded, as the runtime sent it.
    """

    verb: Verb
    request_id: str
    cni_version: str
    network_name: str
    container_id: str = ""
    ifname: str = ""
    netns: str = ""
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    pod_infra_container_id: str = ""
    mtu: int | None = None
    port_mappings: tuple[HostPort, ...] = ()
    ingress: RateLimit | None = None
    egress: RateLimit | None = None
    prev_result: Mapping[str, Any] | None = None
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class AddResult:
    """What ADD made: one veth pair and its addresses.

    addresses: at least one; IPv4 first.
    netns, ifname: as in the call.
    mtu: of both ends, in bytes.
    """

    host_ifname: str
    host_mac: str
    pod_mac: str
    netns: str
    ifname: str
    addresses: tuple[Address, ...]
    mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedCall:
    """A call that the API refused. Whatever of its names was missing or malformed is empty."""

    verb: Verb
    request_id: str
    container_id: str = ""
    ifname: str = ""
    pod_namespace: str = ""
    pod_name: str = ""


class NodeService(Operators, Protocol):
    """The node agent as the API sees it.

    The CNI methods raise `api.problems.CniError` for every expected failure; the others raise `api.problems.Problem`.
    """

    def refused(self, call: RefusedCall, cause: str, message: str) -> None:
        """Be told of a call that the API refused: the runtime is not the only one who must know. cause: its name."""
        ...

    async def add(self, call: CniCall) -> AddResult:
        """Attach the container, or answer again when it is attached already.

        Cancel: when the client has gone away. A waiter is forgotten; the service itself shields the steps that must
        not be cut in two.
        """
        ...

    async def delete(self, call: CniCall) -> None:
        """Detach the container; success when it is not attached."""
        ...

    async def check(self, call: CniCall) -> None:
        """Compare the kernel with what ADD made.

        Raises: CniError 3 when the attachment is unknown, 102 naming the first difference.
        """
        ...

    async def status(self, call: CniCall) -> None:
        """Return when ADD can be served.

        Raises: CniError 50 when it cannot, 51 when attached containers are affected too.
        """
        ...

    async def gc(self, call: CniCall, valid: frozenset[Attachment]) -> None:
        """Detach every attachment of this network that is not in `valid`; best effort, errors at the end."""
        ...

    def pool(self) -> PoolView:
        """The pool of addresses by state and by ENI."""
        ...

    def enis(self) -> list[EniView]:
        """Every ENI attached to this node, primary first."""
        ...

    def allocations(
        self, *, namespace: str | None = None, pod: str | None = None, address: Address | None = None
    ) -> list[AllocationView]:
        """Attachments and their addresses; each given argument narrows the answer. Ordered by first address."""
        ...

    def eni_config(self) -> str | None:
        """The name of the ENIConfig that new ENIs go by; None without custom networking, or while it is not known."""
        ...

    def health(self) -> HealthView:
        """Liveness: whether every loop still turns."""
        ...

    def startup(self) -> StartupView:
        """Readiness, stage by stage."""
        ...
