"""The scenarios: which trace, on which instance type, under which targets, over how many seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from agent.ipam.plan import PoolPolicy
from bench import pool_traces as traces
from bench.pool_replay import Replay, capacity, replay_ours, replay_theirs
from bench.pool_traces import EventKind, Trace

ENI_TARGET = PoolPolicy(warm_eni_target=1)
IP_TARGETS = PoolPolicy(warm_ip_target=5, minimum_ip_target=10)
PREFIX_TARGET = PoolPolicy(prefix_delegation=True, warm_prefix_target=1)
PREFIX_IP_TARGETS = PoolPolicy(prefix_delegation=True, warm_ip_target=5, minimum_ip_target=10)
TARGETS = {
    "WARM_ENI 1": ENI_TARGET,
    "WARM_IP 5, MIN 10": IP_TARGETS,
    "PD, WARM_PREFIX 1": PREFIX_TARGET,
    "PD, WARM_IP 5, MIN 10": PREFIX_IP_TARGETS,
}

NOT_SUPPORTED = (
    "IPv6: start, and the wait for a trunk ENI",
    "security groups for pods: the wait for a trunk ENI",
    "pods with interfaces on several network cards: the idle second card",
    "the hourly sweep for leaked ENIs (left out of both sides; the AWS plugin pays one describe an hour)",
)
"""What the AWS plugin does and this agent does not yet: nothing is replayed for these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """trace: by seed. group: the table it belongs to."""

    group: str
    name: str
    instance_type: str
    targets: PoolPolicy
    trace: Callable[[int], Trace]
    seed_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Both pools on the same traces; the n-th replays of both have the same seed."""

    scenario: Scenario
    ours: tuple[Replay, ...]
    theirs: tuple[Replay, ...]


def replay(scenario: Scenario) -> Outcome:
    """Run a scenario on both sides, with every seed."""
    ours, theirs = [], []
    for seed in range(scenario.seed_count):
        trace = scenario.trace(seed)
        ours.append(replay_ours(trace, scenario.instance_type, scenario.targets, seed))
        theirs.append(replay_theirs(trace, scenario.instance_type, scenario.targets, seed))
    return Outcome(scenario=scenario, ours=tuple(ours), theirs=tuple(theirs))


def scenarios() -> Iterator[Scenario]:
    """Every scenario, in the order of the report."""
    yield from _scaling()
    yield from _custom()
    yield from _steady()
    yield from _trouble()
    for name, targets in TARGETS.items():
        yield Scenario(
            group="day",
            name=f"m5.4xlarge, {name}",
            instance_type="m5.4xlarge",
            targets=targets,
            trace=traces.day,
            seed_count=3,
        )


def _scaling() -> Iterator[Scenario]:
    for instance_type, count in (("m5.large", 27), ("m5.4xlarge", 50)):
        for name, targets in TARGETS.items():
            for gap_s, how in ((10.0, "one by one"), (0.0, "burst")):
                pod_count = 50 if targets.prefix_delegation else count
                yield Scenario(
                    group="scale",
                    name=f"{instance_type}, {name}, {how}",
                    instance_type=instance_type,
                    targets=targets,
                    trace=partial(_scale, pod_count, gap_s),
                    seed_count=20,
                )


def _custom() -> Iterator[Scenario]:
    for gap_s, how in ((10.0, "one by one"), (0.0, "burst")):
        yield Scenario(
            group="scale",
            name=f"m5.4xlarge, ENIConfig, WARM_IP 5, MIN 10, {how}",
            instance_type="m5.4xlarge",
            targets=PoolPolicy(custom_networking=True, warm_ip_target=5, minimum_ip_target=10),
            trace=partial(_scale, 50, gap_s),
            seed_count=20,
        )


def _scale(count: int, gap_s: float, seed: int) -> Trace:
    return traces.scale(count, gap_s, seed)


def _steady() -> Iterator[Scenario]:
    instance_type = "m5.4xlarge"
    for eni_count in (1, 2, 3, 8):
        # So many pods that WARM_ENI_TARGET=1 wants exactly this many ENIs.
        pod_count = max(0, (eni_count - 2) * capacity(instance_type, ENI_TARGET).slots + 1)
        yield Scenario(
            group="steady",
            name=f"{instance_type}, WARM_ENI 1, ENIs: {eni_count}",
            instance_type=instance_type,
            targets=ENI_TARGET,
            trace=_always(traces.steady(pod_count)),
            seed_count=3,
        )
    yield Scenario(
        group="steady",
        name=f"{instance_type}, PD, WARM_PREFIX 1, ENIs: 1",
        instance_type=instance_type,
        targets=PREFIX_TARGET,
        trace=_always(traces.steady(20)),
        seed_count=3,
    )


def _trouble() -> Iterator[Scenario]:
    full, throttled = EventKind.FILL_SUBNET, EventKind.THROTTLE_ASSIGN
    for group, name, instance_type, targets, trace in (
        ("cron", "WARM_ENI 1, a 60 s pod every 5 min", "m5.4xlarge", ENI_TARGET, traces.cron(0)),
        ("cron", "WARM_IP 5, MIN 10, 5 pods and that job", "m5.4xlarge", IP_TARGETS, traces.cron(5)),
        ("cron", "PD, WARM_PREFIX 1, a 60 s pod every 5 min", "m5.4xlarge", PREFIX_TARGET, traces.cron(0)),
        ("refused", "subnet full, every ENI attached", "m5.large", IP_TARGETS, traces.refused(full, 20, 7)),
        ("refused", "subnet full, ENIs to spare", "m5.4xlarge", IP_TARGETS, traces.refused(full, 20, 10)),
        (
            "refused",
            "PD, no whole /28 left, 40 more pods for two hours",
            "m5.large",
            PREFIX_TARGET,
            traces.fragmented(20, 40),
        ),
        ("refused", "AssignPrivateIpAddresses throttled", "m5.large", IP_TARGETS, traces.refused(throttled, 20, 7)),
    ):
        yield Scenario(
            group=group,
            name=name,
            instance_type=instance_type,
            targets=targets,
            trace=_always(trace),
            seed_count=3,
        )


def _always(trace: Trace) -> Callable[[int], Trace]:
    return lambda _seed: trace
