"""The planner with prefixes, and on ENIs and nodes where it may not do everything."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.ipam.account import account
from agent.ipam.model import Block, BlockKind, InstanceLimits
from agent.ipam.plan import AssignBlocks, CreateEni, EniSite, PoolPolicy, ReleaseEni, UnassignBlocks
from agent.ipam.planner import plan
from tests.ipam_builders import M5_4XLARGE, M5_LARGE, OTHER_SUBNET, SUBNET, T3_SMALL, an_eni, eni_id, ip, prefix, single
from tests.planner_observations import OLD_S, actions, seen, usage
from tests.pool_simulation import SimulatedNode

PREFIX, SINGLE = BlockKind.IPV4_PREFIX, BlockKind.IPV4_ADDRESS
WARM_PREFIX = PoolPolicy(prefix_delegation=True)
IP_TARGETS = PoolPolicy(prefix_delegation=True, warm_ip_target=5, minimum_ip_target=10)
OLD_M4 = InstanceLimits(instance_type="m4.large", eni_count=2, addresses_per_eni=10, is_nitro=False)


def assign(device: int, count: int, kind: BlockKind = PREFIX) -> AssignBlocks:
    return AssignBlocks(eni_id=eni_id(device), kind=kind, count=count, reason="")


def unassign(device: int, *blocks: Block) -> UnassignBlocks:
    return UnassignBlocks(eni_id=eni_id(device), blocks=blocks, reason="")


# ---- Settled states, by the AWS plugin's rules: prefixes = ceil((pods + warm) / 16), at least ceil(minimum / 16)


@pytest.mark.parametrize(
    ("policy", "pods", "prefixes"),
    [
        (WARM_PREFIX, 0, 1),
        (WARM_PREFIX, 1, 2),
        (WARM_PREFIX, 16, 2),
        (WARM_PREFIX, 17, 3),
        (WARM_PREFIX, 50, 5),
        (replace(WARM_PREFIX, warm_prefix_target=0), 0, 1),
        (replace(WARM_PREFIX, warm_prefix_target=0), 15, 1),
        (replace(WARM_PREFIX, warm_prefix_target=0), 16, 2),
        (replace(WARM_PREFIX, warm_prefix_target=3), 5, 4),
        (IP_TARGETS, 0, 1),
        (IP_TARGETS, 11, 1),
        (IP_TARGETS, 12, 2),
        (IP_TARGETS, 50, 4),
        (replace(IP_TARGETS, warm_ip_target=0, minimum_ip_target=33), 5, 3),
        (replace(IP_TARGETS, warm_ip_target=17), 16, 3),
    ],
)
@pytest.mark.parametrize("limits", [M5_LARGE, M5_4XLARGE], ids=lambda limits: limits.instance_type)
def test_the_settled_states_of_prefix_mode(
    limits: InstanceLimits, policy: PoolPolicy, pods: int, prefixes: int
) -> None:
    node = SimulatedNode(limits, policy)
    node.start_pods(100)
    node.turn_until_still()
    while len(node.running) > pods:
        node.stop_pod(len(node.running) - 1)
    node.settle()
    assert (len(node.running), node.block_count(PREFIX), node.block_count(SINGLE)) == (pods, prefixes, 0)
    assert len(node.enis) == 1


# ---- Growing


def test_a_shortage_is_met_by_as_many_prefixes_as_it_takes() -> None:
    assert actions(seen(usage(0), waiter_count=40), IP_TARGETS) == [assign(0, 3)]
    assert actions(seen(usage(0, prefixes=(16,))), WARM_PREFIX) == [assign(0, 1)]


def test_fill_and_create_come_in_one_turn() -> None:
    full = seen(usage(0, prefixes=(16,) * 8), limits=M5_LARGE, waiter_count=40)
    assert actions(full, IP_TARGETS) == [
        assign(0, 1),
        CreateEni(device=1, subnet_id=SUBNET, kind=PREFIX, count=2, reason=""),
    ]


def test_a_type_that_is_not_on_nitro_holds_single_addresses() -> None:
    assert IP_TARGETS.on(M5_LARGE) is IP_TARGETS
    assert IP_TARGETS.on(OLD_M4).kind is SINGLE


def test_a_fragmented_subnet_gives_single_addresses_and_another_gives_prefixes() -> None:
    other = replace(usage(1), eni=an_eni(1, subnet_id=OTHER_SUBNET))
    broken = seen(usage(0, prefixes=(16,)), fragmented_subnets=frozenset({SUBNET}))
    assert actions(broken, IP_TARGETS) == [assign(0, 10, SINGLE)]
    assert actions(replace(broken, enis=(usage(0, prefixes=(16,) * 29), other)), IP_TARGETS) == [assign(1, 1)]


def test_in_a_scarce_subnet_prefixes_are_asked_for_one_at_a_time() -> None:
    scarce = seen(usage(0), waiter_count=40, scarce_subnets=frozenset({SUBNET}))
    assert actions(scarce, IP_TARGETS) == [assign(0, 1)]


def test_in_a_short_subnet_only_prefixes_that_are_needed_whole() -> None:
    short = seen(usage(0), waiter_count=5, short_subnets={SUBNET: 60})
    assert actions(short, IP_TARGETS) == [assign(0, 10, SINGLE)]
    assert actions(replace(short, waiter_count=30), IP_TARGETS)[0] == assign(0, 2)


def test_single_addresses_count_as_warm_only_while_there_are_no_prefixes() -> None:
    fallen_back = seen(usage(0, prefixes=(16,), free=5), fragmented_subnets=frozenset({SUBNET}))
    assert actions(fallen_back, IP_TARGETS) == []
    assert actions(replace(fallen_back, fragmented_subnets=frozenset()), IP_TARGETS) == [assign(0, 1)]


# ---- Switching the kind


def test_the_slots_for_prefixes_are_made_free_and_no_more() -> None:
    switched = seen(usage(0, held=4, free=25))
    decided = plan(switched, IP_TARGETS)
    assert [replace(action, reason="") for action in decided.actions] == [unassign(0, single(ip(100)))]
    assert "slots for prefixes" in decided.actions[0].reason


def test_what_is_free_of_the_other_kind_goes_when_it_has_been_idle() -> None:
    done = seen(usage(0, held=2, free=3, prefixes=(3,)))
    assert actions(done, IP_TARGETS) == [unassign(0, *(single(ip(100 + n)) for n in range(3)))]
    assert actions(replace(done, now_s=599.0), IP_TARGETS) == []
    back = seen(usage(0, held=5, free=7, prefixes=(0, 2)))
    assert actions(back, replace(IP_TARGETS, prefix_delegation=False)) == [unassign(0, prefix(100))]


# ---- Shrinking


def test_only_whole_prefixes_go_back() -> None:
    idle = seen(usage(0, prefixes=(3, 0, 0)))
    assert actions(idle, IP_TARGETS) == [unassign(0, prefix(101), prefix(102))]
    assert actions(seen(usage(0, prefixes=(3, 1, 1))), IP_TARGETS) == []


def test_what_demand_lets_go_bit_by_bit_goes_in_one_request() -> None:
    # The peak of ten minutes has gone down, that of fifteen has not yet.
    going = seen(usage(0, held=6, free=9), peak_eni_demand_count=10)
    policy = replace(IP_TARGETS, prefix_delegation=False)
    assert actions(going, policy) == []
    assert actions(replace(going, peak_eni_demand_count=9), policy) == [
        unassign(0, *(single(ip(100 + n)) for n in range(4)))
    ]


def test_an_idle_eni_goes_with_its_prefixes() -> None:
    idle = seen(usage(0, prefixes=(4,)), usage(1, prefixes=(0,)))
    assert actions(idle, IP_TARGETS) == [ReleaseEni(eni_id=eni_id(1), reason="")]


def test_an_efa_is_used_but_never_released() -> None:
    efa = replace(usage(1, free=10), eni=replace(an_eni(1), interface_type="efa"))
    decided = plan(seen(usage(0, free=10), efa), PoolPolicy(warm_ip_target=5, minimum_ip_target=10))
    assert not any(isinstance(action, ReleaseEni) for action in decided.actions)
    assert account(seen(efa), IP_TARGETS).enis == (efa,)


# ---- What the planner is told to leave alone


def test_room_for_a_trunk_is_kept_until_it_is_there() -> None:
    policy = PoolPolicy(warm_ip_target=5, minimum_ip_target=10, reserves_trunk=True)
    full = seen(usage(0, held=9), usage(1, held=9), limits=M5_LARGE, waiter_count=3)
    assert actions(full, policy) == []
    trunk = replace(usage(2), eni=replace(an_eni(2), interface_type="trunk", managed=False))
    assert account(replace(full, enis=(*full.enis, trunk)), policy).new_eni_count == 0
    assert account(full, replace(policy, reserves_trunk=False)).new_eni_count == 1
    no_trunk_here = replace(full, limits=replace(M5_LARGE, instance_type="t3.large"))
    assert account(no_trunk_here, policy).new_eni_count == 1


def test_an_excluded_eni_keeps_its_pods_and_gives_back_the_rest_at_once() -> None:
    excluded = replace(usage(1, held=2, free=3), eni=replace(an_eni(1), excluded=True))
    policy = PoolPolicy(warm_ip_target=5, minimum_ip_target=10)
    observation = seen(usage(0, free=10), excluded, now_s=1.0, watched_s=0.0, quiet_s=0.0)
    assert account(observation, policy).demand_count == 0
    assert actions(observation, policy) == [unassign(1, *(single(ip(200 + n)) for n in range(3)))]


def test_custom_networking_waits_for_its_eniconfig() -> None:
    policy = PoolPolicy(warm_ip_target=5, minimum_ip_target=10, custom_networking=True)
    waiting = seen(usage(0), waiter_count=1)
    decided = plan(waiting, policy)
    assert decided.actions == ()
    assert "no ENIConfig is known" in decided.reason
    site = EniSite(subnet_id=OTHER_SUBNET, security_groups=("sg-0000000000000000b",))
    assert actions(replace(waiting, site=site), policy) == [
        CreateEni(
            device=1,
            subnet_id=OTHER_SUBNET,
            kind=SINGLE,
            count=10,
            reason="",
            security_groups=("sg-0000000000000000b",),
        )
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [({"is_schedulable": False}, "cordoned"), ({"is_provisioning": False}, "provisioned by somebody else")],
)
def test_a_node_that_is_not_to_be_changed_is_not(change: dict[str, bool], said: str) -> None:
    for enis in ((usage(0),), (usage(0, free=29), usage(1, free=29))):
        decided = plan(replace(seen(*enis), **change), PoolPolicy(warm_ip_target=5, minimum_ip_target=10))  # type: ignore[arg-type]
        assert decided.actions == ()
        assert said in decided.reason


def test_beyond_what_the_kubelet_takes_nothing_is_warmed() -> None:
    policy = PoolPolicy(warm_eni_target=1)
    assert actions(seen(usage(0, held=20, free=9), limits=M5_4XLARGE, max_pods=29), policy) == []
    assert actions(seen(usage(0, held=20, free=9), limits=M5_4XLARGE), policy) != []
    assert actions(seen(usage(0, held=29), waiter_count=2, max_pods=29), policy) != [], "demand is served all the same"


def test_the_smallest_type_reaches_its_prefixes() -> None:
    node = SimulatedNode(T3_SMALL, WARM_PREFIX)
    node.start_pods(100)
    node.turn_until_still()
    assert len(node.running) == 100
    assert node.now_s < OLD_S
