from __future__ import annotations

import pytest

from agent.ipam.model import BlockKind, SubnetId
from agent.ipam.placement import EniFill, choose_eni, choose_subnet, lowest_free_devices
from tests.ipam_builders import OTHER_SUBNET, SUBNET, eni_id


def fill(device: int, busy_count: int) -> EniFill:
    return EniFill(
        eni_id=eni_id(device),
        device=device,
        is_primary=device == 0,
        busy_count=busy_count,
        kinds=[BlockKind.IPV4_ADDRESS],
    )


@pytest.mark.parametrize(
    ("busy_by_device", "chosen"),
    [
        ({}, None),
        ({0: 0, 1: 9}, 0),
        ({1: 3, 2: 9, 3: 4}, 2),
        ({3: 4, 1: 4, 2: 4}, 1),
    ],
)
def test_the_primary_is_packed_first_then_the_fullest(busy_by_device: dict[int, int], chosen: int | None) -> None:
    picked = choose_eni([fill(device, busy) for device, busy in busy_by_device.items()], BlockKind.IPV4_ADDRESS)
    assert picked == (None if chosen is None else eni_id(chosen))


def test_devices_are_the_lowest_free_ones() -> None:
    assert lowest_free_devices({0, 2, 3}, 3) == (1, 4, 5)
    assert lowest_free_devices({0}, 0) == ()


@pytest.mark.parametrize(
    ("free_counts", "blocked", "chosen"),
    [
        ({SUBNET: 50, OTHER_SUBNET: 90}, set(), SUBNET),
        ({SUBNET: 10, OTHER_SUBNET: 30}, set(), OTHER_SUBNET),
        ({SUBNET: 10, OTHER_SUBNET: 20}, set(), OTHER_SUBNET),
        ({SUBNET: 50, OTHER_SUBNET: 90}, {SUBNET}, OTHER_SUBNET),
        ({SUBNET: 1, OTHER_SUBNET: 0}, set(), None),
        ({SUBNET: 50}, {SUBNET}, None),
        ({}, set(), None),
    ],
)
def test_the_first_subnet_that_can_take_all_of_it_wins(
    free_counts: dict[SubnetId, int], blocked: set[SubnetId], chosen: SubnetId | None
) -> None:
    assert choose_subnet(free_counts, blocked=blocked, address_count=30) == chosen
