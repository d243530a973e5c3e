"""The bench's results as Markdown. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence

from bench.pool_replay import Replay
from bench.pool_scenarios import NOT_SUPPORTED, Outcome
from bench.pool_targets import ALL_SCHEDULED, Target

_ACTIONS = {
    "CreateNetworkInterface": "Create",
    "AttachNetworkInterface": "Attach",
    "ModifyNetworkInterfaceAttribute": "Modify",
    "DetachNetworkInterface": "Detach",
    "DeleteNetworkInterface": "Delete",
    "AssignPrivateIpAddresses": "Assign",
    "UnassignPrivateIpAddresses": "Unassign",
    "CreateTags": "CreateTags",
    "DescribeNetworkInterfaces": "Desc. ENIs",
    "DescribeSubnets": "Desc. subnets",
    "DescribeInstances": "Desc. instances",
}

_Column = tuple[str, Callable[[Replay], float]]


def report(outcomes: Sequence[Outcome], targets: Sequence[Target]) -> str:
    """Everything, in the order a reader needs it."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.scenario.group, []).append(outcome)
    return "\n".join(
        (
            *_section("Targets", _targets(targets)),
            *_section("Start, an idle hour, and a restart", _table(groups["steady"], _STEADY)),
            *_section("0 -> N -> 0 pods (N = 27 on m5.large, else 50)", _table(groups["scale"], _SCALING)),
            *_section("A job every five minutes", _table(groups["cron"], _REPEATING)),
            *_section("EC2 refuses for four hours", _table(groups["refused"], _REFUSING)),
            *_section("A day", _table(groups["day"], _LIVING)),
            *_section("Calls by action, whole scenario", _by_action(outcomes)),
            *_section("Not supported yet", (f"- {one}" for one in NOT_SUPPORTED)),
        )
    ).strip()


def _targets(targets: Iterable[Target]) -> Iterator[str]:
    yield "| target | at most | ours | theirs | | remark |"
    yield "|---|---|---|---|---|---|"
    for one in targets:
        verdict = "reached" if one.is_reached else "**not reached**"
        yield (
            f"| {one.what} | {one.limit:.3g} | {one.measured:.3g} | {_plain(one.theirs)} | {verdict} | {one.remark} |"
        )


def _calls(since: str, until: str) -> Callable[[Replay], float]:
    return lambda replay: replay.calls(since, until).total()


def _imds(since: str, until: str) -> Callable[[Replay], float]:
    return lambda replay: replay.samples[until].imds_read_count - replay.samples[since].imds_read_count


def _caused_calls(replay: Replay) -> float:
    calls = replay.calls("before", "end")
    return calls.total() - sum(calls[action] for action in ALL_SCHEDULED if replay.is_ours)


def _median_wait_s(replay: Replay) -> float:
    return statistics.median(replay.wait_s.values())


def _worst_wait_s(replay: Replay) -> float:
    return max(replay.wait_s.values())


def _mean_size(replay: Replay) -> float:
    return statistics.fmean(replay.sizes)


_WAITS: tuple[_Column, ...] = (
    ("median wait, s", _median_wait_s),
    ("worst wait, s", _worst_wait_s),
    ("failed ADDs", lambda replay: replay.end.failed_add_count),
)
_HELD_AT_END: tuple[_Column, ...] = (
    ("addresses at the end", lambda replay: replay.end.address_count),
    ("ENIs", lambda replay: replay.end.eni_count),
    ("addresses on average", _mean_size),
)
_STEADY: tuple[_Column, ...] = (
    ("calls before serving, new node", lambda replay: replay.serving.calls.total()),
    ("IMDS reads", lambda replay: replay.serving.imds_read_count),
    ("calls in an idle hour", _calls("before", "hour")),
    ("IMDS reads", _imds("before", "hour")),
    ("calls of a restart", _calls("hour", "end")),
    ("IMDS reads in its five minutes", _imds("hour", "end")),
)
_SCALING: tuple[_Column, ...] = (
    ("calls: start", lambda replay: replay.samples["before"].calls.total()),
    ("up", _calls("before", "grown")),
    ("settling", _calls("grown", "settled")),
    ("down", _calls("settled", "end")),
    *_WAITS,
    ("addresses at N", lambda replay: replay.samples["settled"].address_count),
    ("ENIs", lambda replay: replay.samples["settled"].eni_count),
    *_HELD_AT_END,
)
_REPEATING: tuple[_Column, ...] = (
    ("calls in the first hour", _calls("before", "hour")),
    ("per hour, later", lambda replay: replay.calls("hour", "busy").total() / 2),
    ("in the hour after the last", _calls("busy", "end")),
    *_WAITS,
    *_HELD_AT_END,
)
_REFUSING: tuple[_Column, ...] = (
    ("calls in the first hour", _calls("before", "hour")),
    ("per hour, later", lambda replay: replay.calls("hour", "end").total() / 3),
    *_WAITS,
    ("pods never served", lambda replay: replay.unserved_count),
    *_HELD_AT_END,
)
_LIVING: tuple[_Column, ...] = (
    ("calls", _calls("before", "end")),
    ("without scheduled describes", _caused_calls),
    ("IMDS reads", _imds("before", "end")),
    *_WAITS,
    *_HELD_AT_END,
    ("most addresses", lambda replay: max(replay.sizes)),
)


def _table(outcomes: Iterable[Outcome], columns: Sequence[_Column]) -> Iterator[str]:
    yield f"| scenario | pool | {' | '.join(name for name, _ in columns)} |"
    yield "|---" * (len(columns) + 2) + "|"
    for outcome in outcomes:
        for pool, replays in (("ours", outcome.ours), ("theirs", outcome.theirs)):
            name = outcome.scenario.name if pool == "ours" else ""
            cells = (_spread([measure(replay) for replay in replays]) for _, measure in columns)
            yield f"| {name} | {pool} | {' | '.join(cells)} |"


def _by_action(outcomes: Iterable[Outcome]) -> Iterator[str]:
    yield f"| scenario | pool | {' | '.join(_ACTIONS.values())} |"
    yield "|---" * (len(_ACTIONS) + 2) + "|"
    for outcome in outcomes:
        for pool, replays in (("ours", outcome.ours), ("theirs", outcome.theirs)):
            name = f"{outcome.scenario.group}: {outcome.scenario.name}" if pool == "ours" else ""
            counts = (statistics.median(replay.end.calls[action] for replay in replays) for action in _ACTIONS)
            yield f"| {name} | {pool} | {' | '.join(_plain(count) for count in counts)} |"


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield from ("", f"### {title}", "", *lines)


def _spread(values: Sequence[float]) -> str:
    """The median, and the range when there is one."""
    middle, least, most = _plain(statistics.median(values)), _plain(min(values)), _plain(max(values))
    return middle if least == most else f"{middle} ({least} to {most})"


def _plain(value: float) -> str:
    return f"{value:,.1f}".removesuffix(".0")
