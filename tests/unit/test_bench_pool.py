from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from ipaddress import IPv4Address

import pytest

from agent.ipam.model import AttachmentKey, Holder
from agent.ipam.plan import PoolPolicy
from agent.ports.datapath import PodWiring
from bench import pool_traces as traces
from bench.aws_pool_model import AwsCapacity, AwsNode, AwsTargets
from bench.pool_aws_delays import ASSUMED_DELAYS
from bench.pool_kernel import MemoryKernel
from bench.pool_node import EnokiNode
from bench.pool_replay import capacity, replay_ours, replay_theirs
from bench.pool_traces import EventKind, Trace
from bench.virtual_time import run_virtual
from sim.model.config import VpcConfig
from sim.model.ipv4 import Ipv4Wish, assign_ipv4, unassign_ipv4
from sim.model.vpc import Vpc

IP_TARGETS = PoolPolicy(warm_ip_target=5, minimum_ip_target=10)
DEFAULT, FIVE_TEN = AwsTargets(), AwsTargets(warm_ip=5, minimum_ip=10)
PREFIXES, PREFIXES_FIVE_TEN = AwsTargets(prefixes=True), AwsTargets(prefixes=True, warm_ip=5, minimum_ip=10)


# ---- The baseline keeps the plugin's figures


def aws_node(instance_type: str, targets: AwsTargets, seed: int = 0) -> AwsNode:
    limits = capacity(instance_type, PoolPolicy())
    if targets.prefixes:
        limits = AwsCapacity(slots=limits.slots, eni_count=limits.eni_count, pod_count=110)
    node = AwsNode(limits, targets, ASSUMED_DELAYS, seed=seed)
    node.spawn(node.boot())
    return node


@pytest.mark.parametrize(
    ("instance_type", "targets", "pod_count", "call_count", "address_count", "eni_count"),
    [
        ("m5.large", DEFAULT, 27, 12, 27, 3),
        ("m5.large", FIVE_TEN, 27, 22, 27, 3),
        ("m5.large", PREFIXES, 50, 4, 80, 1),
        ("m5.large", PREFIXES_FIVE_TEN, 50, 3, 64, 1),
        ("m5.4xlarge", DEFAULT, 50, 12, 87, 3),
        ("m5.4xlarge", FIVE_TEN, 50, 50, 55, 2),
        ("m5.4xlarge", PREFIXES, 50, 4, 80, 1),
        ("m5.4xlarge", PREFIXES_FIVE_TEN, 50, 3, 64, 1),
    ],
)
def test_baseline_one_pod_every_ten_seconds(
    instance_type: str, targets: AwsTargets, pod_count: int, call_count: int, address_count: int, eni_count: int
) -> None:
    node = aws_node(instance_type, targets)
    node.run(300)
    start = node.calls.total()
    for number in range(pod_count):
        node.at(300 + number * 10, partial(node.add_pod, str(number)))
    node.run(300 + pod_count * 10 + 600)
    assert (node.calls.total() - start, node.address_count, node.eni_count) == (call_count, address_count, eni_count)
    assert node.failed_add_count == 0
    assert set(node.wait_s.values()) == {0.0}


@pytest.mark.parametrize(
    ("targets", "steady_count", "calls_per_hour"),
    [(DEFAULT, 0, 144), (DEFAULT, 5, 0), (FIVE_TEN, 0, 0), (FIVE_TEN, 5, 24), (PREFIXES, 0, 24)],
)
def test_baseline_a_job_every_five_minutes(targets: AwsTargets, steady_count: int, calls_per_hour: int) -> None:
    node = aws_node("m5.4xlarge", targets)
    for number in range(steady_count):
        node.at(120 + number, partial(node.add_pod, f"steady-{number}"))
    node.run(900)
    before = node.calls.total()
    for number in range(12):
        node.at(900 + number * 300, partial(node.add_pod, f"job-{number}"))
        node.at(960 + number * 300, partial(node.delete_pod, f"job-{number}"))
    node.run(900 + 3600)
    assert node.calls.total() - before == calls_per_hour


