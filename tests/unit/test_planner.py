from __future__ import annotations

import csv
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from agent.ipam.account import READY_GRACE_S
from agent.ipam.growing import growth_quantum
from agent.ipam.model import BlockKind, BlockUsage, EniUsage, InstanceLimits, Subnet, SubnetId
from agent.ipam.plan import (
    AssignBlocks,
    CreateEni,
    Observation,
    PoolPolicy,
    ReleaseEni,
    UnassignBlocks,
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
    ip,
    prefix,
    single,
)
from tests.pool_simulation import SimulatedNode

IP_TARGETS = PoolPolicy(warm_ip_target=5, minimum_ip_target=10)
OLD_S = 10_000.0


def usage(
    device: int = 0,
    *,
    held: int = 0,
    free: int = 0,
    cooling: int = 0,
    prefixes: tuple[int, ...] = (),
    **changes: object,
) -> EniUsage:
    """An ENI with so many secondary addresses, and prefixes with so many of their addresses held."""
    start = 100 * (device + 1)
    singles = [single(ip(start + n)) for n in range(free + held + cooling)]
    slots = [
        BlockUsage(block=block, listed_count=1, busy_count=n >= free, free_count=n < free, changed_s=0.0)
        for n, block in enumerate(singles)
    ]
    slots += [
        BlockUsage(block=prefix(start + n), listed_count=16, busy_count=busy, free_count=16 - busy, changed_s=0.0)
        for n, busy in enumerate(prefixes)
    ]
    made = EniUsage(
        eni=an_eni(device),
        ready=True,
        leaving=False,
        since_s=0.0,
        held_count=held + sum(prefixes),
        cooling_count=cooling,
        quarantined_count=0,
        retiring_count=0,
        free=tuple(ip(start + n) for n in range(free))
        + tuple(address for n, busy in enumerate(prefixes) for address in prefix(start + n).addresses()[busy:]),
        blocks=tuple(slots),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def seen(*enis: EniUsage, limits: InstanceLimits = M5_4XLARGE, **changes: object) -> Observation:
    """Long quiet, with the present demand as the peak, unless `changes` say otherwise."""
    demand = sum(eni.busy_count for eni in enis)
    made = Observation(
        now_s=OLD_S,
        limits=limits,
        enis=enis,
        peak_demand_count=demand,
        peak_eni_demand_count=demand,
        quiet_s=OLD_S,
        watched_s=OLD_S,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def actions(observation: Observation, policy: PoolPolicy = IP_TARGETS) -> list[object]:
    """Without the reasons."""
    return [replace(action, reason="") for action in plan(observation, policy).actions]


def assign(device: int, count: int) -> AssignBlocks:
    return AssignBlocks(eni_id=eni_id(device), kind=BlockKind.IPV4_ADDRESS, count=count, reason="")


def unassign(device: int, *addresses: IPv4Address) -> UnassignBlocks:
    return UnassignBlocks(eni_id=eni_id(device), blocks=tuple(single(one) for one in addresses), reason="")


def create(device: int, count: int, subnet_id: SubnetId = SUBNET) -> CreateEni:
    return CreateEni(device=device, subnet_id=subnet_id, kind=BlockKind.IPV4_ADDRESS, count=count, reason="")


# ---- The settled states that the AWS plugin documents (docs/eni-and-ip-target.md)

_TYPES = {one.instance_type: one for one in (T3_SMALL, P3DN_24XLARGE)}


def settled_states() -> list[object]:
    """limits, policy, pods, ENIs, addresses, unused: the rows of tests/warm_targets.csv."""
    lines = (Path(__file__).parent.parent / "warm_targets.csv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return [
        pytest.param(
            _TYPES[row["instance_type"]],
            PoolPolicy(
                warm_eni_target=_target(row["warm_eni"], unset=1),
                warm_ip_target=_target(row["warm_ip"]),
                minimum_ip_target=_target(row["minimum_ip"]),
            ),
            *(int(row[name]) for name in ("pods", "enis", "secondary_ips", "unused")),
            id=f"{row['instance_type']}-{row['warm_eni']}-{row['warm_ip']}-{row['minimum_ip']}-{row['pods']}",
        )
        for row in rows
    ]


def _target(text: str, *, unset: int = 0) -> int:
    return unset if text == "-" else int(text)


@pytest.mark.parametrize("pace", ["burst", "one by one"])
@pytest.mark.parametrize(("limits", "policy", "pods", "enis", "total", "unused"), settled_states())
def test_the_documented_settled_states_hold(
    limits: InstanceLimits, policy: PoolPolicy, pods: int, enis: int, total: int, unused: int, pace: str
) -> None:
    node = SimulatedNode(limits, policy)
    node.turn_until_still()
    if pace == "burst":
        node.start_pods(pods)
    for _ in range(pods if pace == "one by one" else 0):
        node.start_pods(1)
        node.turn_until_still()
        node.now_s += 10.0
    node.settle()
    assert (len(node.running), len(node.enis), node.total_count, node.free_count) == (pods, enis, total, unused)


@pytest.mark.parametrize(("limits", "policy", "pods", "enis", "total", "unused"), settled_states())
def test_they_hold_after_more_pods_have_come_and_gone(
    limits: InstanceLimits, policy: PoolPolicy, pods: int, enis: int, total: int, unused: int
) -> None:
    node = SimulatedNode(limits, policy)
    node.start_pods(limits.slots * limits.eni_count)
    node.turn_until_still()
    while len(node.running) > pods:
        node.stop_pod(len(node.running) - 1)
    node.settle()
    assert (len(node.running), len(node.enis), node.total_count, node.free_count) == (pods, enis, total, unused)


# ---- Growing


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


# ---- Shrinking


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


# ---- Its cost


def test_fifty_pods_one_by_one_cost_eight_calls_and_the_trim_two() -> None:
    node = SimulatedNode(M5_4XLARGE, IP_TARGETS)
    node.turn_until_still()
    assert node.calls == {"assign": 1}
    node.calls.clear()
    for _ in range(50):
        node.start_pods(1)
        node.turn_until_still()
        node.now_s += 10.0
    assert not node.waiting
    assert node.calls.total() <= 7  # and one DescribeSubnets before the new ENI
    node.calls.clear()
    node.settle()
    assert node.calls.total() <= 2
    assert node.total_count == 55


@pytest.mark.parametrize(
    "policy", [PoolPolicy(warm_eni_target=1), IP_TARGETS, PoolPolicy(warm_ip_target=1), PoolPolicy(warm_eni_target=0)]
)
@pytest.mark.parametrize("limits", [M5_LARGE, M5_4XLARGE])
@pytest.mark.parametrize("steady", [0, 5, 29])
def test_a_job_every_five_minutes_costs_no_call_once_it_has_run(
    policy: PoolPolicy, limits: InstanceLimits, steady: int
) -> None:
    node = SimulatedNode(limits, policy)
    node.start_pods(min(steady, 2 * limits.slots))
    node.turn_until_still()
    for cycle in range(24):
        if cycle == 1:
            node.calls.clear()
        node.start_pods(1)
        node.turn_until_still()
        node.now_s += 60.0
        node.stop_pod(len(node.running) - 1)
        for _ in range(8):
            node.turn_until_still()
            node.now_s += 30.0
    assert node.calls.total() == 0


def test_no_settle_time_ends_long_before_the_next_look() -> None:
    surplus = seen(usage(0, free=14))
    for settle_s, recheck_s in ((600.0, 30.0), (10.0, 10.0), (0.0, 1.0)):
        policy = replace(IP_TARGETS, settle_addresses_s=settle_s, settle_enis_s=900.0)
        assert plan(surplus, policy).recheck_after_s == recheck_s
