"""The address space of a subnet as a bitmap: pure arithmetic on `SubnetRecord.used_bits`.

Reserved in every subnet: the network address, the router, the DNS server, one for future use, and the last address
(Amazon VPC User Guide, "Subnet CIDR blocks": the first four and the last). A prefix is 16 addresses aligned to 16
(EC2 User Guide, "Prefix delegation for Amazon EC2 network interfaces") and free of all others, reserved ones included,
so that the first and the last /28 of a subnet can never be a prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import islice

from sim.model.errors import Ec2Error, invalid_value
from sim.model.records import SubnetRecord

PREFIX_LENGTH = 28
PREFIX_SIZE = 16

Choose = Callable[[int], int]
"""Given the number of addresses in a subnet, the position from which to look for a free one (then upwards, round)."""


def reserved_bits(cidr: IPv4Network) -> int:
    """`used_bits` of an empty subnet."""
    return 0b1111 | 1 << (cidr.num_addresses - 1)


def is_free(subnet: SubnetRecord, wanted: IPv4Address | IPv4Network) -> bool:
    """Whether an address, or every address of a prefix, of this subnet is free."""
    return not subnet.used_bits & _mask(subnet, wanted)


def take(subnet: SubnetRecord, wanted: Iterable[IPv4Address | IPv4Network]) -> SubnetRecord:
    """The subnet with more addresses taken; the caller has looked that they are free."""
    used = subnet.used_bits
    for each in wanted:
        used |= _mask(subnet, each)
    return replace(subnet, used_bits=used)


def release(subnet: SubnetRecord, given_back: Iterable[IPv4Address | IPv4Network]) -> SubnetRecord:
    """The subnet with addresses given back."""
    used = subnet.used_bits
    for each in given_back:
        used &= ~_mask(subnet, each)
    return replace(subnet, used_bits=used)


def grant_addresses(subnet: SubnetRecord, count: int, choose: Choose) -> tuple[tuple[IPv4Address, ...], SubnetRecord]:
    """Take `count` free addresses, all or none.

    Raises: Ec2Error(InsufficientFreeAddressesInSubnet).
    """
    if subnet.free_address_count < count:
        raise Ec2Error(
            "InsufficientFreeAddressesInSubnet",
            "The specified subnet does not have enough free addresses to satisfy the request.",
        )
    used, size = subnet.used_bits, subnet.cidr.num_addresses
    granted = []
    for _ in range(count):
        position = _lowest_clear(used, choose(size))
        if position >= size:
            position = _lowest_clear(used, 0)
        used |= 1 << position
        granted.append(subnet.cidr.network_address + position)
    return tuple(granted), replace(subnet, used_bits=used)


def grant_prefixes(subnet: SubnetRecord, count: int) -> tuple[tuple[IPv4Network, ...], SubnetRecord]:
    """Take the `count` lowest free /28 blocks, all or none.

    Raises: Ec2Error(InvalidParameterValue) when too few addresses are free at all, Ec2Error(InsufficientCidrBlocks)
    when they are but not as whole blocks.
    """
    if subnet.free_address_count < count * PREFIX_SIZE:
        raise invalid_value("There aren't sufficient free Ipv4 addresses or prefixes")
    granted = tuple(islice(free_prefixes(subnet), count))
    if len(granted) < count:
        raise Ec2Error(
            "InsufficientCidrBlocks",
            "The specified subnet does not have enough free cidr blocks to satisfy the request.",
        )
    return granted, take(subnet, granted)


def free_prefixes(subnet: SubnetRecord) -> Iterator[IPv4Network]:
    """Every aligned /28 whose addresses are all free, from the lowest up."""
    size = subnet.cidr.num_addresses
    blocks = subnet.used_bits.to_bytes(size // 8, "little")
    first = subnet.cidr.network_address
    for at in range(0, size // 8, 2):
        if blocks[at : at + 2] == b"\0\0":
            yield IPv4Network((first + 8 * at, PREFIX_LENGTH))


def _lowest_clear(bits: int, start: int) -> int:
    shifted = bits >> start
    return start + (~shifted & (shifted + 1)).bit_length() - 1


def _mask(subnet: SubnetRecord, wanted: IPv4Address | IPv4Network) -> int:
    if isinstance(wanted, IPv4Address):
        return 1 << (int(wanted) - int(subnet.cidr.network_address))
    ones = (1 << wanted.num_addresses) - 1
    return ones << (int(wanted.network_address) - int(subnet.cidr.network_address))