@pytest.mark.parametrize(("eni_count", "read_count"), [(1, 840), (2, 1380), (3, 1920), (8, 4620)])
def test_baseline_an_idle_hour_and_a_restart(eni_count: int, read_count: int) -> None:
    node = aws_node("m5.4xlarge", DEFAULT)
    node.run(120)
    for number in range((eni_count - 2) * 29 + 1 if eni_count > 1 else 0):
        node.add_pod(str(number))
    node.run(900)
    calls, reads = node.calls.total(), node.imds_read_count
    node.run(900 + 3600)
    assert (node.eni_count, node.calls.total(), node.imds_read_count - reads) == (eni_count, calls, read_count)
    node.spawn(node.restart())
    node.run(900 + 3600 + 60)
    assert node.calls.total() - calls == 2 * eni_count + 1


def test_baseline_custom_networking_starts_with_an_eni() -> None:
    node = aws_node("m5.4xlarge", AwsTargets(warm_ip=5, minimum_ip=10, custom_networking=True))
    node.run(300)
    assert (node.calls.total(), node.eni_count, node.address_count) == (8, 2, 10)


def test_baseline_fifty_pods_at_once_wait_for_the_next_look_again_and_again() -> None:
    worst_s = []
    for seed in range(10):
        node = aws_node("m5.4xlarge", FIVE_TEN, seed)
        node.run(300)
        for number in range(50):
            node.add_pod(str(number))
        node.run(300 + 600)
        worst_s.append(max(node.wait_s.values()))
        assert len(node.wait_s) == 50
        assert 120 <= node.failed_add_count <= 145
    assert 60 <= min(worst_s) <= max(worst_s) <= 90


def test_baseline_an_idle_second_card_takes_and_gives_a_prefix_for_ever() -> None:
    node = AwsNode(AwsCapacity(slots=9, eni_count=3, pod_count=110), PREFIXES, ASSUMED_DELAYS, seed=0, card=1)
    node.have_primary()
    node.spawn(node.manage())
    node.run(600)
    before = Counter(node.calls)
    node.run(600 + 3600)
    assert (node.calls - before).total() == 233


# ---- The replay


def scaled() -> Trace:
    return traces.scale(20, 0.0, seed=7)


def test_a_replay_repeats_itself() -> None:
    assert scaled() == scaled()
    assert traces.day(3) == traces.day(3) != traces.day(4)
    for replay in (replay_ours, replay_theirs):
        first, second = (replay(scaled(), "m5.4xlarge", IP_TARGETS, 7) for _ in range(2))
        assert first == second


def test_the_agent_starts_serves_a_burst_and_gives_back_what_it_took() -> None:
    replay = replay_ours(scaled(), "m5.4xlarge", IP_TARGETS, 7)
    assert replay.samples["before"].calls == {
        "DescribeNetworkInterfaces": 1,
        "AssignPrivateIpAddresses": 1,
        "DescribeSubnets": 1,
    }
    assert 1 <= replay.calls("before", "grown")["AssignPrivateIpAddresses"] <= 3
    assert (len(replay.wait_s), replay.unserved_count, replay.end.failed_add_count) == (20, 0, 0)
    waits_s = sorted(replay.wait_s.values())
    # Ten addresses were there, each further one took at least one request of half a second.
    assert waits_s[:10] == [0.0] * 10
    assert 0.5 <= waits_s[10] <= waits_s[-1] <= 1.5
    assert max(replay.sizes) >= 25
    assert (replay.end.address_count, replay.end.eni_count) == (10, 1)


def test_a_restart_describes_once_and_keeps_what_pods_hold() -> None:
    replay = replay_ours(traces.steady(40), "m5.4xlarge", PoolPolicy(), 0)
    assert replay.samples["hour"].eni_count == 3
    assert replay.calls("hour", "end") == {"DescribeNetworkInterfaces": 1}
    assert replay.end.address_count == replay.samples["hour"].address_count


def test_with_custom_networking_pods_get_addresses_of_the_eniconfigs_subnet() -> None:
    policy = PoolPolicy(custom_networking=True, warm_ip_target=5, minimum_ip_target=10)
    replay = replay_ours(traces.scale(5, 0.0, seed=1), "m5.4xlarge", policy, 1)
    assert replay.samples["before"].calls.total() == 5
    assert (replay.unserved_count, replay.end.eni_count, replay.end.address_count) == (0, 2, 10)


