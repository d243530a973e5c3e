"""What a simulated VPC is made of when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network


class AddressPlacement(StrEnum):
    """Which free address of a subnet is granted next.

    LOWEST gives a freed address to the next caller at once: deterministic, and the hardest case for a client that
    forgets to wait before it lets go. SCATTERED spreads addresses over the subnet as EC2 does, which fragments it: soon
    no aligned /28 is free although many addresses are. Both take /28 prefixes from the lowest free aligned block.
    """

    LOWEST = "lowest"
    SCATTERED = "scattered"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubnetConfig:
    """One subnet.

    cidr: between /16 and /28 (Amazon VPC User Guide, "Subnet CIDR blocks").
    ipv6_cidr: a /64, or None for an IPv4-only subnet.
    subnet_id: minted when empty.
    """

    cidr: IPv4Network
    availability_zone: str = "us-west-2a"
    availability_zone_id: str = "usw2-az1"
    ipv6_cidr: IPv6Network | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    subnet_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityGroupConfig:
    """One security group; only its identity is simulated, not its rules."""

    name: str
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    group_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VpcConfig:
    """One VPC in one Region of one account.

    security_groups: the first is what an ENI gets when its creator names none, as the VPC's default group.
    cidrs: the first is the VPC's primary IPv4 CIDR.
    seed: of all identifiers, so that two runs with equal calls give equal answers; None for fresh ones every time.
    """

    cidrs: tuple[IPv4Network, ...] = (IPv4Network("10.0.0.0/16"),)
    ipv6_cidrs: tuple[IPv6Network, ...] = ()
    region: str = "us-west-2"
    account_id: str = "123456789012"
    subnets: tuple[SubnetConfig, ...] = (SubnetConfig(cidr=IPv4Network("10.0.0.0/24")),)
    security_groups: tuple[SecurityGroupConfig, ...] = (
        SecurityGroupConfig(name="default", description="default VPC security group"),
    )
    tags: Mapping[str, str] = field(default_factory=dict)
    placement: AddressPlacement = AddressPlacement.LOWEST
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How long EC2 takes behind the API. All zero: everything is true at once.

    attach_s: from AttachNetworkInterface until the attachment is `attached` and the link is there.
    detach_s: from DetachNetworkInterface until the ENI is `available`.
    describe_lag_s: how old the state is that Describe* shows (EC2 API: "eventual consistency").
    imds_lag_s: how old the ENIs are that the instance metadata shows.
    """

    attach_s: float = 0.0
    detach_s: float = 0.0
    describe_lag_s: float = 0.0
    imds_lag_s: float = 0.0


REALISTIC_TIMINGS = Timings(attach_s=2.0, detach_s=3.0, describe_lag_s=0.5, imds_lag_s=1.5)
"""Of the size people report: an attachment is usable within 2 to 10 s (EKS best practices, "Amazon VPC CNI"), and the
metadata follows EC2 within a few seconds."""
