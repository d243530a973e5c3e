"""A second socket, which a group may open, for reading only."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def readers_socket(path: Path, *, group_id: int) -> Iterator[socket.socket]:
    """Bound at `path`, mode 0660, owned by root and the group. Only while the agent's own socket is held: its lock
    keeps other agents away from this one too.

    Raises: OSError when the directory cannot be made or something that is not a socket is in the way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_socket():
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Narrow first (unix(7), unix_bind_bsd()), then opened to the group: never to others, not even for a moment.
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(os.fspath(path))
        try:
            os.chown(path, -1, group_id)
            path.chmod(0o660)
            yield sock
        finally:
            path.unlink(missing_ok=True)
    finally:
        sock.close()
