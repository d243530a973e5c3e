"""The C library's allocator (glibc), told what kind of process this is."""

from __future__ import annotations

import ctypes
from typing import Final

_M_ARENA_MAX: Final = -8
"""mallopt(3), malloc.h."""

_libc = ctypes.CDLL(None)


def share_one_arena() -> None:
    """Let threads allocate where the main thread does; to be called before there are any.

    An arena per thread spares threads that allocate at the same time the wait for each other. Ours hold the
    interpreter's lock when they do; the arenas were 1.4 MiB of free space.
    """
    _libc.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """What was needed for a moment goes back to the kernel (malloc_trim(3)): 0.7 MiB after a start."""
    _libc.malloc_trim(0)
