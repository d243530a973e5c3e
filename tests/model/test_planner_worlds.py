"""The planner in generated worlds. What EC2 or a pod would not stand for is an AssertionError of `SimulatedNode`."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.ipam.account import needed_count
from agent.ipam.model import InstanceLimits
from agent.ipam.plan import AssignBlocks, CreateEni, PoolPolicy
from tests.pool_simulation import SimulatedNode

LIMITS = st.builds(
    InstanceLimits,
    instance_type=st.just("generated"),
    eni_count=st.integers(1, 6),
    addresses_per_eni=st.integers(2, 31),
)
POLICIES = st.builds(
    PoolPolicy,
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


@settings(max_examples=400, deadline=None)
@given(limits=LIMITS, policy=POLICIES, events=EVENTS, foreign=st.integers(0, 2))
def test_every_world_reaches_a_fixpoint_within_the_limits(
    limits: InstanceLimits, policy: PoolPolicy, events: list[tuple[str, int]], foreign: int
) -> None:
    node = SimulatedNode(limits, policy, foreign_enis=min(foreign, limits.eni_count - 1))
    live(node, events)
    node.settle()
    room = max(0, min(limits.eni_count, policy.max_eni or limits.eni_count) - len(node.enis)) * limits.slots
    capacity = sum(eni.managed for eni in node.enis.values()) * limits.slots + room
    wanted = needed_count(len(node.running) + len(node.waiting), limits, policy)
    if policy.has_ip_targets:
        assert node.total_count == min(wanted, capacity), "settled, but not at the target"
    else:
        # Whole ENIs: one that a pod uses stays, however many of its addresses are free.
        assert node.total_count >= min(wanted, capacity)
        if node.total_count > min(wanted, capacity):
            assert all(usage.busy_count for usage in node.ledger.enis() if usage.serves_pods and usage.eni.device)
    assert not node.waiting or node.total_count == capacity, "pods wait although the instance could have more"


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=200, deadline=None)
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


@settings(max_examples=200, deadline=None)
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
