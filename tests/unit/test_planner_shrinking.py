"""How the pool shrinks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.ipam.model import BlockKind
from agent.ipam.plan import (
    AssignBlocks,
    PoolPolicy,
    ReleaseEni,
)
from tests.ipam_builders import (
    SUBNET,
    eni_id,
    ip,
)
from tests.planner_observations import OLD_S, actions, assign, seen, unassign, usage


def test_surplus_goes_back_only_when_settled() -> None:
    idle = seen(usage(0, held=6, free=9))
    assert actions(idle) == [unassign(0, *(ip(100 + n) for n in range(4)))]
    assert actions(replace(idle, quiet_s=599.0)) == []
    assert actions(replace(idle, watched_s=599.0)) == []
    assert actions(replace(idle, peak_demand_count=10, peak_eni_demand_count=10)) == []


def test_while_demand_rises_now_and_then_a_quantum_of_surplus_stays() -> None:
    busy = seen(usage(0, held=6, free=16), quiet_s=30.0)
    assert actions(busy) == [unassign(0, ip(100))]


def test_the_emptiest_and_newest_eni_gives_back_first_and_the_primary_last() -> None:
    enis = (usage(0, free=9), usage(1, held=2, free=3), usage(2, held=1, free=3))
    assert actions(seen(*enis)) == [
        unassign(2, ip(300), ip(301), ip(302)),
        unassign(1, ip(200), ip(201), ip(202)),
        unassign(0, ip(100), ip(101)),
    ]


def test_an_idle_eni_is_released_with_its_addresses() -> None:
    idle = seen(usage(0, free=10), usage(1, free=10))
    assert actions(idle) == [ReleaseEni(eni_id=eni_id(1), reason="")]
    assert not any(isinstance(action, ReleaseEni) for action in actions(replace(idle, watched_s=899.0)))


@pytest.mark.parametrize("pin", [{"held": 1}, {"cooling": 1}, {"quarantined_count": 1}, {"prefixes": (1,)}])
def test_an_eni_that_anybody_uses_is_never_released(pin: dict[str, Any]) -> None:
    decided = actions(seen(usage(0, free=29), usage(1, free=10, **pin)))
    assert not any(isinstance(action, ReleaseEni) for action in decided)


def test_a_young_eni_is_not_released() -> None:
    young = usage(1, since_s=OLD_S - 899.0)
    assert actions(seen(usage(0, free=10), young)) == []
    assert actions(seen(usage(0, free=10), replace(young, since_s=OLD_S - 900.0))) == [
        ReleaseEni(eni_id=eni_id(1), reason="")
    ]


def test_an_idle_eni_goes_once_its_free_addresses_have_room_elsewhere() -> None:
    idle = seen(usage(0, free=3), usage(1, free=7))
    assert actions(idle) == [assign(0, 7)]
    moved = seen(usage(0, free=10), usage(1, free=7))
    assert actions(moved) == [ReleaseEni(eni_id=eni_id(1), reason="")]
    assert actions(replace(idle, quiet_s=800.0)) == []
    assert actions(replace(idle, short_subnets={SUBNET: 3})) == []


def test_without_targets_whole_enis_go_when_one_more_than_the_target_is_idle() -> None:
    policy = PoolPolicy(warm_eni_target=1)
    full = [usage(device, free=29) for device in range(3)]
    assert actions(seen(*full), policy) == [
        ReleaseEni(eni_id=eni_id(2), reason=""),
        ReleaseEni(eni_id=eni_id(1), reason=""),
    ]
    assert actions(seen(usage(0, held=1, free=28), *full[1:]), policy) == [ReleaseEni(eni_id=eni_id(2), reason="")]


def test_nothing_shrinks_while_anything_is_wanted_or_coming_or_refused() -> None:
    surplus = seen(usage(0, held=6, free=9))
    coming = AssignBlocks(eni_id=eni_id(0), kind=BlockKind.IPV4_ADDRESS, count=1, reason="")
    assert actions(replace(surplus, in_flight=(coming,))) == []
    assert actions(replace(surplus, shrink_held=True)) == []
    assert actions(replace(surplus, waiter_count=1)) == []


def test_an_eni_being_worked_on_is_left_alone() -> None:
    leaving = ReleaseEni(eni_id=eni_id(1), reason="")
    enis = (usage(0, free=10), usage(1, leaving=True), usage(2))
    assert actions(seen(*enis, in_flight=(leaving,))) == [ReleaseEni(eni_id=eni_id(2), reason="")]
    assert (
        actions(seen(*enis[:2], usage(2, ready=False), setting_up=frozenset({eni_id(2)}), in_flight=(leaving,))) == []
    )
