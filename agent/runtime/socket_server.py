"""The agent's door: one process per socket path, never open to others, closed politely.

Only the holder of the lock file beside the socket may touch the socket. A second agent waits for the lock, which makes
a rolling upgrade a hand-over: the old one drains and exits, the kernel releases its lock, the new one goes on. A
`kill -9` releases the lock too; the socket it leaves behind is replaced by the next holder.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from agent.runtime.connection import Connection, ReaderConnection
from agent.runtime.log import event_logger

log = event_logger(__name__)

LOCK_POLL_S = 0.1
"""How often a waiting agent tries the lock. flock(2) can only be polled or block a thread that nobody can cancel."""

KEEP_ALIVE_S = 5
"""How long an idle connection stays open; clients are local and short-lived."""


@asynccontextmanager
async def hold_socket(path: Path, *, mode: int = 0o600) -> AsyncIterator[socket.socket]:
    """Wait until no other agent owns `path`, then yield a socket bound there (not yet listening).

    The lock is `<path>.lock` and is never deleted. On exit the socket file goes first, then the lock.
    Do nothing that changes the node before this yields.

    Raises: OSError when the directory cannot be made or something that is not a socket is in the way.
    Cancel: at any time, also while waiting; everything taken is given back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        await _lock(lock_fd, path)
        with _bind(path, mode) as sock:
            yield sock
    finally:
        os.close(lock_fd)


async def _lock(fd: int, path: Path) -> None:
    waiting = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                log.info("socket_lock_waiting", path=str(path))
                waiting = True
            await asyncio.sleep(LOCK_POLL_S)
        else:
            if waiting:
                log.info("socket_lock_taken_over", path=str(path))
            return


@contextmanager
def _bind(path: Path, mode: int) -> Iterator[socket.socket]:
    if path.is_socket():
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Linux gives the file the mode of the unbound socket (unix(7), unix_bind_bsd()), so that the file never exists
        # with another one; unlike a umask this concerns no other thread, and it only ever narrows.
        os.fchmod(sock.fileno(), mode)
        sock.bind(os.fspath(path))
        try:
            yield sock
        finally:
            path.unlink(missing_ok=True)
    finally:
        sock.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals belong to whoever owns the process; uvicorn would re-raise them and end it before anyone cleans up.
        yield


async def serve(
    app: Any,
    sock: socket.socket,
    *,
    drain_s: float = 5.0,
    read_only: bool = False,
    max_connections: int | None = None,
) -> None:
    """Serve the ASGI `app` on `sock` until cancelled; then stop accepting and let requests in flight finish.

    drain_s: how long requests in flight may take after that, rounded up to whole seconds; then they are cancelled.
    read_only: says so to the app, see `connection.READ_ONLY`.
    max_connections: what comes beyond is answered with 503.
    Uses httptools for parsing and whatever event loop is running. Closes `sock`.

    Cancel: drains first, then raises CancelledError. A second cancellation is ignored: the drain has its own deadline.
    """
    config = uvicorn.Config(
        app,
        http=ReaderConnection if read_only else Connection,
        limit_concurrency=max_connections,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(drain_s),
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[sock]), name="uvicorn")
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
            server.should_exit = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
