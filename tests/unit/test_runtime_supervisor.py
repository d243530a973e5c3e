"""Start, failure and staged stop of long-lived tasks, in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

import pytest

from agent.runtime.supervisor import UnexpectedExit, supervise
from tests.virtual_time import run_virtual

Run = Callable[[], Coroutine[None, None, None]]


def task(name: str, seen: list[str], *, cleanup_s: float = 0.0) -> Run:
    async def run() -> None:
        seen.append(f"+{name}")
        try:
            await asyncio.sleep(1_000_000.0)
        finally:
            await asyncio.sleep(cleanup_s)
            seen.append(f"-{name}")

    return run


async def stop_after(delay_s: float, stop: asyncio.Event) -> None:
    await asyncio.sleep(delay_s)
    stop.set()


def test_the_last_stage_stops_first_and_completely() -> None:
    seen: list[str] = []

    async def main() -> None:
        stop = asyncio.Event()
        stopping = asyncio.create_task(stop_after(1.0, stop))
        await supervise(
            {"kernel": task("kernel", seen)},
            {"pool": task("pool", seen)},
            {"http": task("http", seen, cleanup_s=3.0)},
            stop=stop,
        )
        await stopping

    run_virtual(main())
    assert seen == ["+kernel", "+pool", "+http", "-http", "-pool", "-kernel"]


def test_a_failing_task_ends_all_and_is_reported() -> None:
    seen: list[str] = []

    async def fail() -> None:
        await asyncio.sleep(1.0)
        raise ValueError("bug")

    with pytest.raises(ExceptionGroup) as caught:
        run_virtual(supervise({"other": task("other", seen)}, {"broken": fail}, stop=asyncio.Event()))
    assert [str(error) for error in caught.value.exceptions] == ["bug"]
    assert seen == ["+other", "-other"]


def test_a_task_that_returns_ends_all() -> None:
    seen: list[str] = []

    async def leave() -> None:
        await asyncio.sleep(1.0)

    with pytest.raises(ExceptionGroup) as caught:
        run_virtual(supervise({"other": task("other", seen), "quitter": leave}, stop=asyncio.Event()))
    (error,) = caught.value.exceptions
    assert isinstance(error, UnexpectedExit)
    assert str(error) == "quitter"
    assert seen == ["+other", "-other"]


def test_a_task_that_returns_while_stopping_is_fine() -> None:
    async def polite() -> None:
        try:
            await asyncio.sleep(1_000_000.0)
        except asyncio.CancelledError:
            return

    async def main() -> None:
        stop = asyncio.Event()
        stop.set()
        await supervise({"polite": polite}, stop=stop)

    run_virtual(main())


def test_a_cleanup_that_fails_is_reported() -> None:
    async def clumsy() -> None:
        try:
            await asyncio.sleep(1_000_000.0)
        finally:
            raise ValueError("cleanup")

    async def main() -> None:
        stop = asyncio.Event()
        stopping = asyncio.create_task(stop_after(1.0, stop))
        try:
            await supervise({"clumsy": clumsy}, stop=stop)
        finally:
            await stopping

    with pytest.raises(ExceptionGroup) as caught:
        run_virtual(main())
    assert [str(error) for error in caught.value.exceptions] == ["cleanup"]


def test_a_stuck_stage_does_not_keep_the_others_from_stopping(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    async def main() -> None:
        stop = asyncio.Event()
        stopping = asyncio.create_task(stop_after(1.0, stop))
        await supervise(
            {"pool": task("pool", seen)}, {"http": task("http", seen, cleanup_s=60.0)}, stop=stop, stage_timeout_s=5.0
        )
        await stopping

    with caplog.at_level(logging.ERROR):
        run_virtual(main())
    assert seen == ["+pool", "+http", "-pool", "-http"]
    assert [record.getMessage() for record in caplog.records] == ["stage_stuck"]


def test_outer_cancellation_stops_all() -> None:
    seen: list[str] = []

    async def main() -> None:
        running = asyncio.create_task(supervise({"a": task("a", seen)}, {"b": task("b", seen)}, stop=asyncio.Event()))
        await asyncio.sleep(1.0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    run_virtual(main())
    assert sorted(seen) == ["+a", "+b", "-a", "-b"]
