"""The loop's timing, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

import pytest

from agent.errors import Cause, CloudThrottled
from agent.runtime.reconciler import Backoff, Reconciler
from tests.virtual_time import run_virtual

BACKOFF = Backoff(first_s=1.0, max_s=8.0, jitter=0.0)
Step = Callable[[], Coroutine[None, None, float]]


class Turns:
    """A step that follows a script and notes when it ran. After the script it rests for ever."""

    def __init__(self, *script: float | Exception | Step) -> None:
        self.script = list(script)
        self.began_s: list[float] = []

    async def __call__(self) -> float:
        self.began_s.append(asyncio.get_running_loop().time())
        item = self.script.pop(0) if self.script else float("inf")
        if isinstance(item, Exception):
            raise item
        return item if isinstance(item, float | int) else await item()


def throttled(retry_after_s: float | None = None) -> CloudThrottled:
    return CloudThrottled(Cause.EC2_THROTTLED, "slow down", retry_after_s=retry_after_s)


async def run_for(loop: Reconciler, duration_s: float, *wakes_s: float) -> None:
    """Let `loop` run, wake it at the given times, and cancel it at the end."""
    task = asyncio.create_task(loop.run())
    for wake_s in wakes_s:
        asyncio.get_running_loop().call_at(wake_s, loop.wake)
    await asyncio.sleep(duration_s)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_it_turns_when_it_said_it_would() -> None:
    turns = Turns(5.0, 2.0)
    run_virtual(run_for(Reconciler("x", turns, timeout_s=1.0), 100.0))
    assert turns.began_s == [0.0, 5.0, 7.0]


def test_a_wake_brings_the_next_turn_forward() -> None:
    turns = Turns(50.0, 50.0)
    run_virtual(run_for(Reconciler("x", turns, timeout_s=1.0), 20.0, 3.0))
    assert turns.began_s == [0.0, 3.0]


def test_wakes_during_a_turn_are_one_more_turn_at_once() -> None:
    async def slow() -> float:
        await asyncio.sleep(10.0)
        return 1000.0

    turns = Turns(slow)
    run_virtual(run_for(Reconciler("x", turns, timeout_s=60.0), 100.0, 1.0, 2.0, 3.0))
    assert turns.began_s == [0.0, 10.0]


def test_failures_back_off_and_a_wake_does_not_cut_that_short() -> None:
    turns = Turns(*(throttled() for _ in range(6)))
    wakes_s = [0.1 * tick for tick in range(1, 300)]
    run_virtual(run_for(Reconciler("x", turns, timeout_s=1.0, backoff=BACKOFF), 31.5, *wakes_s))
    assert turns.began_s[:7] == pytest.approx([0.0, 1.0, 3.0, 7.0, 15.0, 23.0, 31.0])


def test_the_errors_own_hint_wins_when_it_is_longer() -> None:
    turns = Turns(throttled(5.0), throttled(0.5))
    run_virtual(run_for(Reconciler("x", turns, timeout_s=1.0, backoff=BACKOFF), 30.0))
    assert turns.began_s == [0.0, 5.0, 7.0]


def test_a_good_turn_resets_the_backoff() -> None:
    turns = Turns(throttled(), throttled(), 1.0, throttled())
    run_virtual(run_for(Reconciler("x", turns, timeout_s=1.0, backoff=BACKOFF), 30.0))
    assert turns.began_s == [0.0, 1.0, 3.0, 4.0, 5.0]


def test_jitter_only_lengthens() -> None:
    backoff = Backoff(first_s=1.0, max_s=60.0, jitter=0.25)
    assert [backoff.delay_s(n, draw=0.0) for n in (1, 2, 7, 1000)] == [1.0, 2.0, 60.0, 60.0]
    assert backoff.delay_s(2, draw=0.5) == 2.25


def test_a_turn_that_does_not_end_is_cancelled_and_backs_off() -> None:
    cancelled_at_s: list[float] = []

    async def hang() -> float:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled_at_s.append(asyncio.get_running_loop().time())
        return 0.0

    turns = Turns(hang)
    loop = Reconciler("x", turns, timeout_s=4.0, backoff=BACKOFF)

    async def main() -> None:
        task = asyncio.create_task(loop.run())
        await asyncio.sleep(4.5)
        assert (loop.failure_count, loop.last_error) == (1, "no end of the turn after 4 s")
        assert loop.seconds_since_good_turn() == 4.5
        await asyncio.sleep(1.0)
        assert (loop.failure_count, loop.last_error) == (0, "")
        assert loop.seconds_since_good_turn() == 0.5
        task.cancel()

    run_virtual(main())
    assert cancelled_at_s == [4.0]
    assert turns.began_s == [0.0, 5.0]


@pytest.mark.parametrize("bug", [ValueError("bug"), TimeoutError("not ours")])
def test_a_bug_ends_the_loop(bug: Exception) -> None:
    loop = Reconciler("x", Turns(1.0, bug), timeout_s=1.0)
    with pytest.raises(type(bug), match=str(bug)):
        run_virtual(loop.run())


def test_a_step_that_never_waits_lets_others_run() -> None:
    async def main() -> int:
        turns = Turns(*[0.0] * 10_000)
        loop = Reconciler("x", turns, timeout_s=1.0)
        task = asyncio.create_task(loop.run())
        for _ in range(50):
            loop.wake()
            await asyncio.sleep(0)
        task.cancel()
        return len(turns.began_s)

    assert 0 < run_virtual(main()) <= 60


def test_transitions_are_logged_and_ticks_are_not(caplog: pytest.LogCaptureFixture) -> None:
    turns = Turns(throttled(), throttled(), throttled(), 1.0, 1.0, 1.0)
    with caplog.at_level(logging.INFO):
        run_virtual(run_for(Reconciler("x", turns, timeout_s=1.0, backoff=BACKOFF), 30.0))
    assert [record.getMessage() for record in caplog.records] == ["loop_degraded", "loop_recovered"]
