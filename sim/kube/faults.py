"""What goes wrong with requests, and how often."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """One kind of trouble."""

    THROTTLE = "throttle"
    """429 with Retry-After."""
    UNAVAILABLE = "unavailable"
    """503, by a proxy that knows no `Status`."""
    FORBIDDEN = "forbidden"
    """403: RBAC."""
    HANG = "hang"
    """Never answer."""
    DISCONNECT = "disconnect"
    """Close the connection without an answer; in a watch, in the middle of a line."""
    GONE_IN_STREAM = "gone_in_stream"
    """A watch that says 200, and then 410 as an event."""
    GARBAGE = "garbage"
    """200, and no JSON."""
    MISSHAPEN = "misshapen"
    """200, and JSON of another form."""
    STALE = "stale"
    """A list of long ago: no objects, and an old resource version."""
    END_AT_ONCE = "end_at_once"
    """A watch that ends as soon as it has begun."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """verb: list, watch, get, create, patch; empty: every one. plural: of the resource; empty: every one.

    retry_after_s: for THROTTLE.
    """

    fault: Fault
    verb: str = ""
    plural: str = ""
    retry_after_s: int = 1


class Faults:
    """Rules with the number of requests each is for, in order; every request meets the first that fits."""

    def __init__(self) -> None:
        self._rules: deque[list[Rule | int]] = deque()

    def add(self, rule: Rule, count: int = 1) -> None:
        """Have the next `count` requests that fit meet the fault."""
        self._rules.append([rule, count])

    def clear(self) -> None:
        self._rules.clear()

    def take(self, verb: str, plural: str) -> Rule | None:
        """The rule for a request, used up by one."""
        for entry in self._rules:
            rule, left = entry
            if not isinstance(rule, Rule) or not isinstance(left, int):
                continue
            if left > 0 and rule.verb in {"", verb} and rule.plural in {"", plural}:
                entry[1] = left - 1
                return rule
        return None
