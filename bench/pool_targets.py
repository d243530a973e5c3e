"""What the pool has to reach, and whether it does.

A describe of the node's ENIs comes every 15 minutes whatever happens, and with every fourth one of its subnets. They
count in the idle hour; where a row is about what pods cost, the describes of ENIs are left out, and for the job, whose
limit is 0, those of subnets too; the row says so ("scheduled").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from bench.pool_replay import Replay
from bench.pool_scenarios import Outcome
from sim.ec2.latency import REALISTIC_S
from sim.model.config import REALISTIC_TIMINGS

SCHEDULED = ("DescribeNetworkInterfaces",)
ALL_SCHEDULED = ("DescribeNetworkInterfaces", "DescribeSubnets")
_ADD_ENI = ("CreateNetworkInterface", "AttachNetworkInterface", "ModifyNetworkInterfaceAttribute")
_REMOVE_ENI = ("DetachNetworkInterface", "DeleteNetworkInterface")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One row. measured, theirs: the worst of all seeds. limit: at most so much."""

    what: str
    limit: float
    measured: float
    theirs: float
    remark: str = ""

    @property
    def is_reached(self) -> bool:
        # Sums of latencies in binary fractions: a microsecond more is not a miss.
        return self.measured <= self.limit + 1e-6


def check(outcomes: Sequence[Outcome]) -> tuple[Target, ...]:
    """Every target, in the order they were set."""
    by_name = {(one.scenario.group, one.scenario.name): one for one in outcomes}
    return (
        *_starts(outcomes, by_name["scale", "m5.large, WARM_IP 5, MIN 10, burst"]),
        *_enis(
            by_name["scale", "m5.4xlarge, WARM_ENI 1, one by one"],
            by_name["scale", "m5.4xlarge, WARM_IP 5, MIN 10, burst"],
        ),
        *_fifty(
            by_name["scale", "m5.4xlarge, WARM_IP 5, MIN 10, one by one"],
            by_name["scale", "m5.4xlarge, WARM_IP 5, MIN 10, burst"],
        ),
        *_job(by_name["cron", "WARM_ENI 1, a 60 s pod every 5 min"]),
        *_job(by_name["cron", "PD, WARM_PREFIX 1, a 60 s pod every 5 min"], "with prefixes: "),
        *_idle(one for one in outcomes if one.scenario.group == "steady"),
        *_exhausted(one for one in outcomes if one.scenario.name.startswith("subnet full")),
        *_never_worse(outcomes),
    )


def _worst(replays: Iterable[Replay], measure: Callable[[Replay], float]) -> float:
    return max(measure(one) for one in replays)


def _target(
    what: str, limit: float, outcomes: Iterable[Outcome], measure: Callable[[Replay], float], remark: str = ""
) -> Target:
    """The same measure on both sides."""
    chosen = tuple(outcomes)
    return Target(
        what=what,
        limit=limit,
        measured=max(_worst(one.ours, measure) for one in chosen),
        theirs=max(_worst(one.theirs, measure) for one in chosen),
        remark=remark,
    )


def _starts(outcomes: Sequence[Outcome], two_enis: Outcome) -> Iterator[Target]:
    def started(replay: Replay) -> float:
        return replay.samples["before"].calls.total()

    scaling = [one for one in outcomes if one.scenario.group == "scale"]
    one_eni = [one for one in scaling if one.ours[0].samples["before"].eni_count == 1]
    yield _target("first start", 4, one_eni, started, "whole first five minutes")
    yield _target("first start that needs a second ENI", 4 + 3, [two_enis], started, "m5.large, MINIMUM_IP_TARGET 10")
    steady = [one for one in outcomes if one.scenario.group == "steady"]
    yield _target("restart with 1, 2, 3 and 8 ENIs", 1, steady, lambda replay: replay.calls("hour", "end").total())


def _enis(three: Outcome, one: Outcome) -> Iterator[Target]:
    def added(replay: Replay, *other_actions: str) -> float:
        calls = replay.calls("before", "grown")
        return sum(calls[action] for action in (*_ADD_ENI, *other_actions)) / calls["CreateNetworkInterface"]

    def removed(replay: Replay, *other_actions: str) -> float:
        calls = replay.calls("settled", "end")
        return sum(calls[action] for action in (*_REMOVE_ENI, *other_actions)) / calls["DetachNetworkInterface"]

    theirs = _worst(three.theirs, lambda replay: added(replay, "DescribeSubnets", "DescribeInstances"))
    yield Target(what="ENI added", limit=3, measured=_worst(three.ours, added), theirs=theirs)
    yield Target(
        what="ENI added, the first of an hour",
        limit=3,
        measured=_worst(one.ours, lambda replay: added(replay, "DescribeSubnets")),
        theirs=theirs,
        remark="the subnets are described before it",
    )
    yield Target(
        what="ENI removed",
        limit=2,
        measured=_worst(three.ours, removed),
        theirs=_worst(three.theirs, lambda replay: removed(replay, "DescribeNetworkInterfaces")),
    )


