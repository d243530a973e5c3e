"""Why an outside call is made: bound where the decision is made, read where the call is counted.

So that a call can be counted by its reason without every method on the way taking one. The reasons are chosen by who
binds them; here they are texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_purpose: ContextVar[str] = ContextVar("purpose", default="unsaid")


@contextmanager
def purpose(reason: str) -> Iterator[None]:
    """Calls made inside the block, tasks started there included, are made for `reason`."""
    token = _purpose.set(reason)
    try:
        yield
    finally:
        _purpose.reset(token)


def current_purpose() -> str:
    """The bound reason; "unsaid" outside of `purpose`."""
    return _purpose.get()
