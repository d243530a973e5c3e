"""Requests that wait for an address, first come, first served."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from agent.ipam.ledger import Ledger
from agent.ipam.model import Holder, Reservation


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waiter:
    """One request. `answer` is resolved at most once, by `Waiters.serve`."""

    holder: Holder
    request_id: str
    answer: asyncio.Future[Reservation] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def is_served(self) -> bool:
        return self.answer.done() and not self.answer.cancelled()


class Waiters:
    """The queue."""

    def __init__(self) -> None:
        self._queue: dict[Waiter, None] = {}

    def __len__(self) -> int:
        return len(self._queue)

    def request_ids(self) -> list[str]:
        return [waiter.request_id for waiter in self._queue]

    def holders(self) -> list[Holder]:
        return [waiter.holder for waiter in self._queue]

    def join(self, waiter: Waiter) -> None:
        """Go to the end of the queue."""
        self._queue[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """Give up. Nothing when it was served."""
        self._queue.pop(waiter, None)

    def serve(self, ledger: Ledger, now_s: float) -> None:
        """Hand out what the ledger has, in order.

        Nobody overtakes, but for one: who asks again for what it holds already needs no free address. It waits only
        while the ENI of that address is not set up.
        """
        for waiter in tuple(self._queue):
            if waiter.answer.done():
                continue  # its deadline has come, or its client has gone: it leaves the queue in a moment
            ledger.reserve(waiter.holder, now_s)
            reservation = ledger.reservation(waiter.holder.key)
            if reservation is not None:
                self.leave(waiter)
                waiter.answer.set_result(reservation)