def test_a_subnet_without_a_whole_prefix_serves_ours_and_not_theirs() -> None:
    trace, policy = traces.fragmented(20, 40), PoolPolicy(prefix_delegation=True)
    ours, theirs = (replay(trace, "m5.large", policy, 0) for replay in (replay_ours, replay_theirs))
    assert (ours.unserved_count, ours.end.failed_add_count) == (0, 0)
    assert theirs.unserved_count > 0
    assert ours.end.address_count <= theirs.end.address_count


def test_pods_that_a_full_subnet_cannot_serve_are_counted() -> None:
    trace = traces.refused(EventKind.FILL_SUBNET, 20, 7)
    ours, theirs = (replay(trace, "m5.large", IP_TARGETS, 0) for replay in (replay_ours, replay_theirs))
    assert (ours.unserved_count, theirs.unserved_count) == (2, 2)
    assert 0 < ours.end.failed_add_count < theirs.end.failed_add_count
    assert ours.calls("before", "hour").total() < theirs.calls("before", "hour").total()


def test_the_calls_are_the_adapters_own_count() -> None:
    async def calls() -> tuple[Counter[str], Counter[tuple[str, str]]]:
        async with asyncio.TaskGroup() as group:
            node = EnokiNode("m5.large", IP_TARGETS, seed=0, group=group)
            await node.boot()
            await asyncio.sleep(60.0)
            cloud = node.cloud
            await node.close()
            return node.client.calls, cloud.calls

    wire, adapter = run_virtual(calls())
    assert wire.total() == 6
    assert {(action, "ok"): count for action, count in wire.items()} == adapter


@pytest.mark.parametrize("seed", [0, 1])
def test_in_a_day_every_pod_comes_once_and_goes_after_it_came(seed: int) -> None:
    came: dict[str, float] = {}
    gone: set[str] = set()
    last_s = 0.0
    cordoned = False
    for event in traces.day(seed).events:
        assert event.at_s >= last_s
        last_s = event.at_s
        match event.kind:
            case EventKind.ADD:
                assert not cordoned
                assert event.pod not in came
                came[event.pod] = event.at_s
            case EventKind.DEL:
                assert came[event.pod] <= event.at_s
                assert event.pod not in gone
                gone.add(event.pod)
            case _:
                cordoned = event.kind is EventKind.CORDON
    assert len(came) > 1000


# ---- The kernel in memory notices what must not happen


def wiring(pod: str, address: IPv4Address) -> PodWiring:
    holder = Holder(key=AttachmentKey(container_id=pod, ifname="eth0"), namespace="bench", pod=pod)
    return PodWiring(holder=holder, netns="/run/netns/x", addresses=(address,), table_id=254, mtu=9001)


def test_the_kernel_refuses_what_would_hurt_a_pod() -> None:
    now_s = 100.0
    vpc = Vpc(VpcConfig(seed=1))
    instance = vpc.run_instance("m5.large", next(iter(vpc.state.subnets)), now_s=0.0)
    kernel = MemoryKernel(vpc, instance.instance_id, clock=lambda: now_s)
    eni_id = vpc.state.enis_of(instance.instance_id)[0].eni_id
    (address,) = vpc.apply(
        lambda state, rules: assign_ipv4(state, rules, eni_id, Ipv4Wish(count=1)), now_s=now_s
    ).addresses
    first = wiring("first", address)

    async def use() -> None:
        with pytest.raises(AssertionError, match="which pods use"):
            await kernel.wire(wiring("stranger", IPv4Address("10.0.0.200")))
        await kernel.unwire(wiring("stranger", address).holder.key, (), 0.0)
        await kernel.wire(first)
        with pytest.raises(AssertionError, match="two pods"):
            await kernel.wire(wiring("second", address))
        await kernel.unwire(first.holder.key, first.addresses, 30.0)

    run_virtual(use())
    with pytest.raises(AssertionError, match="used a moment ago"):
        vpc.apply(lambda state, _: unassign_ipv4(state, eni_id, (address,), ()), now_s=now_s)
