"""The subnet bitmap against a naive reading with sets of addresses."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.model.errors import Ec2Error
from sim.model.records import SubnetRecord
from sim.model.space import free_prefixes, grant_addresses, grant_prefixes, is_free, release, reserved_bits, take

CIDR = IPv4Network("10.0.3.0/25")


def subnet(cidr: IPv4Network = CIDR) -> SubnetRecord:
    return SubnetRecord(
        subnet_id="subnet-0",
        vpc_id="vpc-0",
        cidr=cidr,
        ipv6_cidr=None,
        availability_zone="us-west-2a",
        availability_zone_id="usw2-az1",
        used_bits=reserved_bits(cidr),
    )


def lowest(_: int) -> int:
    return 0


@pytest.mark.parametrize(
    ("cidr", "free_count", "prefix_count"),
    [("10.0.0.0/28", 11, 0), ("10.0.0.0/27", 27, 0), ("10.0.0.0/26", 59, 2), ("10.0.0.0/24", 251, 14)],
)
def test_five_addresses_are_reserved_in_every_subnet(cidr: str, free_count: int, prefix_count: int) -> None:
    empty = subnet(IPv4Network(cidr))
    first, last = empty.cidr[0], empty.cidr[-1]
    assert empty.free_address_count == free_count
    assert len(tuple(free_prefixes(empty))) == prefix_count
    assert not any(is_free(empty, a) for a in (first, first + 1, first + 2, first + 3, last))
    assert is_free(empty, first + 4)
    assert is_free(empty, last - 1)


def test_addresses_come_from_the_lowest_up() -> None:
    granted, after = grant_addresses(subnet(), 2, lowest)
    assert granted == (IPv4Address("10.0.3.4"), IPv4Address("10.0.3.5"))
    granted, after = grant_addresses(release(after, [IPv4Address("10.0.3.4")]), 2, lowest)
    assert granted == (IPv4Address("10.0.3.4"), IPv4Address("10.0.3.6"))


def test_a_search_from_the_middle_wraps_round() -> None:
    granted, _ = grant_addresses(subnet(), 3, lambda size: size - 2)
    assert granted == (IPv4Address("10.0.3.126"), IPv4Address("10.0.3.4"), IPv4Address("10.0.3.5"))


def test_a_full_subnet_and_a_fragmented_one_are_told_apart() -> None:
    one_in_each_block = [CIDR.network_address + n for n in range(8, 128, 16)]
    fragmented = take(subnet(), one_in_each_block)
    with pytest.raises(Ec2Error, match="InsufficientCidrBlocks"):
        grant_prefixes(fragmented, 1)
    _, full = grant_addresses(fragmented, fragmented.free_address_count - 15, lowest)
    with pytest.raises(Ec2Error, match="InvalidParameterValue: There aren't sufficient free"):
        grant_prefixes(full, 1)
    with pytest.raises(Ec2Error, match="InsufficientFreeAddressesInSubnet"):
        grant_addresses(full, 16, lowest)
    assert grant_addresses(full, 15, lowest)[1].free_address_count == 0


def test_all_or_nothing() -> None:
    with pytest.raises(Ec2Error):
        grant_prefixes(subnet(), 7)  # six are free
    assert len(grant_prefixes(subnet(), 6)[0]) == 6


@given(taken=st.sets(st.integers(4, 126)), start=st.integers(0, 127), count=st.integers(0, 4))
def test_grants_agree_with_sets(taken: set[int], start: int, count: int) -> None:
    before = take(subnet(), [CIDR[n] for n in taken])
    free = [n for n in range(4, 127) if n not in taken]
    in_order = [n for n in free if n >= start] + [n for n in free if n < start]
    blocks = [b for b in range(0, 128, 16) if not (set(range(b, b + 16)) - set(free))]
    assert before.free_address_count == len(free)
    assert [int(p.network_address - int(CIDR[0])) for p in free_prefixes(before)] == blocks
    if count > len(free):
        return
    # One start for the first address; the search goes on from the lowest free one above it.
    granted, after = grant_addresses(before, count, lambda _: start)
    assert [int(a) - int(CIDR[0]) for a in granted] == in_order[:count]
    assert after.free_address_count == len(free) - count
    assert release(after, granted) == before
