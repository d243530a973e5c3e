"""What EC2 remembers, as immutable values. A change of the VPC makes a new `State`; old ones stay valid forever.

Times (`_s`) are seconds since the Unix epoch. Identifiers are EC2's strings (`i-`, `eni-`, ... and 17 hex digits).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Generic, TypeVar


class AttachmentStatus(StrEnum):
    """API reference: NetworkInterfaceAttachment, `status`; `detached` is no attachment at all."""

    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"


class EniStatus(StrEnum):
    """API reference: NetworkInterface, `status`."""

    AVAILABLE = "available"
    IN_USE = "in-use"


class InstanceState(StrEnum):
    """API reference: InstanceState, `name`; the states between are passed in no time."""

    RUNNING = "running"
    TERMINATED = "terminated"


@dataclass(frozen=True, slots=True, kw_only=True)
class VpcRecord:
    """The VPC. The first of `cidrs` is its primary one."""

    vpc_id: str
    region: str
    account_id: str
    cidrs: tuple[IPv4Network, ...]
    ipv6_cidrs: tuple[IPv6Network, ...]
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityGroupRecord:
    """A security group by identity."""

    group_id: str
    name: str
    description: str
    vpc_id: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetRecord:
    """A subnet and which of its addresses are taken.

    used_bits: bit n is set when the n-th address of `cidr` is taken or reserved (see `sim.model.space`).
    """

    subnet_id: str
    vpc_id: str
    cidr: IPv4Network
    ipv6_cidr: IPv6Network | None
    availability_zone: str
    availability_zone_id: str
    used_bits: int
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def free_address_count(self) -> int:
        return self.cidr.num_addresses - self.used_bits.bit_count()


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceRecord:
    """An instance.

    metadata_hop_limit: of the answer to a metadata token request; EKS nodes have 2.
    """

    instance_id: str
    instance_type: str
    subnet_id: str
    vpc_id: str
    availability_zone: str
    image_id: str
    launch_time_s: float
    state: InstanceState = InstanceState.RUNNING
    metadata_hop_limit: int = 2
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentRecord:
    """An ENI's place on an instance. (network_card_index, device_index) = (0, 0) is the primary ENI."""

    attachment_id: str
    instance_id: str
    device_index: int
    network_card_index: int
    delete_on_termination: bool
    status: AttachmentStatus
    attach_time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EniRecord:
    """An elastic network interface; collections are in the order EC2 granted their items."""

    eni_id: str
    mac: str
    subnet_id: str
    vpc_id: str
    availability_zone: str
    primary_address: IPv4Address
    secondary_addresses: tuple[IPv4Address, ...] = ()
    ipv4_prefixes: tuple[IPv4Network, ...] = ()
    ipv6_addresses: tuple[IPv6Address, ...] = ()
    ipv6_prefixes: tuple[IPv6Network, ...] = ()
    attachment: AttachmentRecord | None = None
    security_group_ids: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    source_dest_check: bool = True

    @property
    def status(self) -> EniStatus:
        """`in-use` from the attach call until a detachment has completed."""
        return EniStatus.AVAILABLE if self.attachment is None else EniStatus.IN_USE

    @property
    def is_primary(self) -> bool:
        at = self.attachment
        return at is not None and at.device_index == 0 and at.network_card_index == 0

    @property
    def is_attaching(self) -> bool:
        """The instance does not have it yet."""
        return self.attachment is not None and self.attachment.status is AttachmentStatus.ATTACHING

    @property
    def ipv4_slots_used_count(self) -> int:
        """Against the instance type's IPv4 addresses per interface: the primary address and a prefix take one each."""
        return 1 + len(self.secondary_addresses) + len(self.ipv4_prefixes)

    @property
    def ipv6_slots_used_count(self) -> int:
        """Against the instance type's IPv6 addresses per interface."""
        return len(self.ipv6_addresses) + len(self.ipv6_prefixes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """An attachment that changes by itself at `due_s`: attaching to attached, or detaching to gone."""

    due_s: float
    eni_id: str
    attachment_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenUse:
    """A client token seen before: what was asked with it, and which ENI it made."""

    fingerprint: str
    eni_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The whole VPC at one moment."""

    vpc: VpcRecord
    subnets: Mapping[str, SubnetRecord]
    security_groups: Mapping[str, SecurityGroupRecord]
    instances: Mapping[str, InstanceRecord] = field(default_factory=dict)
    enis: Mapping[str, EniRecord] = field(default_factory=dict)
    transitions: tuple[Transition, ...] = ()
    client_tokens: Mapping[str, TokenUse] = field(default_factory=dict)

    def enis_of(self, instance_id: str) -> tuple[EniRecord, ...]:
        """ENIs attached, attaching or detaching, by network card and device."""
        found = [e for e in self.enis.values() if e.attachment is not None and e.attachment.instance_id == instance_id]
        return tuple(sorted(found, key=_position))

    def with_eni(self, eni: EniRecord) -> State:
        """This state with one ENI added or replaced."""
        return replace(self, enis={**self.enis, eni.eni_id: eni})

    def with_subnet(self, subnet: SubnetRecord) -> State:
        """This state with one subnet replaced."""
        return replace(self, subnets={**self.subnets, subnet.subnet_id: subnet})

    def with_instance(self, instance: InstanceRecord) -> State:
        """This state with one instance added or replaced."""
        return replace(self, instances={**self.instances, instance.instance_id: instance})


def _position(eni: EniRecord) -> tuple[int, int]:
    return (eni.attachment.network_card_index, eni.attachment.device_index) if eni.attachment else (0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceLaunched:
    """An instance runs; `EniAttached` for its primary ENI follows."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceTerminated:
    """An instance is gone; `EniDetached` for each of its ENIs came before."""

    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EniAttached:
    """An attachment completed: the link appears now."""

    eni_id: str
    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EniDetached:
    """A detachment completed: the link is gone now.

    The ENI itself may be gone too (its instance was terminated), and a detachment that overtook its attachment comes
    without an `EniAttached` before it.
    """

    eni_id: str
    instance_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressesChanged:
    """What may come from and go to an ENI changed after it was created; it may be attached or not.

    Addresses, prefixes, or whether sources are checked at all.
    """

    eni_id: str


Change = InstanceLaunched | InstanceTerminated | EniAttached | EniDetached | AddressesChanged

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step(Generic[T]):
    """What an operation makes of a state: the next state, its answer, and what changed, in order."""

    state: State
    result: T
    changes: tuple[Change, ...] = ()
