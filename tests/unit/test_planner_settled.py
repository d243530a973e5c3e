"""Where the pool comes to rest, and what its way there costs."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from agent.ipam.model import InstanceLimits
from agent.ipam.plan import (
    PoolPolicy,
)
from agent.ipam.planner import plan
from tests.ipam_builders import (
    M5_4XLARGE,
    M5_LARGE,
    P3DN_24XLARGE,
    T3_SMALL,
)
from tests.planner_observations import IP_TARGETS, seen, usage
from tests.pool_simulation import SimulatedNode

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
