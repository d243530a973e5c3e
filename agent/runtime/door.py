"""The agent's door: one process per socket path, never open to others, there before anything else of the agent is.

Only the holder of the lock file beside the socket may touch the socket. A second agent waits for the lock, which makes
a rolling upgrade a hand-over: the old one drains and exits, the kernel releases its lock, the new one goes on. A
`kill -9` releases the lock too; the socket it leaves behind is replaced by the next holder.

The standard library only: what serves on the socket takes ten times as long to import as to open it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from agent.runtime.log import event_logger

log = event_logger(__name__)

LOCK_POLL_S = 0.1
"""How often a waiting agent tries the lock. flock(2) can only be polled or block a thread that nobody can cancel."""

BACKLOG = 2048
"""Connections the kernel keeps until somebody accepts (listen(2)): more than a node has pods."""


@asynccontextmanager
async def hold_socket(
    path: Path, *, mode: int = 0o600, while_waiting: Callable[[], object] = lambda: None
) -> AsyncIterator[socket.socket]:
    """Wait until no other agent owns `path`, then yield a socket that listens there; nobody accepts yet.

    The lock is `<path>.lock` and is never deleted. On exit the socket file goes first, then the lock.
    Do nothing that changes the node before this yields.

    while_waiting: called once if another agent holds the lock: the time to prepare whatever can be prepared.
    Raises: OSError when the directory cannot be made or something that is not a socket is in the way.
    Cancel: at any time, also while waiting; everything taken is given back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        await _lock(lock_fd, path, while_waiting)
        with _bind(path, mode) as sock:
            yield sock
    finally:
        os.close(lock_fd)


async def _lock(fd: int, path: Path, while_waiting: Callable[[], object]) -> None:
    waiting = False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waiting:
                log.info("socket_lock_waiting", path=str(path))
                waiting = True
                while_waiting()
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
        sock.listen(BACKLOG)
        try:
            yield sock
        finally:
            path.unlink(missing_ok=True)
    finally:
        sock.close()
