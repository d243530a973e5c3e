"""A netlink socket that sends batches: many messages in one send, answers matched by sequence number.

The kernel works through the messages of one send in order; an error does not stop the later ones. It answers errors
always and successes only where NLM_F_ACK asks, so a batch asks for one acknowledgement, on its last message: when
that arrives, every error has arrived before it (Documentation/userspace-api/netlink/intro.rst;
net/netlink/af_netlink.c, netlink_rcv_skb).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from agent.errors import Cause, KernelFailed

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
_NLM_F_DUMP_INTR: Final = 0x10
_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLMSGERR_ATTR_MSG: Final = 1
_NLA_TYPE_MASK: Final = 0x3FFF

_SOL_NETLINK: Final = 270
_NETLINK_CAP_ACK: Final = 10
_NETLINK_EXT_ACK: Final = 11
_NETLINK_GET_STRICT_CHK: Final = 12
_SO_RCVBUFFORCE: Final = 33

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_INT: Final = struct.Struct("=i")

_RECEIVE_BUFFER_BYTES: Final = 1 << 20
"""Room for the answers of a batch and for a dump in flight; the kernel's default (208 KiB) overruns near 200 links."""

_RECEIVE_BYTES: Final = 1 << 16
"""The kernel fills dump datagrams up to 32 KiB (net/netlink/af_netlink.c, netlink_dump); twice that never truncates."""

_ANSWER_TIMEOUT_S: Final = 5.0
"""The kernel answers before send() returns; this only bounds a kernel that loses an answer."""

_DUMP_ATTEMPTS: Final = 5


