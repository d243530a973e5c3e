"""Pure: how often one thing is put right when something else keeps changing it.

The first repairs come at once; each further one in a row waits twice as long as the one before. A minute of peace, and
all is forgotten.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

FREE_STRIKES: Final = 3
"""So many in a row come without a wait: an operator who breaks things by hand is no fight."""

FIRST_WAIT_S: Final = 0.5
LONGEST_WAIT_S: Final = 60.0
PEACE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """count: repairs in a row. due_s: when the next may come. contested: whether repairs wait by now."""

    count: int
    at_s: float
    due_s: float

    @property
    def contested(self) -> bool:
        return self.count > FREE_STRIKES


def wait_s(count: int) -> float:
    """How long after the `count`-th repair in a row the next one has to wait."""
    if count < FREE_STRIKES:
        return 0.0
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(count - FREE_STRIKES, 32))


class Damping:
    """Counts repairs by subject. Times are given; whoever asks owns the clock."""

    def __init__(self) -> None:
        self._strikes: dict[str, Strike] = {}

    def due_s(self, subject: str) -> float:
        """When the subject may be repaired; minus infinity for now."""
        strike = self._strikes.get(subject)
        return -math.inf if strike is None else strike.due_s

    def struck(self, subject: str, now_s: float) -> Strike:
        """It is being repaired now."""
        before = self._strikes.get(subject)
        peaceful = before is None or now_s - before.at_s > PEACE_S + wait_s(before.count)
        count = 1 if before is None or peaceful else before.count + 1
        strike = Strike(count=count, at_s=now_s, due_s=now_s + wait_s(count))
        self._strikes = {
            name: one for name, one in self._strikes.items() if now_s - one.at_s <= PEACE_S + wait_s(one.count)
        }
        self._strikes[subject] = strike
        return strike
