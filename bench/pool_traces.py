"""What happens to a node: the traces both pools are replayed with. Pure; a seed fixes a trace."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
START_S = 300.0
"""When the first pod comes; until then a node has started and filled its pool."""


class EventKind(StrEnum):
    """What can happen."""

    ADD = "add"
    DEL = "del"
    RESTART = "restart"
    CORDON = "cordon"
    UNCORDON = "uncordon"
    FILL_SUBNET = "fill_subnet"
    """Others take every address the subnet has left, and keep them."""
    FRAGMENT_SUBNET = "fragment_subnet"
    """Others take one address of every /28 that is free as a whole, and keep it."""
    THROTTLE_ASSIGN = "throttle_assign"
    """From now on EC2 refuses every AssignPrivateIpAddresses with RequestLimitExceeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """pod: of ADD and DEL; empty otherwise."""

    at_s: float
    kind: EventKind
    pod: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Events in the order of time, and when to look: at each of `marks_s`, before the events of the same moment.

    Every trace has the marks `before`, when the node has started and the events worth counting have not begun, and
    `end`, when nothing more comes and both pools have settled, if they can.
    """

    events: tuple[Event, ...]
    marks_s: Mapping[str, float]

    @property
    def end_s(self) -> float:
        return self.marks_s["end"]

    @property
    def pod_count(self) -> int:
        """Pods that ever come."""
        return sum(event.kind is EventKind.ADD for event in self.events)


def scale(count: int, gap_s: float, seed: int) -> Trace:
    """0 -> count -> 0 pods, `gap_s` between two; they go in random order.

    Marks: `before` the first pod; `grown`, five minutes after the last one came; `settled`, an hour after that; `end`.
    """
    grown_s = START_S + count * gap_s + START_S
    settled_s = grown_s + HOUR_S
    order = list(range(count))
    random.Random(seed).shuffle(order)
    builder = _Builder()
    for number in range(count):
        builder.add(START_S + number * gap_s, f"pod-{number}")
    for place, number in enumerate(order):
        builder.delete(settled_s + place * gap_s, f"pod-{number}")
    return builder.trace(before=START_S, grown=grown_s, settled=settled_s, end=settled_s + count * gap_s + HOUR_S)


def steady(count: int) -> Trace:
    """`count` pods come together two minutes after the start, and stay; at last the agent restarts.

    Marks: `before` an hour in which nothing happens; `hour`, after it; `end`, five minutes after the restart.
    """
    builder = _Builder()
    for number in range(count):
        builder.add(120.0, f"pod-{number}")
    restart_s = 900.0 + HOUR_S
    builder.happen(restart_s, EventKind.RESTART)
    return builder.trace(before=900.0, hour=restart_s, end=restart_s + 300.0)


def cron(steady_count: int, *, life_s: float = 60.0, period_s: float = 300.0) -> Trace:
    """Beside `steady_count` pods, one that lives `life_s` in every period, for three hours.

    Marks: `before` the first job; `hour`, an hour later; `busy`, after three hours; `end`.
    """
    builder = _Builder()
    begin_s = 900.0
    for number in range(steady_count):
        builder.add(120.0 + number, f"steady-{number}")
    for number in range(round(3 * HOUR_S / period_s)):
        builder.add(begin_s + number * period_s, f"job-{number}")
        builder.delete(begin_s + number * period_s + life_s, f"job-{number}")
    return builder.trace(before=begin_s, hour=begin_s + HOUR_S, busy=begin_s + 3 * HOUR_S, end=begin_s + 4 * HOUR_S)


def refused(kind: EventKind, first_count: int, more_count: int) -> Trace:
    """`first_count` pods run, then EC2 begins to refuse, then `more_count` pods come and want to stay.

    Marks: `before`, when EC2 begins to refuse; `hour`, an hour later; `end`, after four, with pods still waiting.
    """
    builder = _Builder()
    begin_s = 2 * HOUR_S
    for number in range(first_count):
        builder.add(START_S + number, f"pod-{number}")
    builder.happen(begin_s, kind)
    for number in range(more_count):
        builder.add(begin_s + 60 + number, f"late-{number}")
    return builder.trace(before=begin_s, hour=begin_s + HOUR_S, end=begin_s + 4 * HOUR_S)


def fragmented(first_count: int, more_count: int) -> Trace:
    """`first_count` pods run, then the subnet has no whole /28 left; `more_count` pods come, and go after two hours.

    Marks: `before` the subnet breaks; `hour`, an hour later; `end`, after four.
    """
    builder = _Builder()
    begin_s = 2 * HOUR_S
    for number in range(first_count):
        builder.add(START_S + number, f"pod-{number}")
    builder.happen(begin_s, EventKind.FRAGMENT_SUBNET)
    for number in range(more_count):
        builder.add(begin_s + 60 + number, f"late-{number}")
        builder.delete(begin_s + 60 + number + 2 * HOUR_S, f"late-{number}")
    return builder.trace(before=begin_s, hour=begin_s + HOUR_S, end=begin_s + 4 * HOUR_S)


def day(seed: int) -> Trace:
    """A working day of one node, from midnight: six DaemonSets, six deployments that follow the sun and are each rolled
    out twice, a job every five minutes, one every hour, a batch at night, and a drain at 15:00 with the pods back
    from 15:40 on.
    """
    draw = random.Random(seed)
    builder = _Builder()
    for number in range(6):
        builder.add(START_S + number, f"daemon-{number}")
    drained = (15 * HOUR_S, 15 * HOUR_S + 2400.0)
    builder.happen(drained[0], EventKind.CORDON)
    builder.happen(drained[1], EventKind.UNCORDON)
    for name in ("api", "web", "cart", "search", "mail", "stats"):
        _deployment(builder, name, peak_count=draw.randint(6, 14), drained=drained, draw=draw)
    for number in range(round((DAY_S - START_S) / 300.0)):
        builder.run(START_S + number * 300.0, 60.0, f"every5-{number}", drained)
    for hour in range(1, 24):
        for number in range(10):
            builder.run(hour * HOUR_S + draw.uniform(0, 20), draw.uniform(300, 900), f"hourly-{hour}-{number}", drained)
    for number in range(40):
        builder.run(2 * HOUR_S + draw.uniform(0, 5), draw.uniform(900, 1500), f"batch-{number}", drained)
    return builder.trace(before=START_S, end=DAY_S + HOUR_S)


def _deployment(
    builder: _Builder, name: str, *, peak_count: int, drained: tuple[float, float], draw: random.Random
) -> None:
    """Replicas between 1 at 03:00 and `peak_count` at 15:00, adjusted every five minutes; two rollouts by day."""
    rollouts = sorted(round(draw.uniform(9, 18) * 12) for _ in range(2))
    running: list[str] = []
    made_count = 0
    is_drained = False
    for turn in range(2, round(DAY_S / 300.0)):
        at_s = turn * 300.0 + draw.uniform(0, 30)
        if drained[0] <= at_s < drained[1]:
            if not is_drained:
                for pod in running:
                    builder.delete(drained[0] + draw.uniform(1, 60), pod)
                running, is_drained = [], True
            continue
        sun = 0.5 - 0.5 * math.cos((turn / 12 - 3) / 24 * 2 * math.pi)
        wanted = max(1, round(1 + (peak_count - 1) * sun + draw.gauss(0, 0.5)))
        while len(running) > wanted:
            builder.delete(at_s, running.pop(0))
        old = running[:] if turn in rollouts else []
        for place in range(wanted - len(running) + len(old)):
            made_count += 1
            running.append(f"{name}-{made_count}")
            builder.add(at_s + 2.0 * place, running[-1])
        for place, pod in enumerate(old):
            running.remove(pod)
            builder.delete(at_s + 15.0 + 10.0 * place, pod)


@dataclass(slots=True)
class _Builder:
    """Collects events in any order."""

    events: list[Event] = field(default_factory=list)

    def add(self, at_s: float, pod: str) -> None:
        self.events.append(Event(at_s=at_s, kind=EventKind.ADD, pod=pod))

    def delete(self, at_s: float, pod: str) -> None:
        self.events.append(Event(at_s=at_s, kind=EventKind.DEL, pod=pod))

    def run(self, at_s: float, life_s: float, pod: str, drained: tuple[float, float]) -> None:
        """A pod that ends by itself, or with the drain; none comes while the node is drained."""
        if drained[0] <= at_s < drained[1]:
            return
        end_s = at_s + life_s
        self.add(at_s, pod)
        self.delete(min(end_s, drained[0] + 30.0) if at_s < drained[0] else end_s, pod)

    def happen(self, at_s: float, kind: EventKind) -> None:
        self.events.append(Event(at_s=at_s, kind=kind))

    def trace(self, **marks_s: float) -> Trace:
        return Trace(events=tuple(sorted(self.events, key=lambda event: event.at_s)), marks_s=marks_s)