class NetlinkRefused(Exception):
    """The kernel refused a message. `errno` is positive; `text` is the kernel's own explanation, or the errno's."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{errno.errorcode.get(code, code)}: {text}")
        self.errno = code
        self.text = text


@contextmanager
def refusals_named(what: str) -> Iterator[None]:
    """Translate at the boundary: whatever the kernel refuses inside becomes a KernelFailed that says what was
    attempted."""
    try:
        yield
    except NetlinkRefused as exc:
        raise KernelFailed(
            Cause.KERNEL_REFUSED, f"{what}: {exc.text}", evidence={"errno": errno.errorcode.get(exc.errno, exc.errno)}
        ) from exc
    except OSError as exc:
        raise KernelFailed(
            Cause.KERNEL_REFUSED,
            f"{what}: {exc.strerror or str(exc)}",
            evidence={"errno": errno.errorcode.get(exc.errno or 0, exc.errno or 0)},
        ) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The answer to one message of a batch that failed. position: its index in the batch."""

    position: int
    errno: int
    text: str

    def as_error(self) -> NetlinkRefused:
        return NetlinkRefused(self.errno, self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message as received, without its netlink header."""

    kind: int
    payload: memoryview


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    size = 4 + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + b"\0" * (-size % 4)


def attributes(payload: memoryview, offset: int = 0) -> Iterator[tuple[int, memoryview]]:
    """(type, value) of each attribute from `offset` on; the nested and byte-order flags are stripped from the type."""
    end = len(payload)
    while offset + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if size < 4 or offset + size > end:
            return
        yield kind & _NLA_TYPE_MASK, payload[offset + 4 : offset + size]
        offset += size + (-size % 4)


def message(kind: int, flags: int, body: bytes) -> bytes:
    """A request with its header; the socket fills in the sequence number."""
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body


def split(datagram: bytes) -> Iterator[tuple[int, int, int, memoryview]]:
    """(type, flags, sequence number, payload) of each message of a datagram."""
    view = memoryview(datagram)
    offset = 0
    while offset + HEADER.size <= len(view):
        size, kind, flags, sequence, _ = HEADER.unpack_from(view, offset)
        if size < HEADER.size or offset + size > len(view):
            return
        yield kind, flags, sequence, view[offset + HEADER.size : offset + size]
        offset += size + (-size % 4)


def parse_error(flags: int, payload: memoryview) -> tuple[int, str]:
    """(errno, explanation) of an NLMSG_ERROR; errno 0 is an acknowledgement."""
    code = -_INT.unpack_from(payload)[0]
    text = os.strerror(code)
    if flags & _NLM_F_ACK_TLVS:
        echoed: int = HEADER.size if flags & _NLM_F_CAPPED else HEADER.unpack_from(payload, 4)[0]
        for kind, value in attributes(payload, 4 + echoed + (-echoed % 4)):
            if kind == _NLMSGERR_ATTR_MSG:
                text = bytes(value).rstrip(b"\0").decode(errors="replace")
    return code, text


class NetlinkSocket:
    """A blocking netlink socket of the namespace the calling thread is in. One thread at a time.

    After an exception other than `NetlinkRefused` answers may still be under way: close the socket.
    """

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            if protocol == NETLINK_ROUTE:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
            self._socket.settimeout(_ANSWER_TIMEOUT_S)
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def batch(self, messages: Sequence[bytes], *, answer_at: int = -1) -> tuple[Refusal, ...]:
        """Send all in one datagram; the refusals, in order. Empty means that all succeeded.

        answer_at: index of the message that is acknowledged last and so ends the batch.
        Raises: TimeoutError, OSError.
        """
        first = self._sequence + 1
        self._sequence += len(messages)
        last = first + answer_at % len(messages)
        buffer = bytearray()
        for sequence, encoded in enumerate(messages, first):
            start = len(buffer)
            buffer += encoded
            struct.pack_into("=I", buffer, start + 8, sequence)
            if sequence == last:
                struct.pack_into("=H", buffer, start + 6, struct.unpack_from("=H", encoded, 6)[0] | NLM_F_ACK)
        self._socket.send(buffer)
        refusals: list[Refusal] = []
        while True:
            for kind, flags, sequence, payload in split(self._socket.recv(_RECEIVE_BYTES)):
                if kind != _NLMSG_ERROR or not first <= sequence < first + len(messages):
                    continue
                code, text = parse_error(flags, payload)
                if code:
                    refusals.append(Refusal(position=sequence - first, errno=code, text=text))
                if sequence == last:
                    return tuple(refusals)

    def apply(self, messages: Sequence[bytes], *, ignore: frozenset[int] = frozenset()) -> None:
        """Send a batch that has to succeed as a whole. ignore: errnos that count as success.

        Raises: NetlinkRefused with the first refusal; the other messages were worked on all the same.
        """
        for refusal in self.batch(messages):
            if refusal.errno not in ignore:
                raise refusal.as_error()

    def get(self, encoded: bytes) -> Message | None:
        """Ask for one object; None when there is no such object (ENODEV, ENOENT, ESRCH).

        Raises: NetlinkRefused, TimeoutError, OSError.
        """
        sequence = self._post(encoded)
        while True:
            for kind, flags, answered, payload in split(self._socket.recv(_RECEIVE_BYTES)):
                if answered != sequence:
                    continue
                if kind != _NLMSG_ERROR:
                    return Message(kind=kind, payload=payload)
                code, text = parse_error(flags, payload)
                if code in (errno.ENODEV, errno.ENOENT, errno.ESRCH):
                    return None
                raise NetlinkRefused(code, text)

    def dump(self, encoded: bytes) -> tuple[Message, ...]:
        """Every object the request matches. A dump that the kernel calls inconsistent is repeated, five times at most.

        Raises: NetlinkRefused, TimeoutError, OSError.
        """
        for _ in range(_DUMP_ATTEMPTS):
            seen = self._dump_once(encoded)
            if seen is not None:
                return seen
        raise NetlinkRefused(errno.EINTR, f"the dump was interrupted {_DUMP_ATTEMPTS} times")

    def _dump_once(self, encoded: bytes) -> tuple[Message, ...] | None:
        sequence = self._post(encoded)
        seen: list[Message] = []
        interrupted = False
        while True:
            for kind, flags, answered, payload in split(self._socket.recv(_RECEIVE_BYTES)):
                if answered != sequence:
                    continue
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                if kind == _NLMSG_ERROR:
                    raise NetlinkRefused(*parse_error(flags, payload))
                if kind == _NLMSG_DONE:
                    code = -_INT.unpack_from(payload)[0]
                    if code:
                        raise NetlinkRefused(code, os.strerror(code))
                    return None if interrupted else tuple(seen)
                seen.append(Message(kind=kind, payload=payload))

    def _post(self, encoded: bytes) -> int:
        self._sequence += 1
        buffer = bytearray(encoded)
        struct.pack_into("=I", buffer, 8, self._sequence)
        self._socket.send(buffer)
        return self._sequence
