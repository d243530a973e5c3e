"""Tests in virtual time; the event loop itself is the benches'."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any

from bench.virtual_time import run_virtual

__all__ = ["run_virtual", "virtual_time"]


def virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test in virtual time."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        run_virtual(test(*args, **kwargs))

    return run
