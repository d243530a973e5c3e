"""What a release leaves for later: its cooldown's place in the table, its connections, its link.

A DEL answers when the kernel says that the address is nobody's and cools (`released.py`). The rest needs doing before
the address is handed out again, or not at all, and grows with other people's work: a transaction of nftables walks
every chain in the namespace, the connection table is walked whole, a link takes 24 ms.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import IPv4Address
from typing import Final

from agent.datapath import conntrack, pods, released
from agent.datapath.threads import KernelThreads
from agent.errors import KernelFailed
from agent.ports.datapath import CoolingSeen

_log = logging.getLogger(__name__)

SWEEP_DELAY_S: Final = 5.0
"""From a release to the rest of it: by then the runtime has normally removed the namespace, and the link with it."""

UNHURRIED_S: Final = 3 * SWEEP_DELAY_S
"""A cooldown that leaves time to forget the connections later, and to try again."""

_AGAIN_S: Final = 1.0
"""After the kernel refused: the cooldown is a route meanwhile."""


class Releases:
    """One event loop. `run` must be running for anything to be done later.

    enter: puts addresses into the set `cooling`, each with its seconds; raises KernelFailed.
    """

    def __init__(self, threads: KernelThreads, enter: Callable[[Mapping[IPv4Address, float]], Awaitable[None]]) -> None:
        self._threads = threads
        self._enter = enter
        self._came = asyncio.Event()
        self._on_the_way: dict[IPv4Address, float] = {}
        self._woken = asyncio.Event()
        self._remembered: dict[IPv4Address, float] = {}

    def wake(self) -> None:
        """There may be links of an earlier agent's."""
        self._woken.set()

    async def released(self, what: str, addresses: Sequence[IPv4Address], until_s: float | None) -> None:
        """Nobody holds these any more. Their connections are forgotten now, when there may be no time later.

        until_s: the moment of uptime at which they may be handed out, as in table `released`; None for at once.
        Raises: KernelFailed.
        """
        self._woken.set()
        if until_s is not None and addresses:
            self._on_the_way.update(dict.fromkeys(addresses, until_s))
            self._came.set()
        if until_s is not None and until_s - released.uptime_s() >= UNHURRIED_S:
            self._remembered.update(dict.fromkeys(addresses, until_s))
        else:
            await self._forget(f"forgetting the connections of {what}", addresses)

    def found(self, cooling: Sequence[CoolingSeen], on_the_way: Mapping[IPv4Address, int]) -> None:
        """What an earlier agent released: it may have been killed before it did the rest."""
        now_s = released.uptime_s()
        self._remembered.update({each.address: now_s + each.remaining_s for each in cooling})
        self._woken.set()
        if on_the_way:
            self._on_the_way.update(on_the_way)
            self._came.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._whenever(self._came, self._settle, 0.0), name="cooldowns")
            group.create_task(self._whenever(self._woken, self._sweep, SWEEP_DELAY_S), name="released links")

    async def _whenever(self, woken: asyncio.Event, turn: Callable[[], Awaitable[None]], delay_s: float) -> None:
        degraded = False
        while True:
            await woken.wait()
            await asyncio.sleep(delay_s)
            woken.clear()
            try:
                await turn()
            except KernelFailed as exc:
                woken.set()
                if not degraded:
                    _log.warning("what a release leaves for later stays for now: %s", exc)
                degraded = True
                await asyncio.sleep(_AGAIN_S)
            else:
                degraded = False

    async def _settle(self) -> None:
        """Enter all that has been released by now in one transaction; then their routes have said what they had to."""
        batch, now_s = dict(self._on_the_way), released.uptime_s()
        await self._enter({address: until_s - now_s for address, until_s in batch.items()})
        await self._threads.with_route("entered into the set cooling", released.delete, batch)
        for address, until_s in batch.items():
            if self._on_the_way.get(address) == until_s:
                del self._on_the_way[address]

    async def _sweep(self) -> None:
        await self._threads.with_route("deleting released links", pods.sweep_leaving)
        for address, until_s in tuple(self._remembered.items()):
            # After its cooldown it may be somebody else's.
            if released.uptime_s() < until_s:
                await self._forget(f"forgetting the connections of {address}", [address])
            self._remembered.pop(address, None)

    async def _forget(self, what: str, addresses: Sequence[IPv4Address]) -> None:
        connections = [match for address in addresses for match in conntrack.of_pod(address)]
        await self._threads.netlink(what, conntrack.forget, connections)
