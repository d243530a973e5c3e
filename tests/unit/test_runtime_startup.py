"""The start in stages: order, retries, and what it says meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from agent.errors import Cause, CloudDenied, CloudFailed
from agent.runtime.reconciler import Backoff
from agent.runtime.startup import LONGEST_HINT_S, StageState, Startup
from tests.virtual_time import run_virtual

BACKOFF = Backoff(first_s=1.0, max_s=4.0, jitter=0.0)


def failing(times: int, error: CloudFailed, at_s: list[float]) -> Callable[[], Awaitable[None]]:
    async def stage() -> None:
        at_s.append(asyncio.get_running_loop().time())
        if len(at_s) <= times:
            raise error

    return stage


def started(times: int, error: CloudFailed) -> list[float]:
    """When the only stage was tried, in seconds."""
    at_s: list[float] = []
    run_virtual(Startup({"only": failing(times, error, at_s)}, backoff=BACKOFF).run())
    return at_s


def test_stages_run_in_order_and_then_it_is_ready() -> None:
    seen: list[str] = []

    async def stage(name: str) -> None:
        seen.append(name)

    async def main() -> Startup:
        startup = Startup({name: lambda name=name: stage(name) for name in ("a", "b", "c")})  # type: ignore[misc]
        assert startup.waits_for() == "stage a is pending"
        await startup.run()
        return startup

    startup = run_virtual(main())
    assert seen == ["a", "b", "c"]
    assert startup.ready.is_set()
    assert startup.waits_for() == ""
    assert [one.state for one in startup.status()] == [StageState.DONE] * 3


def test_a_failing_stage_backs_off_and_says_why() -> None:
    async def main() -> None:
        error = CloudFailed(Cause.IMDS_UNAVAILABLE, "no answer")
        startup = Startup({"identity": failing(1, error, []), "kernel": failing(0, error, [])}, backoff=BACKOFF)
        running = asyncio.create_task(startup.run())
        await asyncio.sleep(0.5)
        first, second = startup.status()
        assert (first.state, first.reason) == (StageState.FAILED, "imds_unavailable: no answer")
        assert second.state is StageState.PENDING
        assert startup.waits_for() == "stage identity is failed: imds_unavailable: no answer"
        await running
        assert startup.status()[0].reason == ""

    run_virtual(main())


def test_the_backoff_doubles_up_to_its_bound() -> None:
    assert started(4, CloudFailed(Cause.EC2_UNAVAILABLE, "x")) == [0.0, 1.0, 3.0, 7.0, 11.0]


def test_a_hint_is_a_lower_bound_but_never_minutes() -> None:
    assert started(1, CloudFailed(Cause.EC2_THROTTLED, "x", retry_after_s=9.0)) == [0.0, 9.0]
    assert started(1, CloudDenied(Cause.IAM_DENIED, "x", retry_after_s=300.0)) == [0.0, LONGEST_HINT_S]


def test_a_bug_ends_the_start() -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_virtual(Startup({"broken": broken}).run())
