"""How the pool grows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.ipam.account import READY_GRACE_S
from agent.ipam.growing import growth_quantum
from agent.ipam.model import BlockKind, InstanceLimits, Subnet
from agent.ipam.plan import (
    AssignBlocks,
    CreateEni,
    PoolPolicy,
)
from agent.ipam.planner import plan
from tests.ipam_builders import (
    CIDR,
    M5_4XLARGE,
    M5_LARGE,
    OTHER_SUBNET,
    P3DN_24XLARGE,
    SUBNET,
    T3_SMALL,
    an_eni,
    eni_id,
)
from tests.planner_observations import IP_TARGETS, OLD_S, actions, assign, create, seen, usage


@pytest.mark.parametrize(("limits", "quantum"), [(T3_SMALL, 1), (M5_LARGE, 3), (M5_4XLARGE, 10), (P3DN_24XLARGE, 16)])
def test_the_quantum_is_a_third_of_an_eni_at_most_a_prefix(limits: InstanceLimits, quantum: int) -> None:
    assert growth_quantum(limits) == quantum


def test_one_address_short_grows_by_a_quantum() -> None:
    assert actions(seen(usage(held=6, free=4))) == [assign(0, 10)]


def test_a_large_shortage_is_asked_for_at_once() -> None:
    assert actions(seen(usage(held=10), waiter_count=12)) == [assign(0, 17)]


def test_existing_enis_are_filled_and_new_ones_made_in_the_same_turn() -> None:
    assert actions(seen(usage(0, held=25), usage(1, held=20), waiter_count=60)) == [
        assign(0, 4),
        assign(1, 9),
        create(2, 29),
        create(3, 23),
    ]


def test_a_quantum_alone_makes_no_new_eni() -> None:
    assert actions(seen(usage(0, held=24, free=4))) == [assign(0, 1)]


def test_without_targets_enis_are_filled_whole() -> None:
    policy = PoolPolicy(warm_eni_target=1)
    assert actions(seen(usage(0)), policy) == [assign(0, 29)]
    assert actions(seen(usage(0, held=1, free=28)), policy) == [create(1, 29)]


def test_a_warm_target_of_no_eni_still_keeps_one_address_free() -> None:
    policy = PoolPolicy(warm_eni_target=0)
    assert actions(seen(usage(0, held=28, free=1)), policy) == []
    assert actions(seen(usage(0, held=29)), policy) == [create(1, 29)]


def test_a_minimum_alone_does_not_cap_the_pool() -> None:
    policy = PoolPolicy(minimum_ip_target=10)
    assert actions(seen(usage(0, held=10), waiter_count=1), policy) == [assign(0, 10)]


def test_cooling_addresses_are_not_available_but_take_slots() -> None:
    assert actions(seen(usage(0, held=5, cooling=20, free=3))) == [assign(0, 1), create(1, 10)]


def test_what_is_coming_is_not_asked_for_again() -> None:
    coming = AssignBlocks(eni_id=eni_id(0), kind=BlockKind.IPV4_ADDRESS, count=17, reason="")
    decided = plan(seen(usage(held=10), waiter_count=12, in_flight=(coming,)), IP_TARGETS)
    assert decided.actions == ()
    assert decided.short_count == 0
    assert "17 coming" in decided.reason


def test_new_demand_is_not_kept_waiting_by_an_eni_that_is_busy() -> None:
    coming = AssignBlocks(eni_id=eni_id(0), kind=BlockKind.IPV4_ADDRESS, count=10, reason="")
    creating = CreateEni(device=1, subnet_id=SUBNET, kind=BlockKind.IPV4_ADDRESS, count=10, reason="")
    observation = seen(usage(0, held=10), waiter_count=60, in_flight=(coming, creating))
    # 45 short, 9 of them have room on the ENI that is being filled and 19 on the one that is being made.
    assert actions(observation) == [create(2, 17)]
    assert actions(replace(observation, waiter_count=20)) == []


def test_an_eni_that_is_being_made_is_filled_up_before_another_is_asked_for() -> None:
    creating = CreateEni(device=1, subnet_id=SUBNET, kind=BlockKind.IPV4_ADDRESS, count=10, reason="")
    burst = seen(usage(0, held=29), waiter_count=20, in_flight=(creating,))
    assert actions(burst) == []
    assert plan(burst, IP_TARGETS).short_count == 15
    full = replace(burst, short_subnets={SUBNET: 40})
    assert actions(full) == [create(2, 15)], "a short subnet may not have the rest when the ENI is there"


def test_the_primary_eni_is_filled_first_then_the_fullest() -> None:
    enis = (usage(0, held=20, free=0), usage(1, held=2), usage(2, held=9))
    assert actions(seen(*enis, waiter_count=20)) == [assign(0, 9), assign(2, 16)]


def test_limits_hold_whatever_the_demand() -> None:
    full = [usage(device, held=9) for device in range(3)]
    decided = plan(seen(*full, limits=M5_LARGE, waiter_count=5), IP_TARGETS)
    assert decided.actions == ()
    assert "need 27" in decided.reason


def test_max_eni_and_other_peoples_enis_count() -> None:
    policy = replace(IP_TARGETS, max_eni=3)
    foreign = usage(5, eni=an_eni(5, managed=False))
    observation = seen(usage(0, held=29), foreign, waiter_count=100)
    assert actions(observation, policy) == [create(1, 29)]
    assert actions(observation, replace(policy, max_eni=2)) == []


def test_new_enis_take_the_lowest_free_devices() -> None:
    foreign = usage(1, eni=an_eni(1, managed=False))
    assert [
        action.device
        for action in plan(seen(usage(0, held=29), foreign, waiter_count=40), IP_TARGETS).actions
        if isinstance(action, CreateEni)
    ] == [2, 3]


def test_a_blocked_subnet_is_left_alone_and_others_are_tried_at_once() -> None:
    subnets = (
        Subnet(subnet_id=SUBNET, cidr=CIDR, free_address_count=0),
        Subnet(subnet_id=OTHER_SUBNET, cidr=CIDR, free_address_count=500),
    )
    observation = seen(usage(0, held=10), waiter_count=1, subnets=subnets, blocked_subnets=frozenset({SUBNET}))
    assert actions(observation) == [create(1, 10, OTHER_SUBNET)]
    assert actions(replace(observation, subnets=())) == []


def test_growth_is_exact_where_the_subnet_is_short() -> None:
    assert actions(seen(usage(0, held=6, free=4), short_subnets={SUBNET: 40})) == [assign(0, 1)]
    assert actions(seen(usage(0, held=10), waiter_count=5, short_subnets={SUBNET: 3})) == [assign(0, 3)]


def test_an_eni_is_not_made_for_its_primary_address_alone() -> None:
    subnets = (Subnet(subnet_id=SUBNET, cidr=CIDR, free_address_count=1),)
    assert actions(seen(usage(0, held=29), waiter_count=1, subnets=subnets)) == []


def test_several_new_enis_share_what_a_subnet_has() -> None:
    subnets = (Subnet(subnet_id=SUBNET, cidr=CIDR, free_address_count=40),)
    assert actions(seen(usage(0, held=29), waiter_count=70, subnets=subnets)) == [create(1, 29), create(2, 9)]


def test_nothing_grows_while_ec2_refuses_but_the_shortage_is_told() -> None:
    decided = plan(seen(usage(held=6, free=4), growth_held=True), IP_TARGETS)
    assert decided.actions == ()
    assert decided.short_count == 1
    assert "refused" in decided.reason


def test_an_eni_whose_link_never_comes_does_not_count_for_ever() -> None:
    young = usage(1, free=10, ready=False, since_s=OLD_S - READY_GRACE_S + 1)
    assert actions(seen(usage(0, held=20), young, waiter_count=5)) == []
    broken = replace(young, since_s=OLD_S - READY_GRACE_S)
    assert actions(seen(usage(0, held=20), broken, waiter_count=5)) == [assign(0, 9), create(2, 10)]


def test_a_prefix_takes_a_slot() -> None:
    assert actions(seen(usage(0, held=14, prefixes=(16,) * 14)))[0] == assign(0, 1)
