"""The planner in generated worlds. What EC2 or a pod would not stand for is an AssertionError of `SimulatedNode`."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ipam.account import needed_count
from agent.ipam.model import InstanceLimits
from agent.ipam.plan import AssignBlocks, CreateEni, EniSite, PoolPolicy
from tests.ipam_builders import SUBNET, eni_id
from tests.pool_simulation import SimulatedNode

LIMITS = st.builds(
    InstanceLimits,
    instance_type=st.just("generated"),
    eni_count=st.integers(1, 6),
    addresses_per_eni=st.integers(2, 31),
)
POLICIES = st.builds(
    PoolPolicy,
    prefix_delegation=st.booleans(),
    warm_prefix_target=st.integers(0, 3),
    warm_eni_target=st.integers(0, 3),
    warm_ip_target=st.just(0) | st.integers(0, 40),
    minimum_ip_target=st.just(0) | st.integers(0, 60),
    max_eni=st.none() | st.integers(1, 6),
    settle_addresses_s=st.sampled_from([0.0, 300.0, 600.0, 1_800.0]),
    settle_enis_s=st.sampled_from([0.0, 600.0, 900.0]),
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.integers(1, 60)),
        st.tuples(st.just("stop"), st.integers(1, 60)),
        st.tuples(st.just("wait"), st.sampled_from([1, 20, 45, 400, 1_000, 4_000])),
    ),
    max_size=14,
)


def is_tight(node: SimulatedNode, wanted: int) -> bool:
    """At the target: enough, and no block that could go back without falling below it."""
    surplus = node.total_count - wanted
    free = [usage.block for eni in node.ledger.enis() for usage in eni.blocks if usage.is_free]
    return surplus >= 0 and all(block.kind.address_count > surplus for block in free)


def live(node: SimulatedNode, events: list[tuple[str, int]]) -> None:
    node.turn_until_still()
    for kind, amount in events:
        match kind:
            case "start":
                node.start_pods(amount)
            case "stop":
                for _ in range(min(amount, len(node.running))):
                    node.stop_pod(amount % len(node.running))
            case _:
                node.now_s += amount
        node.turn_until_still()


@settings(max_examples=1500, deadline=None)
@given(limits=LIMITS, policy=POLICIES, events=EVENTS, foreign=st.integers(0, 2))
def test_every_world_reaches_a_fixpoint_within_the_limits(
    limits: InstanceLimits, policy: PoolPolicy, events: list[tuple[str, int]], foreign: int
) -> None:
    node = SimulatedNode(limits, policy, foreign_enis=min(foreign, limits.eni_count - 1))
    live(node, events)
    node.settle()
    size = policy.kind.address_count
    room = max(0, min(limits.eni_count, policy.max_eni or limits.eni_count) - len(node.enis)) * limits.slots
    capacity = (sum(eni.managed for eni in node.enis.values()) * limits.slots + room) * size
    wanted = needed_count(len(node.running) + len(node.waiting), limits, policy)
    if policy.counts_addresses:
        assert is_tight(node, min(wanted, capacity)), "settled, but not at the target"
    else:
        # Whole ENIs: one that a pod uses stays, however many of its addresses are free.
        assert node.total_count >= min(wanted, capacity)
        if node.total_count > min(wanted, capacity):
            assert all(usage.busy_count for usage in node.ledger.enis() if usage.serves_pods and usage.eni.device)
    assert not node.waiting or node.total_count == capacity, "pods wait although the instance could have more"


@settings(max_examples=1500, deadline=None)
@given(limits=LIMITS, policy=POLICIES, events=EVENTS)
def test_a_settled_pool_stays_still(limits: InstanceLimits, policy: PoolPolicy, events: list[tuple[str, int]]) -> None:
    node = SimulatedNode(limits, policy)
    live(node, events)
    node.settle()
    node.calls.clear()
    for _ in range(5):
        node.now_s += 1_000.0
        node.turn()
    assert node.calls.total() == 0


@settings(max_examples=1500, deadline=None)
@given(limits=LIMITS, policy=POLICIES, events=EVENTS, free=st.integers(0, 150))
def test_a_short_subnet_is_used_up_and_never_overdrawn(
    limits: InstanceLimits, policy: PoolPolicy, events: list[tuple[str, int]], free: int
) -> None:
    node = SimulatedNode(limits, policy, subnet_free_count=free)
    live(node, events)
    node.settle()
    can_fill = any(len(eni.blocks) < limits.slots for eni in node.enis.values())
    if node.waiting and can_fill:
        assert node.subnet_free_count == 0, "pods wait, an ENI has room, the subnet has addresses"
    wanted = needed_count(len(node.running) + len(node.waiting), limits, policy)
    assert not policy.counts_addresses or node.total_count < wanted or is_tight(node, wanted)


@settings(max_examples=1500, deadline=None)
@given(limits=LIMITS, policy=POLICIES.filter(lambda policy: policy.counts_addresses), pods=st.integers(0, 60))
def test_in_a_short_subnet_the_pool_is_exact_at_once(limits: InstanceLimits, policy: PoolPolicy, pods: int) -> None:
    node = SimulatedNode(limits, policy, subnet_free_count=99)
    for _ in range(pods):
        node.start_pods(1)
        node.turn_until_still()
        assert node.total_count <= needed_count(len(node.running) + len(node.waiting), limits, policy)


@settings(max_examples=1500, deadline=None)
@given(limits=LIMITS, policy=POLICIES, events=EVENTS, prefixes=st.integers(0, 30))
def test_where_prefixes_run_out_single_addresses_serve(
    limits: InstanceLimits, policy: PoolPolicy, events: list[tuple[str, int]], prefixes: int
) -> None:
    node = SimulatedNode(limits, replace(policy, prefix_delegation=True), subnet_prefix_count=prefixes)
    live(node, events)
    node.settle()
    can_fill = any(len(eni.blocks) < limits.slots for eni in node.enis.values())
    assert not (node.waiting and can_fill), "pods wait, and an ENI has room for single addresses"
    node.calls.clear()
    node.settle()
    assert node.calls.total() == 0, "a fragmented subnet keeps the pool busy"
    # Prefixes are back: so is the pool.
    node.subnet_prefix_count, node.is_fragmented = 2_000, False
    node.settle()
    wanted = needed_count(len(node.running) + len(node.waiting), limits, node.policy)
    assert not node.waiting or can_grow_no_more(node)
    assert all(usage.block.is_prefix for eni in node.ledger.enis() for usage in eni.blocks if usage.is_free)
    assert node.total_count >= wanted or can_grow_no_more(node)


def can_grow_no_more(node: SimulatedNode) -> bool:
    most = min(node.limits.eni_count, node.policy.max_eni or node.limits.eni_count)
    # A slot with a single address that a pod holds is lost to prefixes.
    return len(node.enis) >= most and all(len(eni.blocks) == node.limits.slots for eni in node.enis.values())


@settings(max_examples=1500, deadline=None)
@given(limits=LIMITS, policy=POLICIES, events=EVENTS, more=EVENTS)
def test_a_switch_of_the_kind_hurts_nobody_and_is_complete_when_the_pods_have_gone(
    limits: InstanceLimits, policy: PoolPolicy, events: list[tuple[str, int]], more: list[tuple[str, int]]
) -> None:
    node = SimulatedNode(limits, policy)
    live(node, events)
    held = {one.holder.pod: one.addresses for one in node.ledger.attachments()}
    node.switch(replace(policy, prefix_delegation=not policy.prefix_delegation))
    node.turn_until_still()
    assert held.items() <= {one.holder.pod: one.addresses for one in node.ledger.attachments()}.items()
    live(node, more)
    node.settle()
    assert all(
        usage.block.kind is node.policy.kind for eni in node.ledger.enis() for usage in eni.blocks if usage.is_free
    )
    while node.running:
        node.stop_pod(0)
    node.waiting.clear()
    node.settle()
    assert node.block_count(node.policy.kind) == sum(len(eni.blocks) for eni in node.enis.values())
    node.calls.clear()
    node.settle()
    assert node.calls.total() == 0


@settings(max_examples=1500, deadline=None)
@given(limits=LIMITS.filter(lambda limits: limits.eni_count > 1), policy=POLICIES, events=EVENTS)
def test_with_custom_networking_the_primary_serves_nobody(
    limits: InstanceLimits, policy: PoolPolicy, events: list[tuple[str, int]]
) -> None:
    node = SimulatedNode(limits, replace(policy, custom_networking=True, max_eni=None))
    node.start_pods(1)
    assert "ENIConfig" in node.turn().reason
    assert not node.running
    node.site = EniSite(subnet_id=SUBNET, security_groups=("sg-0000000000000000b",))
    live(node, events)
    node.start_pods(1)
    node.settle()
    assert node.running
    assert all(one.eni_id != eni_id(0) for one in node.ledger.attachments())
    assert not node.enis[eni_id(0)].blocks


@settings(max_examples=1500, deadline=None)
@given(limits=LIMITS, policy=POLICIES, events=EVENTS)
def test_a_cordoned_node_is_left_as_it_is(
    limits: InstanceLimits, policy: PoolPolicy, events: list[tuple[str, int]]
) -> None:
    node = SimulatedNode(limits, policy)
    node.start_pods(5)
    node.turn_until_still()
    node.is_schedulable = False
    node.calls.clear()
    live(node, events)
    node.settle()
    assert node.calls.total() == 0


@settings(max_examples=1500, deadline=None)
@given(
    limits=LIMITS,
    policy=POLICIES.filter(lambda policy: policy.settle_addresses_s >= 600.0 and policy.settle_enis_s >= 600.0),
    steady=st.integers(0, 40),
    job=st.integers(1, 20),
)
def test_a_job_that_comes_and_goes_costs_nothing_once_it_has_run(
    limits: InstanceLimits, policy: PoolPolicy, steady: int, job: int
) -> None:
    node = SimulatedNode(limits, policy)
    node.start_pods(steady)
    node.turn_until_still()
    node.settle()
    for cycle in range(6):
        if cycle == 2:
            node.calls.clear()
        before = len(node.running)
        node.start_pods(job)
        node.turn_until_still()
        node.now_s += 60.0
        while len(node.running) > before:
            node.stop_pod(len(node.running) - 1)
        node.waiting.clear()
        for _ in range(8):
            node.turn_until_still()
            node.now_s += 30.0
    assert node.calls.total() == 0


@settings(max_examples=1500, deadline=None)
@given(limits=LIMITS, policy=POLICIES, pods=st.integers(1, 150))
def test_one_plan_asks_for_the_whole_shortage(limits: InstanceLimits, policy: PoolPolicy, pods: int) -> None:
    node = SimulatedNode(limits, policy)
    node.turn_until_still()
    node.start_pods(pods)
    decided = node.turn()
    asked = sum(
        action.count * action.kind.address_count
        for action in decided.actions
        if isinstance(action, AssignBlocks | CreateEni)
    )
    assert asked >= decided.short_count
    assert not node.turn().actions