def _fifty(one_by_one: Outcome, burst: Outcome) -> Iterator[Target]:
    what = "m5.4xlarge, 5/10, 0 -> 50 pods"
    yield _caused_target(f"{what} one by one", 8, one_by_one, "before", "grown")
    yield _caused_target(f"{what} one by one: the trim after settling", 2, one_by_one, "grown", "settled")
    attach_s = REALISTIC_S["AttachNetworkInterface"] + REALISTIC_TIMINGS.attach_s
    yield _target(
        f"{what} as a burst: worst wait, s",
        attach_s + REALISTIC_S["AssignPrivateIpAddresses"] + 1.0,
        [burst],
        _worst_wait_s,
        "attach + assign latency + 1 s",
    )


def _job(cron: Outcome, how: str = "") -> Iterator[Target]:
    what = "60 s job every five minutes, calls per hour"
    two_hours = _caused_target(what, 0, cron, "hour", "busy", scheduled=ALL_SCHEDULED)
    first = _caused_target("", 0, cron, "before", "hour", scheduled=ALL_SCHEDULED).measured
    yield replace(
        two_hours,
        measured=two_hours.measured / 2,
        theirs=two_hours.theirs / 2,
        remark=f"{how}once what its first pod asks for is there: {first:g} calls in the first hour",
    )


def _idle(steady: Iterable[Outcome]) -> Iterator[Target]:
    chosen = tuple(steady)

    def count(replay: Replay, *, is_read: bool) -> int:
        calls = replay.calls("before", "hour")
        return sum(calls[action] for action in calls if action.startswith("Describe") is is_read)

    def imds(replay: Replay) -> float:
        return replay.samples["hour"].imds_read_count - replay.samples["before"].imds_read_count

    yield _target("idle hour: EC2 reads", 6, chosen, lambda replay: count(replay, is_read=True), "the scheduled ones")
    yield _target("idle hour: EC2 writes", 0, chosen, lambda replay: count(replay, is_read=False))
    yield _target("idle hour: IMDS reads", 60, chosen, imds, "up to 8 ENIs")


def _exhausted(full: Iterable[Outcome]) -> Iterator[Target]:
    yield _target(
        "exhausted subnet, calls in the first hour",
        30,
        full,
        lambda replay: replay.calls("before", "hour").total(),
        "all calls, scheduled ones too",
    )


def _never_worse(outcomes: Sequence[Outcome]) -> Iterator[Target]:
    """In how many replays ours did worse than theirs with the same trace and seed."""
    pairs = [pair for one in outcomes for pair in zip(one.ours, one.theirs, strict=True)]
    measures: tuple[tuple[str, Callable[[Replay], float]], ...] = (
        ("more failed ADDs", lambda replay: replay.end.failed_add_count),
        ("more pods never served", lambda replay: replay.unserved_count),
        ("a longer worst wait", _worst_wait_s),
        ("more addresses at the end", lambda replay: replay.end.address_count),
        ("more ENIs at the end", lambda replay: replay.end.eni_count),
    )
    for what, measure in measures:
        worse = sum(measure(ours) > measure(theirs) for ours, theirs in pairs)
        better = sum(measure(ours) < measure(theirs) for ours, theirs in pairs)
        yield Target(
            what=f"replays with {what} than the other, of {len(pairs)}", limit=0, measured=worse, theirs=better
        )


def _caused_target(
    what: str, limit: float, outcome: Outcome, since: str, until: str, *, scheduled: Sequence[str] = SCHEDULED
) -> Target:
    """Calls between two marks; of ours, those that are not scheduled."""

    def regular(replay: Replay) -> int:
        calls = replay.calls(since, until)
        return sum(calls[action] for action in scheduled)

    def caused(replay: Replay) -> float:
        return replay.calls(since, until).total() - regular(replay)

    regular_count = max(regular(replay) for replay in outcome.ours)

    return Target(
        what=what,
        limit=limit,
        measured=_worst(outcome.ours, caused),
        theirs=_worst(outcome.theirs, lambda replay: replay.calls(since, until).total()),
        remark=f"scheduled describes in that time: {regular_count}" if regular_count else "",
    )


def _worst_wait_s(replay: Replay) -> float:
    return max(replay.wait_s.values(), default=0.0)
