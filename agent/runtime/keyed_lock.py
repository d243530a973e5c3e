"""One lock per key, made when needed and forgotten when nobody holds or wants it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class KeyedLock(Generic[K]):
    """Mutual exclusion per key; holders of different keys do not meet. First come, first served."""

    def __init__(self) -> None:
        self._entries: dict[K, _Entry] = {}

    def __len__(self) -> int:
        """Keys that somebody holds or waits for."""
        return len(self._entries)

    @asynccontextmanager
    async def hold(self, key: K) -> AsyncIterator[None]:
        """Hold `key` for the block. Wrap it in `asyncio.timeout` for a deadline.

        Cancel: while waiting, leaves nothing behind.
        """
        entry = self._entries.setdefault(key, _Entry())
        entry.user_count += 1
        try:
            async with entry.lock:
                yield
        finally:
            entry.user_count -= 1
            if entry.user_count == 0:
                del self._entries[key]


class _Entry:
    __slots__ = ("lock", "user_count")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.user_count = 0
