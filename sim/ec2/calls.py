"""What was asked of EC2: every call, counted by action and outcome."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

KEPT_COUNT = 20_000
"""Calls kept one by one; older ones are only counted."""

OK = "ok"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRecord:
    """One call.

    access_key_id: of the credential it was signed with, which tells callers apart.
    outcome: `ok`, an EC2 error code, or `dropped` when a scripted fault left the client without an answer.
    parameters: as they were on the wire, without Action and Version.
    """

    time_s: float
    duration_s: float
    request_id: str
    action: str
    access_key_id: str
    outcome: str
    http_status: int
    parameters: Mapping[str, str]


class CallLog:
    """Calls in the order they were answered."""

    def __init__(self) -> None:
        self._calls: deque[CallRecord] = deque(maxlen=KEPT_COUNT)
        self._counts: Counter[tuple[str, str]] = Counter()

    def record(self, call: CallRecord) -> None:
        self._calls.append(call)
        self._counts[call.action, call.outcome] += 1

    def listed(self) -> tuple[CallRecord, ...]:
        """The last ones, oldest first."""
        return tuple(self._calls)

    def counts(self) -> dict[str, dict[str, int]]:
        """Action -> outcome -> number of calls."""
        table: dict[str, dict[str, int]] = {}
        for (action, outcome), count in sorted(self._counts.items()):
            table.setdefault(action, {})[outcome] = count
        return table

    def clear(self) -> None:
        self._calls.clear()
        self._counts.clear()
