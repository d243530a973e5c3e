"""IPv6 addresses and /80 prefixes of an ENI: assign and unassign.

EC2 draws them from the subnet's /64 without an order one could rely on, so the simulator draws at random. An address
and a prefix each take one of the instance type's IPv6 addresses per interface.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network
from typing import TypeVar

from sim.model.errors import Ec2Error, invalid_value
from sim.model.lookup import find_eni
from sim.model.records import AddressesChanged, EniRecord, State, Step
from sim.model.rules import Rules

T = TypeVar("T", IPv6Address, IPv6Network)

PREFIX_LENGTH = 80
_RESERVED_COUNT = 4  # the first four addresses and the last are reserved (VPC User Guide, "Subnet CIDR blocks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipv6Wish:
    """What somebody wants on top of what an ENI has."""

    addresses: tuple[IPv6Address, ...] = ()
    count: int = 0
    prefixes: tuple[IPv6Network, ...] = ()
    prefix_count: int = 0

    @property
    def slot_count(self) -> int:
        return len(self.addresses) + self.count + len(self.prefixes) + self.prefix_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Ipv6Grant:
    """What was granted."""

    eni: EniRecord
    addresses: tuple[IPv6Address, ...]
    prefixes: tuple[IPv6Network, ...]


def assign_ipv6(state: State, rules: Rules, eni_id: str, wish: Ipv6Wish) -> Step[Ipv6Grant]:
    """AssignIpv6Addresses.

    Raises: Ec2Error(InvalidNetworkInterfaceID.NotFound, PrivateIpAddressLimitExceeded, InvalidParameterValue).
    """
    eni = find_eni(state, eni_id)
    check_ipv6_limit(state, rules, eni, more=wish.slot_count)
    cidr = state.subnets[eni.subnet_id].ipv6_cidr
    if cidr is None:
        raise invalid_value(f"The subnet '{eni.subnet_id}' has no IPv6 CIDR block")
    taken = _taken(state, eni.subnet_id, cidr)
    for address in wish.addresses:
        if address not in cidr or not taken.add_address(address):
            raise invalid_value(f"Address {address} is in use or not within the subnet's address range")
    for prefix in wish.prefixes:
        if prefix.prefixlen != PREFIX_LENGTH or not prefix.subnet_of(cidr) or not taken.add_prefix(prefix):
            raise invalid_value(f"Prefix {prefix} is in use or not a /{PREFIX_LENGTH} of the subnet")
    first = int(cidr.network_address)
    bits = rules.mint.bits
    addresses = _draw(wish.count, lambda: IPv6Address(first + bits(64)), taken.add_address)
    prefixes = _draw(wish.prefix_count, lambda: IPv6Network((first + (bits(16) << 48), 80)), taken.add_prefix)
    granted = (*wish.addresses, *addresses), (*wish.prefixes, *prefixes)
    after = replace(
        eni, ipv6_addresses=(*eni.ipv6_addresses, *granted[0]), ipv6_prefixes=(*eni.ipv6_prefixes, *granted[1])
    )
    return Step(
        state=state.with_eni(after),
        result=Ipv6Grant(eni=after, addresses=granted[0], prefixes=granted[1]),
        changes=(AddressesChanged(eni_id=eni_id),),
    )


def unassign_ipv6(
    state: State, eni_id: str, addresses: tuple[IPv6Address, ...], prefixes: tuple[IPv6Network, ...]
) -> Step[Ipv6Grant]:
    """UnassignIpv6Addresses; the answer carries what was taken away.

    Raises: Ec2Error(InvalidNetworkInterfaceID.NotFound, InvalidParameterValue) when one is not assigned.
    """
    eni = find_eni(state, eni_id)
    strangers: list[IPv6Address | IPv6Network] = [a for a in addresses if a not in eni.ipv6_addresses]
    strangers += [p for p in prefixes if p not in eni.ipv6_prefixes]
    if strangers:
        raise invalid_value(f"Some of [{', '.join(map(str, strangers))}] are not assigned to interface {eni_id}")
    after = replace(
        eni,
        ipv6_addresses=tuple(a for a in eni.ipv6_addresses if a not in addresses),
        ipv6_prefixes=tuple(p for p in eni.ipv6_prefixes if p not in prefixes),
    )
    return Step(
        state=state.with_eni(after),
        result=Ipv6Grant(eni=after, addresses=addresses, prefixes=prefixes),
        changes=(AddressesChanged(eni_id=eni_id),),
    )


def check_ipv6_limit(state: State, rules: Rules, eni: EniRecord, *, more: int = 0, instance_type: str = "") -> None:
    """As `sim.model.ipv4.check_ipv4_limit`."""
    if not instance_type and eni.attachment is not None:
        instance_type = state.instances[eni.attachment.instance_id].instance_type
    limit = rules.instance_type(instance_type).ipv6_per_interface if instance_type else rules.most_ipv6_per_interface
    if eni.ipv6_slots_used_count + more > limit:
        raise Ec2Error("PrivateIpAddressLimitExceeded", "Number of IPv6 addresses will exceed limit.")


@dataclass(slots=True, kw_only=True)
class _Taken:
    """Addresses and prefixes in use in one subnet, while a request is being granted."""

    addresses: set[IPv6Address]
    prefixes: set[IPv6Network]
    reserved: set[IPv6Address]

    def add_address(self, address: IPv6Address) -> bool:
        if address in self.addresses | self.reserved or _prefix_around(address) in self.prefixes:
            return False
        self.addresses.add(address)
        return True

    def add_prefix(self, prefix: IPv6Network) -> bool:
        if prefix in self.prefixes or any(a in prefix for a in self.addresses | self.reserved):
            return False
        self.prefixes.add(prefix)
        return True


def _taken(state: State, subnet_id: str, cidr: IPv6Network) -> _Taken:
    enis = [e for e in state.enis.values() if e.subnet_id == subnet_id]
    return _Taken(
        addresses={a for e in enis for a in e.ipv6_addresses},
        prefixes={p for e in enis for p in e.ipv6_prefixes},
        reserved={cidr[n] for n in (*range(_RESERVED_COUNT), -1)},
    )


def _prefix_around(address: IPv6Address) -> IPv6Network:
    return IPv6Network((address, PREFIX_LENGTH), strict=False)


def _draw(count: int, make: Callable[[], T], accept: Callable[[T], bool]) -> tuple[T, ...]:
    drawn: list[T] = []
    while len(drawn) < count:
        candidate = make()
        if accept(candidate):
            drawn.append(candidate)
    return tuple(drawn)
