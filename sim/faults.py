"""Scripted misbehaviour of the EC2 API: which call fails, how, and how often.

A fault waits for calls of one action (or of any, `*`), lets `skip_count` of them pass, and then strikes `times` times.
With several that match, the one added first strikes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

ANY_ACTION = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorEffect:
    """Answer with an error.

    after: the call takes effect first, and the error is a lie: what a client sees when EC2 fails late.
    """

    code: str
    message: str = "Scripted fault"
    http_status: int = 400
    after: bool = False
    kind: Literal["error"] = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class DropEffect:
    """Begin an answer and close the connection before its end.

    after: the call takes effect first: the answer is lost.
    """

    after: bool = False
    kind: Literal["drop"] = "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class HangEffect:
    """Never answer; end when the client has hung up.

    after: the call takes effect first.
    """

    after: bool = False
    kind: Literal["hang"] = "hang"


@dataclass(frozen=True, slots=True, kw_only=True)
class DelayEffect:
    """Take this much longer."""

    delay_s: float
    kind: Literal["delay"] = "delay"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialEffect:
    """Grant at most this many of the addresses or prefixes that are asked for by count."""

    grant_count: int
    kind: Literal["partial"] = "partial"


Effect = ErrorEffect | DropEffect | HangEffect | DelayEffect | PartialEffect


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One scripted fault.

    fault_id: given by `Faults`, from 1 on.
    times: how often it still strikes; None for ever.
    hit_count: how often it has struck.
    """

    action: str
    effect: Effect
    skip_count: int = 0
    times: int | None = 1
    fault_id: int = 0
    hit_count: int = 0


class Faults:
    """The script. Spent faults stay listed, with their count, until they are removed."""

    def __init__(self) -> None:
        self._faults: dict[int, Fault] = {}
        self._last_id = 0

    def add(self, fault: Fault) -> Fault:
        """Append to the script; the fault with its identifier."""
        self._last_id += 1
        added = replace(fault, fault_id=self._last_id, hit_count=0)
        self._faults[added.fault_id] = added
        return added

    def listed(self) -> tuple[Fault, ...]:
        """All, in the order they were added."""
        return tuple(self._faults.values())

    def remove(self, fault_id: int) -> bool:
        """Whether there was one."""
        return self._faults.pop(fault_id, None) is not None

    def clear(self) -> None:
        """Forget the script."""
        self._faults.clear()

    def take(self, action: str) -> Effect | None:
        """What happens to this call, which counts as one call of `action`."""
        for fault in self._faults.values():
            if fault.action not in {action, ANY_ACTION} or fault.times == 0:
                continue
            if fault.skip_count:
                self._faults[fault.fault_id] = replace(fault, skip_count=fault.skip_count - 1)
                continue
            times = None if fault.times is None else fault.times - 1
            self._faults[fault.fault_id] = replace(fault, times=times, hit_count=fault.hit_count + 1)
            return fault.effect
        return None
