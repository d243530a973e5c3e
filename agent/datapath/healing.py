"""The loop that puts right what is not as it was made.

The kernel's notifications only wake it: whatever they were about, the whole node is looked at (some 8 ms of a worker
thread with 110 pods).
Most settings below /proc/sys have no notification, so there is also a look every half minute.
"""

from __future__ import annotations

import asyncio
import errno
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from agent.datapath import layout
from agent.datapath.damping import Damping
from agent.datapath.diff import Operation, differences, eni_link
from agent.datapath.firewall import MISSING
from agent.datapath.look import carry_out, look
from agent.datapath.memory import HostMemory
from agent.datapath.netlink import NetlinkRefused, NetlinkSocket
from agent.errors import KernelFailed
from agent.ports.datapath import Repair
from agent.runtime.log import event_logger

log = event_logger(__name__)

LOOK_EVERY_S: Final = 30.0
GATHER_S: Final = 0.02
"""From a notification to the look: what comes in a burst (a flush is one notification per object) is one look."""

GATHER_CONTESTED_S: Final = 0.5
"""While something waits for its turn: whoever keeps changing it must not have us look at the node without end."""

AGAIN_S: Final = 1.0
"""To the next look after one that failed, or that could not put everything right."""

TABLE: Final = f"table {layout.NFT_FAMILY} {layout.NFT_TABLE}"
PORTS: Final = f"host ports in {TABLE}"

_GONE: Final = frozenset({errno.ENODEV, errno.ENOENT})
"""The link went between the look and the repair."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """repairs: in the order in which they were made. again_s: when to look again at the latest, on the monotonic
    clock."""

    repairs: tuple[Repair, ...]
    again_s: float


def heal_node(route: NetlinkSocket, memory: HostMemory, damping: Damping) -> Turn:
    """Look once, and repair what is due. Blocking.

    Raises: NetlinkRefused, OSError when the look itself fails.
    """
    desired = memory.desired()
    if not desired.primary_mac:
        return Turn(repairs=(), again_s=math.inf)
    seen = look(route, desired)
    macs = (desired.primary_mac, *(eni.mac for eni in desired.enis))
    memory.looked_at({link.ifindex: link.ifname for mac in macs if (link := eni_link(mac, seen.links)) is not None})
    repairs: list[Repair] = []
    again_s = math.inf
    for operation in differences(desired, seen):
        now_s = time.monotonic()
        due_s = damping.due_s(operation.subject)
        if due_s > now_s:
            again_s = min(again_s, due_s)
            continue
        repair = _repair(route, memory, damping, operation, now_s)
        if repair is not None:
            repairs.append(repair)
            again_s = min(again_s, now_s + AGAIN_S) if repair.error else again_s
    return Turn(repairs=tuple(repairs), again_s=again_s)


def _repair(
    route: NetlinkSocket, memory: HostMemory, damping: Damping, operation: Operation, now_s: float
) -> Repair | None:
    error = ""
    try:
        if not memory.while_wanted(operation.pod, operation.table_id, lambda: carry_out(route, operation)):
            return None
    except NetlinkRefused as exc:
        if exc.errno in _GONE:
            return None
        error = str(exc)
    except OSError as exc:
        if exc.errno in _GONE:
            return None
        error = exc.strerror or str(exc)
    strike = damping.struck(operation.subject, now_s)
    return Repair(
        subject=operation.subject,
        difference=operation.found,
        strike_count=strike.count,
        contested=strike.contested,
        error=error,
    )


class Healer:
    """Woken from the event loop. `run` must be running."""

    def __init__(
        self,
        heal_node: Callable[[Damping], Awaitable[Turn]],
        heal_table: Callable[[], Awaitable[str | None]],
        heal_ports: Callable[[], Awaitable[str | None]],
    ) -> None:
        """One turn each; they raise KernelFailed. heal_table and heal_ports say what they found, or None."""
        self._heal_node = heal_node
        self._heal_table = heal_table
        self._heal_ports = heal_ports
        # Apart, because the node's is used in a thread.
        self._node_damping = Damping()
        self._damping = Damping()
        self._node_woken = asyncio.Event()
        self._table_woken = asyncio.Event()
        self._ports_woken = asyncio.Event()
        self._subscribers: list[Callable[[Repair], None]] = []

    def subscribe(self, told: Callable[[Repair], None]) -> None:
        """Have `told` called, on the event loop, with every repair."""
        self._subscribers.append(told)

    def wake_node(self) -> None:
        """Links, routes, rules, neighbours or settings may have changed."""
        self._node_woken.set()

    def wake_table(self) -> None:
        """The nftables table may have changed."""
        self._table_woken.set()

    def wake_ports(self) -> None:
        """The maps of host ports may have changed."""
        self._ports_woken.set()

    async def run(self) -> None:
        """Heal until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._turn(self._node_woken, self._node), name="healing the node")
            group.create_task(self._turn(self._table_woken, self._table), name="healing the table")
            group.create_task(self._turn(self._ports_woken, self._ports), name="healing the host ports")

    async def _turn(self, woken: asyncio.Event, heal: Callable[[], Awaitable[float]]) -> None:
        degraded = False
        while True:
            woken.clear()
            try:
                again_s = await heal()
            except KernelFailed as exc:
                if not degraded:
                    log.warning("healing_degraded", error=str(exc))
                degraded, again_s = True, time.monotonic() + AGAIN_S
            else:
                degraded = False
            try:
                async with asyncio.timeout(min(LOOK_EVERY_S, max(0.0, again_s - time.monotonic()))):
                    await woken.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(GATHER_S if again_s == math.inf else GATHER_CONTESTED_S)

    async def _node(self) -> float:
        turn = await self._heal_node(self._node_damping)
        self._tell(turn.repairs)
        return turn.again_s

    async def _table(self) -> float:
        return await self._damped(TABLE, self._heal_table)

    async def _ports(self) -> float:
        return await self._damped(PORTS, self._heal_ports)

    async def _damped(self, subject: str, heal: Callable[[], Awaitable[str | None]]) -> float:
        """When to look again."""
        now_s = time.monotonic()
        due_s = self._damping.due_s(subject)
        if due_s > now_s:
            return due_s
        found = await heal()
        if found is not None:
            self._repaired(subject, found, now_s)
        return math.inf

    def restored_table(self) -> None:
        """Somebody who needed the table found it missing, and did not wait for the loop."""
        self._repaired(TABLE, MISSING, time.monotonic())

    def _repaired(self, subject: str, found: str, now_s: float) -> None:
        strike = self._damping.struck(subject, now_s)
        self._tell([Repair(subject=subject, difference=found, strike_count=strike.count, contested=strike.contested)])

    def _tell(self, repairs: Sequence[Repair]) -> None:
        for repair in repairs:
            log.warning(
                "repair_failed" if repair.error else "repaired",
                subject=repair.subject,
                difference=repair.difference,
                strikes=repair.strike_count,
                contested=repair.contested,
                **({"error": repair.error} if repair.error else {}),
            )
            for told in self._subscribers:
                told(repair)
