"""The cooldown set: a released address is in it until its timeout, agent or no agent."""

from __future__ import annotations

import errno
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Final

from agent.datapath import layout
from agent.datapath.elements import Element, ElementSocket, add_elements, delete_elements
from agent.datapath.netlink import NetlinkRefused
from agent.ports.datapath import CoolingSeen

_PUT_ATTEMPTS: Final = 4


class CoolingSet:
    """The kernel's set. Thread-safe: one socket, one lock; a call holds it for well under a millisecond.

    What was put is also remembered until its time is over, so that a table which somebody removed comes back with it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket = ElementSocket()
        self._until_s: dict[IPv4Address, float] = {}

    def put(self, cooldowns_s: Mapping[IPv4Address, float]) -> None:
        """Let every address cool for its time from now on, whatever time it had left: one transaction. Zero or less
        does nothing.

        Raises: NetlinkRefused, ENOENT when the table is missing; OSError.
        """
        timeouts_ms = {
            address: math.ceil(cooldown_s * 1000) for address, cooldown_s in cooldowns_s.items() if cooldown_s > 0
        }
        if not timeouts_ms:
            return
        with self._lock:
            self._put(timeouts_ms)
            now_s = time.monotonic()
            self._until_s = {address: until_s for address, until_s in self._until_s.items() if until_s > now_s}
            self._until_s.update({address: now_s + cooldowns_s[address] for address in timeouts_ms})

    def read(self) -> tuple[CoolingSeen, ...]:
        """Every address in the set with the time it has left; none while there is no table.

        An element without an expiration was put there by hand: it never gets free by itself.
        Raises: NetlinkRefused, OSError.
        """
        with self._lock:
            return self._read()

    @contextmanager
    def frozen(self) -> Iterator[tuple[CoolingSeen, ...]]:
        """The content, and what it should hold beside that, while nobody can add to it: for replacing the table around
        it."""
        with self._lock:
            seen = self._read()
            present, now_s = {each.address for each in seen}, time.monotonic()
            lost = (
                CoolingSeen(address=address, remaining_s=until_s - now_s)
                for address, until_s in self._until_s.items()
                if until_s > now_s and address not in present
            )
            yield (*seen, *lost)

    def close(self) -> None:
        with self._lock:
            self._socket.close()

    def _put(self, timeouts_ms: Mapping[IPv4Address, int]) -> None:
        add = add_elements(
            layout.COOLING_SET,
            [Element(key=address.packed, timeout_ms=timeout_ms) for address, timeout_ms in timeouts_ms.items()],
        )
        stale: list[bytes] = []
        for _ in range(_PUT_ATTEMPTS):
            try:
                return self._socket.commit([*stale, add])
            except NetlinkRefused as exc:
                # EEXIST: it is cooling already, start over. ENOENT beside a deletion: it expired just now.
                if exc.errno != errno.EEXIST and not (exc.errno == errno.ENOENT and stale):
                    raise
            present = {each.address for each in self._read()}
            again = [address.packed for address in timeouts_ms if address in present]
            stale = [delete_elements(layout.COOLING_SET, [key]) for key in again]
        raise NetlinkRefused(errno.EEXIST, f"the cooldown set changed {_PUT_ATTEMPTS} times meanwhile")

    def _read(self) -> tuple[CoolingSeen, ...]:
        return tuple(
            CoolingSeen(
                address=IPv4Address(each.key),
                remaining_s=math.inf if each.expires_ms is None else each.expires_ms / 1000,
            )
            for each in self._socket.read(layout.COOLING_SET)
        )
