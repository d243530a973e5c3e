"""Mutual exclusion per key, and nothing left behind."""

from __future__ import annotations

import asyncio

import pytest

from agent.runtime.keyed_lock import KeyedLock
from tests.virtual_time import run_virtual


def test_one_key_is_first_come_first_served_and_other_keys_do_not_meet() -> None:
    seen: list[tuple[str, float]] = []

    async def work(locks: KeyedLock[str], key: str, name: str) -> None:
        async with locks.hold(key):
            await asyncio.sleep(1.0)
            seen.append((name, asyncio.get_running_loop().time()))

    async def main() -> int:
        locks = KeyedLock[str]()
        async with asyncio.TaskGroup() as group:
            for key, name in (("a", "a1"), ("a", "a2"), ("b", "b1"), ("a", "a3")):
                group.create_task(work(locks, key, name))
        return len(locks)

    assert run_virtual(main()) == 0
    assert seen == [("a1", 1.0), ("b1", 1.0), ("a2", 2.0), ("a3", 3.0)]


def test_a_cancelled_waiter_and_a_failed_holder_leave_nothing() -> None:
    async def hold_twice(locks: KeyedLock[str]) -> None:
        async with locks.hold("a"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0), locks.hold("a"):
                    pytest.fail("held twice")
            assert len(locks) == 1
            raise ValueError("bug")

    async def main() -> None:
        locks = KeyedLock[str]()
        with pytest.raises(ValueError, match="bug"):
            await hold_twice(locks)
        assert len(locks) == 0
        async with locks.hold("a"):
            assert len(locks) == 1

    run_virtual(main())
