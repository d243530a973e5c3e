"""Values of address management: what EC2 gave, who holds it. No behaviour that needs a clock or I/O.

Everything is frozen; collections are tuples and frozensets; addresses are `ipaddress` objects, never strings.
Times are seconds on the agent's monotonic clock (`_s`), passed in by whoever owns a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NewType

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

EniId = NewType("EniId", str)
"""`eni-` and 17 hex digits."""
SubnetId = NewType("SubnetId", str)
"""`subnet-` and 17 hex digits."""
Mac = NewType("Mac", str)
"""Six lower-case hex pairs joined by colons."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentKey:
    """What makes an attachment unique (CNI spec 1.1, section 2: container id and interface name)."""

    container_id: str
    ifname: str

    def __str__(self) -> str:
        return f"{self.container_id}/{self.ifname}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds an address.

    namespace, pod: empty strings when the runtime did not say (a plain CNI caller without K8S_POD_* arguments).
    """

    key: AttachmentKey
    namespace: str
    pod: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod} ({self.key})" if self.pod else str(self.key)


class BlockKind(StrEnum):
    """What one slot of an ENI can take. Requests to EC2 are about one kind at a time.

    IPv6 pods will add the /80 here; a block says itself which kind it is.
    """

    IPV4_ADDRESS = "ipv4_address"
    IPV4_PREFIX = "ipv4_prefix"

    @property
    def address_count(self) -> int:
        """Addresses for pods in one block; a /28 has neither network nor broadcast address (EC2 user guide)."""
        return 16 if self is BlockKind.IPV4_PREFIX else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The unit in which EC2 grants addresses to an ENI: one secondary address (/32), a /28 or a /80 prefix.

    kind: follows from the network; kept, because a plan asks for it some thousand times.
    """

    network: Network
    kind: BlockKind = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kind = BlockKind.IPV4_PREFIX if self.is_prefix else BlockKind.IPV4_ADDRESS
        object.__setattr__(self, "kind", kind)

    @property
    def is_prefix(self) -> bool:
        return self.network.prefixlen < self.network.max_prefixlen

    def addresses(self) -> tuple[Address, ...]:
        """Every address of the block, ascending."""
        return tuple(self.network)

    def __str__(self) -> str:
        return str(self.network if self.is_prefix else self.network.network_address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Eni:
    """An attached network interface, as EC2 describes it.

    card, device: network card index and device index of the attachment; (0, 0) is the primary ENI.
    primary_address: the ENI's own IPv4 address; never handed to a pod. 0.0.0.0 without one, and then not managed.
    blocks: what pods may get from it, in EC2's order; without `primary_address`.
    subnet_cidr: of the subnet the ENI is in; its first host is the gateway.
    interface_type: EC2's InterfaceType: `interface`, `efa`, `trunk`, ...
    managed: False for an ENI that belongs to somebody else: counted against the limits, never touched.
    made_by_us: it carries the tag that says it was made for this instance.
    excluded: its subnet is not for pods (any more): no new pod gets an address from it.
    """

    eni_id: EniId
    mac: Mac
    card: int
    device: int
    subnet_id: SubnetId
    subnet_cidr: IPv4Network
    primary_address: IPv4Address
    blocks: tuple[Block, ...]
    attachment_id: str
    security_groups: tuple[str, ...]
    delete_on_termination: bool
    interface_type: str = "interface"
    managed: bool = True
    made_by_us: bool = False
    excluded: bool = False

    @property
    def is_primary(self) -> bool:
        return self.card == 0 and self.device == 0

    @property
    def is_trunk(self) -> bool:
        return self.interface_type == "trunk"

    @property
    def may_be_released(self) -> bool:
        """Not the primary ENI; nor an EFA, which the machine's workloads use beside the pods."""
        return not self.is_primary and self.interface_type == "interface"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """A subnet ENIs can be made in; `free_address_count` is EC2's count at the time of the describe."""

    subnet_id: SubnetId
    cidr: IPv4Network
    free_address_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceLimits:
    """What the instance type allows on network card 0 (EC2 DescribeInstanceTypes, NetworkInfo).

    addresses_per_eni: IPv4 addresses of one ENI, its primary address included; the rest are `slots`.
    A /28 prefix takes one slot.
    is_nitro: bare metal included; others take no prefixes (EC2 user guide, "Prefix delegation").
    """

    instance_type: str
    eni_count: int
    addresses_per_eni: int
    is_nitro: bool = True

    @property
    def has_trunk(self) -> bool:
        """Whether an ENI can be a trunk for pods with security groups of their own.

        EC2 does not say. The EKS user guide ("Security groups for Pods"): most Nitro types, but no t family.
        """
        return self.is_nitro and not self.instance_type.startswith("t")

    @property
    def slots(self) -> int:
        return self.addresses_per_eni - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """This node, as IMDS identifies it. Facts that do not change while the instance runs, but for `vpc_cidrs`."""

    instance_id: str
    account_id: str
    instance_type: str
    region: str
    zone: str
    primary_mac: Mac
    primary_address: IPv4Address
    vpc_id: str
    vpc_cidrs: tuple[IPv4Network, ...]


class AddressState(StrEnum):
    """Where a pod address is in its life. The legal moves are `ledger.TRANSITIONS`."""

    FREE = "free"
    HELD = "held"
    COOLING = "cooling"
    RETIRING = "retiring"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A container interface and the addresses it holds.

    addresses: at least one, IPv4 first, all on one ENI.
    eni_id: None while EC2 has never listed an address that was found in the kernel.
    """

    holder: Holder
    addresses: tuple[Address, ...]
    eni_id: EniId | None
    since_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """What an ADD needs in order to wire its pod.

    table_id: routing table of the ENI the addresses are on; 254 (main) for the primary ENI.
    """

    addresses: tuple[Address, ...]
    eni_id: EniId
    table_id: int


class FindingKind(StrEnum):
    """A disagreement between kernel, EC2 and Kubernetes that a person may want to know. A closed set."""

    ADDRESS_VANISHED = "address_vanished"
    ADDRESS_RETURNED = "address_returned"
    ADDRESS_HELD_TWICE = "address_held_twice"
    LINK_TORN = "link_torn"
    POD_GONE = "pod_gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One disagreement. `message` is a sentence without a trailing stop; `evidence` are JSON scalars."""

    kind: FindingKind
    message: str
    evidence: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressView:
    """One address as the API shows it. `holders` is empty unless the address is held or quarantined."""

    address: Address
    state: AddressState
    eni_id: EniId | None
    listed: bool
    since_s: float
    holders: tuple[Holder, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockUsage:
    """A block EC2 lists on an ENI, and how many of its addresses are in which state.

    listed_count: all that EC2 lists, those being given back included.
    busy_count: held, cooling or quarantined: they pin the block.
    changed_s: when one of its addresses last changed its state.
    """

    block: Block
    listed_count: int
    busy_count: int
    free_count: int
    changed_s: float

    @property
    def is_free(self) -> bool:
        """Nobody uses an address of it, and it is not being given back."""
        return self.free_count == self.block.kind.address_count


@dataclass(frozen=True, slots=True, kw_only=True)
class EniUsage:
    """An ENI and how its slots are used; what the planner and the API see of it.

    ready: its link, table and rules are set up, so that pods can use it.
    leaving: it is being given back.
    since_s: when this agent first saw it; a larger value is a newer ENI to us.
    free: longest free first. Counts and `free` contain only addresses EC2 lists on this ENI.
    blocks: what takes a slot each, oldest first.
    """

    eni: Eni
    ready: bool
    leaving: bool
    since_s: float
    held_count: int
    cooling_count: int
    quarantined_count: int
    retiring_count: int
    free: tuple[Address, ...]
    blocks: tuple[BlockUsage, ...]

    @property
    def serves_pods(self) -> bool:
        return serves_pods(self.eni)

    @property
    def busy_count(self) -> int:
        """Addresses that somebody uses or used a moment ago: they pin the ENI."""
        return self.held_count + self.cooling_count + self.quarantined_count

    @property
    def used_slot_count(self) -> int:
        return len(self.blocks)


def serves_pods(eni: Eni) -> bool:
    """Whether pods may get addresses from this ENI: it is ours, and on network card 0."""
    return eni.managed and eni.card == 0
