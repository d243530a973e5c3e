"""What the agent asks of the outside world, as protocols. `cloud/`, `datapath/` and `kube/` implement them.

Each method says what it does, what it raises, whether it may be repeated, and what cancellation leaves behind.
All raise only `AgentError` subclasses for expected failures; every call has a deadline of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import NewType, Protocol

from agent.errors import AgentError, Evidence
from agent.ipam.model import (
    Address,
    Attachment,
    AttachmentKey,
    Block,
    BlockKind,
    Eni,
    EniId,
    Finding,
    Holder,
    Instance,
    InstanceLimits,
    Mac,
    Subnet,
    SubnetId,
)


class Metadata(Protocol):
    """IMDSv2: identity, never the truth about pod addresses."""

    async def instance(self) -> Instance:
        """Who this node is.

        Raises: CloudFailed(imds_unavailable) after its deadline; the caller retries.
        """
        ...

    async def subnet_cidr(self, mac: Mac) -> IPv4Network | None:
        """The subnet of an attached ENI, or None while IMDS does not list the ENI yet."""
        ...


class Cloud(Protocol):
    """EC2, for this instance. Retries belong to the pool loop: one call here is one request, but for paging."""

    async def limits(self, instance_type: str) -> InstanceLimits:
        """From the bundled table; one DescribeInstanceTypes when the type is unknown there.

        Raises: CloudGone when EC2 does not know the type either.
        """
        ...

    async def describe_enis(self) -> tuple[Eni, ...]:
        """Every ENI attached (or attaching) to this instance, primary first. One DescribeNetworkInterfaces.

        Raises: CloudFailed and its subclasses.
        """
        ...

    async def describe_subnets(self) -> tuple[Subnet, ...]:
        """Subnets a new ENI may be made in, best first. One DescribeSubnets."""
        ...

    async def create_eni(
        self, *, device: int, subnet_id: SubnetId, security_groups: Sequence[str], kind: BlockKind, count: int
    ) -> Eni:
        """Create, attach and set DeleteOnTermination: three calls.

        kind, count: the blocks asked for in the create call, beside the ENI's own primary address.
        The answer's `blocks` are what EC2 granted. When attach or modify fails, the ENI is deleted before raising.

        Raises: CloudLimit (subnet_exhausted, subnet_fragmented, ec2_limit), CloudThrottled, CloudDenied, CloudFailed.
        Idempotent: the create call carries a client token.
        Cancel: an unattached ENI carries our tags and is found by the leak sweep.
        """
        ...

    async def delete_eni(self, eni: Eni) -> None:
        """Detach, wait until available, delete. An ENI that is gone already is success."""
        ...

    async def set_security_groups(self, eni_id: EniId, security_groups: Sequence[str]) -> None:
        """Replace the security groups of an ENI. One call.

        Raises: CloudGone, CloudLimit, CloudThrottled, CloudDenied, CloudFailed. Idempotent.
        """
        ...

    async def delete_with_instance(self, eni: Eni) -> None:
        """Have an attached ENI deleted when its instance is terminated (DeleteOnTermination). One call. Idempotent."""
        ...

    async def assign_blocks(self, eni_id: EniId, kind: BlockKind, count: int) -> tuple[Block, ...]:
        """Ask for `count` more blocks of a kind; the ones granted (perhaps fewer).

        Raises: CloudLimit(ec2_limit: the ENI is full; subnet_exhausted; subnet_fragmented: too few whole /28 are free),
        CloudGone, CloudThrottled, CloudDenied, CloudFailed.
        Idempotent: no; observe before calling again. Cancel: a granted address is found by the next describe.
        """
        ...

    async def unassign_blocks(self, eni_id: EniId, blocks: Sequence[Block]) -> None:
        """Give blocks back: one call per kind. Blocks the ENI does not have are success."""
        ...


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


class PathTracer(Protocol):
    """Asks the kernel where a packet would go, without sending one."""

    async def trace(self, host_ifname: str, source: Address, destination: Address) -> PathSeen:
        """The path of the first packet of a connection that comes in by `host_ifname`.

        Raises: InvalidRequest(attachment_missing) when there is no such link; KernelFailed.
        """
        ...


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


# --- Kubernetes ------------------------------------------------------------------------------------------------------

PodName = NewType("PodName", tuple[str, str])
"""Namespace and name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """What Kubernetes says of a pod. annotations: only those of amazonaws.com and its subdomains."""

    namespace: str
    name: str
    uid: str
    annotations: Mapping[str, str]

    @property
    def full_name(self) -> PodName:
        return PodName((self.namespace, self.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where new ENIs go under custom networking.

    name: of the ENIConfig that says so. security_groups: empty: those of the primary ENI.
    """

    name: str
    subnet_id: SubnetId
    security_groups: tuple[str, ...]


class NoticeKind(StrEnum):
    """What is worth a Kubernetes event. The value is the event's reason, but for IAM (see agent/kube/outbox.py)."""

    POOL_EXHAUSTED = "PoolExhausted"
    SUBNET_EXHAUSTED = "SubnetExhausted"
    IAM_DENIED = "MissingIAMPermissions"
    ENI_FAILED = "EniAttachFailed"
    EC2_FAILING = "Ec2Failing"
    DRIFT_REPAIRED = "DriftRepaired"
    SITE_CHANGED = "EniConfigChanged"
    SITE_UNKNOWN = "EniConfigMissing"
    MAX_PODS_TOO_HIGH = "MaxPodsTooHigh"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A change of state that a person may want to see with `kubectl describe node`.

    subject: what it is about (a subnet id, an action); reports of one kind and subject are one event.
    over: the state has ended; nobody need know of an end whose beginning was not reported.
    """

    kind: NoticeKind
    message: str
    subject: str = ""
    evidence: Evidence = field(default_factory=dict)
    over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """How much of Kubernetes the agent knows, for the API.

    configured: an API server is configured at all.
    synced: pods have been listed at least once. failure: why the last request failed; None when it did not.
    """

    configured: bool
    synced: bool = False
    pod_count: int = 0
    schedulable: bool = True
    max_pods: int | None = None
    failure: AgentError | None = None


class Cluster(Protocol):
    """Kubernetes, for this node. Every answer is at once, from what is known; nothing here is a condition to serve."""

    @property
    def schedulable(self) -> bool:
        """False on a cordoned node. True while nobody knows."""
        ...

    @property
    def max_pods(self) -> int | None:
        """Pods the kubelet takes, those on the host's network included; None while nobody knows."""
        ...

    def announced(self) -> frozenset[PodName]:
        """Pods bound to this node that need an address: some have one by now, or wait for it."""
        ...

    def pod(self, namespace: str, name: str) -> PodFacts | None:
        """What is known of a pod of this node."""
        ...

    def site(self) -> Site | AgentError | None:
        """Where new ENIs go. None: the pool chooses. An error: custom networking is on and the answer is not known;
        make no ENI, and say why.
        """
        ...

    def report(self, notice: Notice) -> None:
        """Have a change of state told as an event. Never blocks, never fails; bounded in number and rate."""
        ...

    def view(self) -> ClusterView:
        """For the API."""
        ...

    def findings(self, attachments: Sequence[Attachment]) -> tuple[Finding, ...]:
        """Attachments whose pod is long gone."""
        ...

    async def settle(self, attachments: Sequence[Attachment]) -> None:
        """Write what Kubernetes is to know of the attachments (the pods' annotation, if asked for). Level-triggered.

        Raises: ClusterFailed; the caller's loop tries again. Nobody waits for it.
        """
        ...

    def subscribe(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, on the event loop, whenever something above may answer differently."""
        ...

    async def run(self) -> None:
        """Watch and report: a long-lived task for the supervisor. Returns only by cancellation."""
        ...
