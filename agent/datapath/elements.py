"""Elements of our nftables sets and maps, by raw nfnetlink: what an ADD or a DEL may write.

libnftables reads foreign tables first (15 ms beside 5,000 services), a pod must not pay for that; a few elements in one
batch take 0.05 ms. Layouts: include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h; a component of a concatenated key is
padded to four bytes (net/netfilter/nft_set_hash.c works on whole registers). Tests hold this module against what
`nft --json` lists.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
_ELEMENT_DATA: Final = 2
_ELEMENT_TIMEOUT: Final = 4
_ELEMENT_EXPIRATION: Final = 5
_ELEMENT_USERDATA: Final = 6
_DATA_VALUE: Final = 1
_NESTED: Final = 0x8000
_COMMENT_TAG: Final = 0
"""NFTNL_UDATA_SET_ELEM_COMMENT of libnftnl: tag and length, a byte each, then the text with its closing zero."""
COMMENT_BYTES: Final = 127
"""What nft(8) takes; it prints what is longer, and refuses it as input."""

_U64_BE: Final = struct.Struct(">Q")
_NFGENMSG: Final = struct.Struct(">BBH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One element of a set, or of a map when it has a value.

    key, value: as the kernel has them: network byte order, each component padded to four bytes.
    timeout_ms: the life it is given; None for ever. expires_ms: what is left of it, in what was read.
    """

    key: bytes
    value: bytes = b""
    timeout_ms: int | None = None
    expires_ms: int | None = None
    comment: str = ""

    def encoded(self) -> bytes:
        body = attribute(_ELEMENT_KEY | _NESTED, attribute(_DATA_VALUE, self.key))
        if self.value:
            body += attribute(_ELEMENT_DATA | _NESTED, attribute(_DATA_VALUE, self.value))
        if self.timeout_ms is not None:
            body += attribute(_ELEMENT_TIMEOUT, _U64_BE.pack(self.timeout_ms))
        if self.comment:
            text = self.comment.encode()[:COMMENT_BYTES].decode(errors="ignore").encode() + b"\0"
            body += attribute(_ELEMENT_USERDATA, bytes((_COMMENT_TAG, len(text))) + text)
        return attribute(_LIST_ELEMENT | _NESTED, body)


def add_elements(name: str, elements: Sequence[Element]) -> bytes:
    """EEXIST when one of the keys is in the set, ENOENT when there is no set. Part of a `transaction`."""
    return _change(_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, name, elements)


def delete_elements(name: str, keys: Sequence[bytes]) -> bytes:
    """ENOENT when one of them is not in the set. Part of a `transaction`."""
    return _change(_DELSETELEM, 0, name, [Element(key=key) for key in keys])


def dump_elements(name: str) -> bytes:
    return message(_GETSETELEM, NLM_F_DUMP, _NFGENMSG.pack(_NFPROTO_INET, 0, 0) + _address(name))


def _change(kind: int, flags: int, name: str, elements: Sequence[Element]) -> bytes:
    listed = b"".join(element.encoded() for element in elements)
    body = _NFGENMSG.pack(_NFPROTO_INET, 0, 0) + _address(name) + attribute(_LIST_ELEMENTS | _NESTED, listed)
    return message(kind, flags, body)


def _address(name: str) -> bytes:
    return attribute(_LIST_TABLE, layout.NFT_TABLE.encode() + b"\0") + attribute(_LIST_SET, name.encode() + b"\0")


def transaction(changes: Sequence[bytes]) -> tuple[bytes, ...]:
    """All or nothing."""
    envelope = _NFGENMSG.pack(0, 0, _SUBSYSTEM)
    return (message(_NFNL_MSG_BATCH_BEGIN, 0, envelope), *changes, message(_NFNL_MSG_BATCH_END, 0, envelope))


def parse_elements(seen: Message) -> Iterator[Element]:
    """Read one message of a dump."""
    for name, value in attributes(seen.payload, _NFGENMSG.size):
        if name == _LIST_ELEMENTS:
            for _, element in attributes(value):
                yield _parse_element(element)


def _parse_element(element: memoryview) -> Element:
    key = data = b""
    timeout_ms = expires_ms = None
    comment = ""
    for name, value in attributes(element):
        if name == _ELEMENT_KEY:
            key = _inner(value)
        elif name == _ELEMENT_DATA:
            data = _inner(value)
        elif name == _ELEMENT_TIMEOUT:
            timeout_ms = _U64_BE.unpack(value)[0]
        elif name == _ELEMENT_EXPIRATION:
            expires_ms = _U64_BE.unpack(value)[0]
        elif name == _ELEMENT_USERDATA:
            comment = _comment(bytes(value))
    return Element(key=key, value=data, timeout_ms=timeout_ms, expires_ms=expires_ms, comment=comment)


def _inner(value: memoryview) -> bytes:
    return bytes(next((inner for name, inner in attributes(value) if name == _DATA_VALUE), b""))


def _comment(userdata: bytes) -> str:
    offset = 0
    while offset + 2 <= len(userdata):
        tag, size = userdata[offset], userdata[offset + 1]
        if tag == _COMMENT_TAG:
            return userdata[offset + 2 : offset + 2 + size].rstrip(b"\0").decode(errors="replace")
        offset += 2 + size
    return ""


class ElementSocket:
    """Reads and changes sets. Opened when it is first used; one thread at a time."""

    def __init__(self) -> None:
        self._socket: NetlinkSocket | None = None

    def read(self, name: str) -> tuple[Element, ...]:
        """Every element; none while there is no table.

        Raises: NetlinkRefused, OSError.
        """
        try:
            seen = self._open().dump(dump_elements(name))
        except NetlinkRefused as exc:
            if exc.errno == errno.ENOENT:
                return ()
            raise
        return tuple(element for each in seen for element in parse_elements(each))

    def commit(self, changes: Sequence[bytes]) -> None:
        """All or nothing. Raises: NetlinkRefused with the first refusal, OSError."""
        batch = transaction(changes)
        refusals = self._open().batch(batch, answer_at=len(batch) - 2)
        if refusals:
            raise refusals[0].as_error()

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _open(self) -> NetlinkSocket:
        if self._socket is None:
            self._socket = NetlinkSocket(NETLINK_NETFILTER)
        return self._socket
