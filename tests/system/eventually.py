"""Waiting for what happens by itself: the kernel takes a namespace away, a loop turns, a process ends.

The one place of the system tests that looks again and again; everything else waits for an answer or an exit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE_S = 60.0
"""Far above what anything here takes, so that a loaded machine fails no test; only a failure waits that long."""

PAUSE_S = 0.02


def eventually(read: Callable[[], T], accept: Callable[[T], bool], *, deadline_s: float = DEADLINE_S) -> T:
    """The first value of `read` that `accept` takes.

    Raises: AssertionError with the last value when there is none within `deadline_s`.
    """
    ends_s = time.monotonic() + deadline_s
    while True:
        value = read()
        if accept(value):
            return value
        if time.monotonic() > ends_s:
            raise AssertionError(f"not within {deadline_s:g} s; last seen: {value!r}")
        time.sleep(PAUSE_S)


def eventually_equal(read: Callable[[], object], wanted: object, *, deadline_s: float = DEADLINE_S) -> None:
    """Return once `read` gives `wanted`.

    Raises: AssertionError with the last value when it does not within `deadline_s`.
    """
    eventually(read, lambda value: value == wanted, deadline_s=deadline_s)
