"""The last few thousand events, in memory.

Readers have no queue of their own: each remembers the id it has read up to and asks for what is newer. So a reader that
is slow, or gone, costs nothing; when it has fallen behind further than the journal reaches, it is told what it missed.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from agent.events.model import Event, Kind, Scalar

CAPACITY = 4096
"""Events kept. One takes less than 1 KiB, so that the journal stays under 4 MiB; it holds a thousand pods coming and
going."""
IDS_PER_SECOND = 1_000_000
"""The first id is the wall clock's second times this: ids grow over restarts without anything being written down, and
stay below 2^53, which JSON readers take for exact."""
BATCH = 256
"""The most events handed out at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Events in order. missed: some after the asked id are not known any more (or were another agent's)."""

    events: tuple[Event, ...]
    missed: bool


class Journal:
    """One event loop. now: wall clock with a time zone. request_id: the one bound to the current task, or empty."""

    def __init__(
        self,
        *,
        request_id: Callable[[], str],
        now: Callable[[], datetime] = lambda: datetime.now(tz=UTC),
        capacity: int = CAPACITY,
    ) -> None:
        self._now = now
        self._request_id = request_id
        self._events: deque[Event] = deque(maxlen=capacity)
        self._first_id = int(now().timestamp()) * IDS_PER_SECOND
        self._next_id = self._first_id
        self._changed = asyncio.Event()
        self._listeners: list[Callable[[Event], None]] = []

    @property
    def newest_id(self) -> int:
        """The id of the last event; a reader that starts here sees only what is new."""
        return self._next_id - 1

    def publish(self, kind: Kind, /, **fields: Scalar) -> None:
        """Enter an event and wake who waits for one. Implements `model.Publish`."""
        event = Event(id=self._next_id, at=self._now(), kind=kind, request_id=self._request_id(), fields=fields)
        self._next_id += 1
        self._events.append(event)
        for listener in self._listeners:
            listener(event)
        self._changed.set()
        self._changed = asyncio.Event()

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Have `listener` called with every event from now on. It must be quick and must not fail."""
        self._listeners.append(listener)

    def events(self) -> tuple[Event, ...]:
        """All that are kept, oldest first."""
        return tuple(self._events)

    def after(self, last_id: int) -> Batch:
        """What came after `last_id`, at most `BATCH` of it; 0 is before everything. O(events skipped).

        An id that is still to come is another agent's, before the clock was set back: everything comes after it.
        """
        if last_id > self.newest_id:
            return Batch(events=tuple(islice(self._events, BATCH)), missed=bool(self._events))
        oldest_id = self._next_id - len(self._events)
        skip = max(0, last_id + 1 - oldest_id)
        events = tuple(islice(self._events, skip, skip + BATCH))
        return Batch(events=events, missed=0 < last_id < oldest_id - 1)

    async def next(self, last_id: int) -> Batch:
        """As `after`, but waits until there is something. Cancel: at any time."""
        while not (batch := self.after(last_id)).events:
            await self._changed.wait()
        return batch
