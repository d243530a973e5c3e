"""Replacing a file on the host so that a reader sees the old one or the new one, whatever happens in between."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def replace_file(path: Path, content: bytes, *, mode: int) -> bool:
    """Make `path` a regular file of this content and mode; False when it is one already.

    The content is on disk before the name leads to it: a node that loses power then boots with the old file or the new
    one, never with an empty one. The temporary file is hidden, in the same directory (rename(2) does not cross file
    systems) and has no ending that a runtime would load (.conf, .conflist, .json); the next try overwrites a
    left-over.

    Raises: OSError.
    """
    if _is_already(path, content, mode):
        return False
    temporary = path.with_name(f".{path.name}.new")
    try:
        with open(temporary, "wb") as file:  # noqa: PTH123  # beside os.fsync and os.fchmod
            file.write(content)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(path.parent)
    return True


def remove_file(path: Path) -> bool:
    """Make sure that nothing has this name; False when nothing had. Raises: OSError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    _sync_directory(path.parent)
    return True


def _is_already(path: Path, content: bytes, mode: int) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    status = path.stat()
    return status.st_size == len(content) and status.st_mode & 0o7777 == mode and path.read_bytes() == content


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
