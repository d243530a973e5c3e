"""The name of a simulated VPC belongs to one living process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

LOCK_DIRECTORY = Path("/run")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")


class Refused(Exception):
    """Why the program does not start, in one sentence for people."""


@contextlib.contextmanager
def hold_name(name: str) -> Iterator[None]:
    """Hold a name. The kernel lets go of it when this process ends, however it ends.

    Raises: Refused when it cannot be a name, without root, or with the process id of a living holder.
    """
    if not _NAME.fullmatch(name):
        raise Refused(f"{name!r} cannot be a name: letters, digits and dashes, at most 31, a letter first.")
    if os.geteuid() != 0:
        raise Refused("A simulated VPC needs root, because it makes network namespaces.")
    path = LOCK_DIRECTORY / f"enoki-sim-{name}.lock"
    descriptor = _lock(path, name)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        path.unlink()
        os.close(descriptor)


def _lock(path: Path, name: str) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 20).decode()
            os.close(descriptor)
            raise Refused(f"A simulated VPC named {name} runs already, as process {holder}; end that first.") from None
        # Whoever held it may have removed the file between our open and our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)
