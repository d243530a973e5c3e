"""Private IPv4 addresses and /28 prefixes of an ENI: assign and unassign.

Each secondary address and each prefix takes one of the instance type's addresses per interface (EC2 User Guide, "IP
addresses per network interface per instance type"). Requests are granted as a whole or refused as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from sim.model.errors import Ec2Error, invalid_value
from sim.model.lookup import find_eni
from sim.model.records import AddressesChanged, Change, EniRecord, State, Step, SubnetRecord
from sim.model.rules import Rules
from sim.model.space import PREFIX_LENGTH, grant_addresses, grant_prefixes, is_free, release, reserved_bits, take


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipv4Wish:
    """What somebody wants on top of what an ENI has; EC2 accepts one of the four at a time.

    allow_reassignment: take explicit addresses away from another ENI that has them as secondary addresses.
    """

    addresses: tuple[IPv4Address, ...] = ()
    count: int = 0
    prefixes: tuple[IPv4Network, ...] = ()
    prefix_count: int = 0
    allow_reassignment: bool = False

    @property
    def slot_count(self) -> int:
        return len(self.addresses) + self.count + len(self.prefixes) + self.prefix_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipv4Grant:
    """What was granted, in EC2's order."""

    eni: EniRecord
    addresses: tuple[IPv4Address, ...]
    prefixes: tuple[IPv4Network, ...]


def assign_ipv4(state: State, rules: Rules, eni_id: str, wish: Ipv4Wish) -> Step[Ipv4Grant]:
    """AssignPrivateIpAddresses. Explicit addresses the ENI already has are granted again without effect.

    Raises: Ec2Error(InvalidNetworkInterfaceID.NotFound, PrivateIpAddressLimitExceeded, InvalidParameterValue,
    InsufficientFreeAddressesInSubnet, InsufficientCidrBlocks).
    """
    eni = find_eni(state, eni_id)
    wanted = tuple(a for a in wish.addresses if a not in eni.secondary_addresses)
    check_ipv4_limit(state, rules, eni, more=wish.slot_count - len(wish.addresses) + len(wanted))
    moved = _take_from_others(state, eni, wanted, allowed=wish.allow_reassignment)
    subnet = moved.state.subnets[eni.subnet_id]
    _check_prefixes(subnet, wish.prefixes)
    subnet = take(subnet, (*wanted, *wish.prefixes))
    counted, subnet = grant_addresses(subnet, wish.count, rules.choose)
    blocks, subnet = grant_prefixes(subnet, wish.prefix_count)
    after = replace(
        eni,
        secondary_addresses=(*eni.secondary_addresses, *wanted, *counted),
        ipv4_prefixes=(*eni.ipv4_prefixes, *wish.prefixes, *blocks),
    )
    return Step(
        state=moved.state.with_subnet(subnet).with_eni(after),
        result=Ipv4Grant(eni=after, addresses=(*wish.addresses, *counted), prefixes=(*wish.prefixes, *blocks)),
        changes=(*moved.changes, AddressesChanged(eni_id=eni_id)),
    )


def unassign_ipv4(
    state: State, eni_id: str, addresses: tuple[IPv4Address, ...], prefixes: tuple[IPv4Network, ...]
) -> Step[EniRecord]:
    """UnassignPrivateIpAddresses.

    Raises: Ec2Error(InvalidNetworkInterfaceID.NotFound, InvalidParameterValue) when one is not assigned, or is the
    primary address; then none is unassigned.
    """
    eni = find_eni(state, eni_id)
    if eni.primary_address in addresses:
        raise invalid_value(f"Primary private IP address {eni.primary_address} cannot be unassigned")
    strangers: list[IPv4Address | IPv4Network] = [a for a in addresses if a not in eni.secondary_addresses]
    strangers += [p for p in prefixes if p not in eni.ipv4_prefixes]
    if strangers:
        raise invalid_value(f"Some of [{', '.join(map(str, strangers))}] are not assigned to interface {eni_id}")
    after = replace(
        eni,
        secondary_addresses=tuple(a for a in eni.secondary_addresses if a not in addresses),
        ipv4_prefixes=tuple(p for p in eni.ipv4_prefixes if p not in prefixes),
    )
    subnet = release(state.subnets[eni.subnet_id], (*addresses, *prefixes))
    return Step(
        state=state.with_subnet(subnet).with_eni(after), result=after, changes=(AddressesChanged(eni_id=eni_id),)
    )


def check_ipv4_limit(state: State, rules: Rules, eni: EniRecord, *, more: int = 0, instance_type: str = "") -> None:
    """Whether the ENI may hold what it has and `more`, on `instance_type` or on the instance it is attached to.

    Raises: Ec2Error(PrivateIpAddressLimitExceeded).
    """
    if not instance_type and eni.attachment is not None:
        instance_type = state.instances[eni.attachment.instance_id].instance_type
    limit = rules.instance_type(instance_type).ipv4_per_interface if instance_type else rules.most_ipv4_per_interface
    if eni.ipv4_slots_used_count + more > limit:
        raise Ec2Error("PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit.")


def check_address(subnet: SubnetRecord, address: IPv4Address) -> None:
    """Whether `address` can be anybody's in this subnet.

    Raises: Ec2Error(InvalidParameterValue) outside the subnet, or reserved.
    """
    if address not in subnet.cidr:
        raise invalid_value(f"Address {address} does not fall within the subnet's address range")
    if reserved_bits(subnet.cidr) >> (int(address) - int(subnet.cidr.network_address)) & 1:
        raise invalid_value(f"Address {address} is in subnet's reserved address range")


def _take_from_others(
    state: State, eni: EniRecord, wanted: tuple[IPv4Address, ...], *, allowed: bool
) -> Step[tuple[IPv4Address, ...]]:
    """Take those of the wanted addresses that others have away from them; the answer names these.

    In the subnet they stay taken: they only change hands.
    """
    subnet = state.subnets[eni.subnet_id]
    for address in wanted:
        check_address(subnet, address)
    taken = tuple(a for a in wanted if not is_free(subnet, a))
    if taken and not allowed:
        raise invalid_value(f"Some of [{', '.join(map(str, taken))}] are assigned but move is not allowed.")
    changes: list[Change] = []
    for address in taken:
        owner = next((e for e in state.enis.values() if address in e.secondary_addresses), None)
        if owner is None:
            raise invalid_value(f"Address {address} is a primary address or part of a prefix and cannot be moved")
        kept = tuple(a for a in owner.secondary_addresses if a != address)
        state = state.with_eni(replace(owner, secondary_addresses=kept))
        changes.append(AddressesChanged(eni_id=owner.eni_id))
    return Step(state=state, result=taken, changes=tuple(changes))


def _check_prefixes(subnet: SubnetRecord, prefixes: tuple[IPv4Network, ...]) -> None:
    for prefix in prefixes:
        if prefix.prefixlen != PREFIX_LENGTH or not prefix.subnet_of(subnet.cidr):
            raise invalid_value(f"Prefix {prefix} is not a /{PREFIX_LENGTH} within the subnet's address range")
        if not is_free(subnet, prefix):
            raise invalid_value(f"Some of the addresses in prefix {prefix} are in use or reserved")
