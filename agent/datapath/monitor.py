"""Link notifications: somebody waits for an ENI, somebody wants to know that an attachment vanished.

Events carry no data to anyone: they wake, and whoever wakes looks at the kernel.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from agent.datapath import layout
from agent.datapath.messages import RTM_DELLINK, RTM_NEWLINK, parse_link
from agent.datapath.netlink import NETLINK_ROUTE, split
from agent.ipam.model import Mac

_RTMGRP_LINK: Final = 1
_SO_RCVBUFFORCE: Final = 33
_BUFFER_BYTES: Final = 4 << 20
"""About 2,000 link events: what a node with a full set of pods sends when all of them go at once."""

_RECEIVE_BYTES: Final = 1 << 16


class LinkMonitor:
    """Listens from its construction on; delivers while `run` runs. One event loop."""

    def __init__(self) -> None:
        self._vanished: list[Callable[[], None]] = []
        self._expected: dict[Mac, list[asyncio.Event]] = {}
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, NETLINK_ROUTE
        )
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
            self._socket.bind((0, _RTMGRP_LINK))
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def subscribe(self, wake: Callable[[], None]) -> None:
        """Have `wake` called when a link in a pod group is deleted (or leaves the namespace)."""
        self._vanished.append(wake)

    @contextmanager
    def expecting(self, mac: Mac) -> Iterator[asyncio.Event]:
        """An event that is set whenever a link with this MAC appears or changes."""
        event = asyncio.Event()
        waiting = self._expected.setdefault(mac, [])
        waiting.append(event)
        try:
            yield event
        finally:
            waiting.remove(event)
            if not waiting:
                del self._expected[mac]

    async def run(self) -> None:
        """Deliver events until cancelled.

        Raises: OSError when the socket breaks; a bug or an end of the world.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                datagram = await loop.sock_recv(self._socket, _RECEIVE_BYTES)
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                # Events were lost: anything may have happened.
                self._wake_all()
                continue
            self._deliver(datagram)

    def _deliver(self, datagram: bytes) -> None:
        vanished = False
        for kind, _, _, payload in split(datagram):
            if kind not in (RTM_NEWLINK, RTM_DELLINK) or payload[0] != socket.AF_UNSPEC:
                continue
            link = parse_link(payload)
            if kind == RTM_DELLINK:
                vanished = vanished or link.group in layout.POD_GROUPS
            else:
                for event in self._expected.get(link.mac, ()):
                    event.set()
        if vanished:
            self._wake_subscribers()

    def _wake_all(self) -> None:
        for events in self._expected.values():
            for event in events:
                event.set()
        self._wake_subscribers()

    def _wake_subscribers(self) -> None:
        for wake in self._vanished:
            wake()
