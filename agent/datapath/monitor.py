"""The kernel's notifications: somebody waits for an ENI, somebody wants to know that an attachment vanished, or that
something of ours was changed.

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
from agent.datapath.memory import HostMemory
from agent.datapath.messages import RTM_DELLINK, RTM_NEWLINK, parse_link
from agent.datapath.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, split
from agent.datapath.notices import Disturbed, Notice, disturbed_of_table, notice_of
from agent.ipam.model import Address, Mac

_ROUTE_GROUPS: Final = 0x1 | 0x4 | 0x8 | 0x10 | 0x40 | 0x80 | 1 << 23
"""RTNLGRP_LINK, _NEIGH, _TC, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV4_NETCONF (include/uapi/linux/rtnetlink.h).
IPv6 makes half a dozen routes of its own for every link; what of ours is changed there is found by the regular look."""
_NFTABLES_GROUP: Final = 1 << 6
"""NFNLGRP_NFTABLES (include/uapi/linux/netfilter/nfnetlink.h)."""
_SO_RCVBUFFORCE: Final = 33
_BUFFER_BYTES: Final = 4 << 20
"""About 2,000 link events: what a node with a full set of pods sends when all of them go at once."""

_TOGETHER_S: Final = 0.005
_TOGETHER_COUNT: Final = 256

_SUSPENSE_S: Final = 0.02
"""From a notification of something that is not as it was made to the belief in it: our own changes come in several
steps, and within this time the last one says that all is well."""

_RECEIVE_BYTES: Final = 1 << 16


def _listening(protocol: int, groups: int) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        made.bind((0, groups))
    except OSError:
        made.close()
        raise
    return made


def _pending(notifications: socket.socket) -> Iterator[bytes]:
    """What has arrived by now, a bounded share of it. Raises: OSError, ENOBUFS for an overrun."""
    for _ in range(_TOGETHER_COUNT):
        try:
            yield notifications.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return


class Monitor:
    """Listens from its construction on; delivers while `run` runs. One event loop.

    memory: what notifications are compared with.
    node_changed, table_changed, ports_changed: called when something of ours may be different.
    """

    def __init__(
        self,
        memory: HostMemory,
        *,
        node_changed: Callable[[], None],
        table_changed: Callable[[], None],
        ports_changed: Callable[[], None],
    ) -> None:
        self._memory = memory
        self._node_changed = node_changed
        self._table_changed = table_changed
        self._ports_changed = ports_changed
        self._suspects: set[tuple[str | int | Address, ...]] = set()
        self._vanished: list[Callable[[], None]] = []
        self._expected: dict[Mac, list[asyncio.Event]] = {}
        self._route = _listening(NETLINK_ROUTE, _ROUTE_GROUPS)
        try:
            self._nftables = _listening(NETLINK_NETFILTER, _NFTABLES_GROUP)
        except OSError:
            self._route.close()
            raise

    def close(self) -> None:
        self._route.close()
        self._nftables.close()

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

        Raises: OSError when a socket breaks; a bug or an end of the world.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._receive(self._route, self._deliver, self._wake_all), name="route notifications")
            group.create_task(
                self._receive(self._nftables, self._deliver_nftables, self._nftables_lost), name="nft notifications"
            )

    async def _receive(
        self, notifications: socket.socket, deliver: Callable[[bytes], None], lost: Callable[[], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                deliver(await loop.sock_recv(notifications, _RECEIVE_BYTES))
                # The rest of a change comes within milliseconds; read it together, when whoever makes the change (an
                # ADD of ours, most likely) is done with it.
                await asyncio.sleep(_TOGETHER_S)
                for datagram in _pending(notifications):
                    deliver(datagram)
            except OSError as exc:
                if exc.errno != errno.ENOBUFS:
                    raise
                # Events were lost: anything may have happened.
                lost()

    def _deliver(self, datagram: bytes) -> None:
        vanished = False
        for kind, _, _, payload in split(datagram):
            if kind in (RTM_NEWLINK, RTM_DELLINK):
                if payload[0] != socket.AF_UNSPEC:
                    continue
                link = parse_link(payload)
                if kind == RTM_DELLINK:
                    self._memory.forget_link(link.ifindex)
                    vanished = vanished or link.group in layout.POD_GROUPS
                    continue
                for event in self._expected.get(link.mac, ()):
                    event.set()
            notice = notice_of(kind, payload, self._memory)
            if notice is not None:
                self._weigh(notice)
        if vanished:
            self._wake_subscribers()

    def _weigh(self, notice: Notice) -> None:
        if notice.as_made:
            self._suspects.discard(notice.about)
            return
        if not self._suspects:
            asyncio.get_running_loop().call_later(_SUSPENSE_S, self._judge)
        self._suspects.add(notice.about)

    def _judge(self) -> None:
        if self._suspects:
            self._suspects.clear()
            self._node_changed()

    def _deliver_nftables(self, datagram: bytes) -> None:
        disturbed = {disturbed_of_table(kind, payload) for kind, _, _, payload in split(datagram)}
        if Disturbed.TABLE in disturbed:
            self._table_changed()
        if Disturbed.PORTS in disturbed:
            self._ports_changed()

    def _nftables_lost(self) -> None:
        self._table_changed()
        self._ports_changed()

    def _wake_all(self) -> None:
        for events in self._expected.values():
            for event in events:
                event.set()
        self._wake_subscribers()
        self._node_changed()

    def _wake_subscribers(self) -> None:
        for wake in self._vanished:
            wake()
