"""The cooldown set, by raw nfnetlink: a released address is in it until its timeout, agent or no agent.

libnftables reads foreign tables first (15 ms beside 5,000 services), a DEL must not; one element in one batch takes
0.05 ms. Layouts: include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h. Tests hold this module against `nft -j list
set`.
"""

from __future__ import annotations

import errno
import math
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Final

from agent.datapath import layout
from agent.datapath.netlink import (
    NETLINK_NETFILTER,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    Message,
    NetlinkRefused,
    NetlinkSocket,
    attribute,
    attributes,
    message,
)
from agent.ports import CoolingSeen

_NFNL_MSG_BATCH_BEGIN: Final = 0x10
_NFNL_MSG_BATCH_END: Final = 0x11
_SUBSYSTEM: Final = 10
_NEWSETELEM: Final = _SUBSYSTEM << 8 | 12
_GETSETELEM: Final = _SUBSYSTEM << 8 | 13
_DELSETELEM: Final = _SUBSYSTEM << 8 | 14
_NFPROTO_INET: Final = 1

_LIST_TABLE: Final = 1
_LIST_SET: Final = 2
_LIST_ELEMENTS: Final = 3
_LIST_ELEMENT: Final = 1
_ELEMENT_KEY: Final = 1
_ELEMENT_TIMEOUT: Final = 4
_ELEMENT_EXPIRATION: Final = 5
_DATA_VALUE: Final = 1
_NESTED: Final = 0x8000

_U64_BE: Final = struct.Struct(">Q")
_NFGENMSG: Final = struct.Struct(">BBH")

_PUT_ATTEMPTS: Final = 4

_SET: Final = attribute(_LIST_TABLE, layout.NFT_TABLE.encode() + b"\0") + attribute(
    _LIST_SET, layout.COOLING_SET.encode() + b"\0"
)


def _element(address: IPv4Address, timeout_ms: int | None) -> bytes:
    key = attribute(_ELEMENT_KEY | _NESTED, attribute(_DATA_VALUE, address.packed))
    timeout = attribute(_ELEMENT_TIMEOUT, _U64_BE.pack(timeout_ms)) if timeout_ms is not None else b""
    return attribute(_LIST_ELEMENT | _NESTED, key + timeout)


def _elements(kind: int, flags: int, elements: bytes) -> bytes:
    body = _NFGENMSG.pack(_NFPROTO_INET, 0, 0) + _SET + attribute(_LIST_ELEMENTS | _NESTED, elements)
    return message(kind, flags, body)


def add_elements(addresses: Sequence[IPv4Address], timeout_ms: int) -> bytes:
    """EEXIST when one of them is in the set, ENOENT when there is no set. Part of a `transaction`."""
    return _elements(_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, b"".join(_element(each, timeout_ms) for each in addresses))


def delete_element(address: IPv4Address) -> bytes:
    """ENOENT when it is not in the set. Part of a `transaction`."""
    return _elements(_DELSETELEM, 0, _element(address, None))


def dump_elements() -> bytes:
    return message(_GETSETELEM, NLM_F_DUMP, _NFGENMSG.pack(_NFPROTO_INET, 0, 0) + _SET)


def transaction(changes: Sequence[bytes]) -> tuple[bytes, ...]:
    """All or nothing."""
    envelope = _NFGENMSG.pack(0, 0, _SUBSYSTEM)
    return (message(_NFNL_MSG_BATCH_BEGIN, 0, envelope), *changes, message(_NFNL_MSG_BATCH_END, 0, envelope))


def parse_elements(seen: Message) -> Iterator[CoolingSeen]:
    """Read one message of a dump. An element without an expiration was put there by hand: it never gets free by
    itself."""
    for name, value in attributes(seen.payload, _NFGENMSG.size):
        if name == _LIST_ELEMENTS:
            for _, element in attributes(value):
                yield _parse_element(element)


def _parse_element(element: memoryview) -> CoolingSeen:
    address = IPv4Address(0)
    remaining_s = math.inf
    for name, value in attributes(element):
        if name == _ELEMENT_KEY:
            address = IPv4Address(bytes(next(inner for _, inner in attributes(value))))
        elif name == _ELEMENT_EXPIRATION:
            remaining_s = _U64_BE.unpack(value)[0] / 1000
    return CoolingSeen(address=address, remaining_s=remaining_s)


class CoolingSet:
    """The kernel's set. Thread-safe: one socket, one lock; a call holds it for well under a millisecond."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: NetlinkSocket | None = None

    def put(self, addresses: Sequence[IPv4Address], cooldown_s: float) -> None:
        """Let every address cool for `cooldown_s` from now on, whatever time it had left. Zero or less does nothing.

        Raises: NetlinkRefused, ENOENT when the table is missing; OSError.
        """
        timeout_ms = math.ceil(cooldown_s * 1000)
        if timeout_ms <= 0 or not addresses:
            return None
        add = add_elements(addresses, timeout_ms)
        stale: list[bytes] = []
        with self._lock:
            for _ in range(_PUT_ATTEMPTS):
                try:
                    return self._commit([*stale, add])
                except NetlinkRefused as exc:
                    # EEXIST: it is cooling already, start over. ENOENT beside a deletion: it expired just now.
                    if exc.errno != errno.EEXIST and not (exc.errno == errno.ENOENT and stale):
                        raise
                present = {each.address for each in self._read()}
                stale = [delete_element(address) for address in addresses if address in present]
            raise NetlinkRefused(errno.EEXIST, f"the cooldown set changed {_PUT_ATTEMPTS} times meanwhile")

    def read(self) -> tuple[CoolingSeen, ...]:
        """Every address in the set with the time it has left; none while there is no table.

        Raises: NetlinkRefused, OSError.
        """
        with self._lock:
            return self._read()

    @contextmanager
    def frozen(self) -> Iterator[tuple[CoolingSeen, ...]]:
        """The content, while nobody can add to it: for replacing the table around it."""
        with self._lock:
            yield self._read()

    def close(self) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _read(self) -> tuple[CoolingSeen, ...]:
        try:
            seen = self._open().dump(dump_elements())
        except NetlinkRefused as exc:
            if exc.errno == errno.ENOENT:
                return ()
            raise
        return tuple(element for each in seen for element in parse_elements(each))

    def _commit(self, changes: Sequence[bytes]) -> None:
        batch = transaction(changes)
        refusals = self._open().batch(batch, answer_at=len(batch) - 2)
        if refusals:
            raise refusals[0].as_error()

    def _open(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = NetlinkSocket(NETLINK_NETFILTER)
        return self._socket
