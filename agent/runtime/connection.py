"""One HTTP connection: uvicorn's protocol, with who is calling, and bounds on the head of a request."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from typing import Any

from agent.runtime.library import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Request line and headers, with the part of the body that came along. httptools itself has no bound."""

HEAD_DEADLINE_S = 10.0
"""How long a request may take to say what it wants; its body and its answer have other bounds."""

PEER = "enoki.peer"
READ_ONLY = "enoki.read_only"
"""Keys this server adds to the ASGI scope: (pid, uid, gid) of the process that connected, and whether this is a socket
for readers only."""


def peer_credentials(sock: socket.socket) -> tuple[int, int, int] | None:
    """(pid, uid, gid) of the process that connected, as the kernel noted them then; None when it is no Unix socket."""
    if sock.family != socket.AF_UNIX:
        return None
    # struct ucred: three 32-bit integers (unix(7), SO_PEERCRED).
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII")))
    return pid, uid, gid


class Connection(HttpToolsProtocol):
    """Adds to uvicorn's protocol who is calling, and bounds on the head of a request."""

    _peer: tuple[int, int, int] | None = None
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _has_asked = False
    _leaving = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        self._peer = None if sock is None else peer_credentials(sock)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head_timer is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._head_timer is not None and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large")

    def shutdown(self) -> None:
        # uvicorn closes a connection without a request; the request may be here and nobody has looked yet.
        if not self._has_asked and (self._head_bytes or self._unread()):
            self._leaving = True
        else:
            super().shutdown()

    def _unread(self) -> bool:
        sock = self.transport.get_extra_info("socket")
        if sock is None or sock.fileno() < 0:
            return False
        waiting = select.poll()
        waiting.register(sock.fileno(), select.POLLIN)
        return bool(waiting.poll(0))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()
        scope: Any = self.scope
        scope[PEER] = self._peer
        scope[READ_ONLY] = False

    def on_headers_complete(self) -> None:
        self._head_arrived()
        super().on_headers_complete()
        self._has_asked = True
        if self._leaving:
            self.cycle.keep_alive = False

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._head_timer = self.loop.call_later(HEAD_DEADLINE_S, self._refuse, b"408 Request Timeout")

    def _head_arrived(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse(self, status: bytes) -> None:
        self._head_arrived()
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
            self.transport.close()


class ReaderConnection(Connection):
    """A connection to a socket for readers."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        scope: Any = self.scope
        scope[READ_ONLY] = True
