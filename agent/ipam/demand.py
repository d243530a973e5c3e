"""How large demand has been lately: what keeps the pool from giving back what it will need again in a moment. Pure."""

from __future__ import annotations

from collections import deque


class DemandHistory:
    """Demand over time: its peak in a window that ends now, and how long it has not risen.

    It remembers `window_s` seconds, in memory that grows with the number of different peaks in them only.
    """

    def __init__(self, window_s: float, now_s: float) -> None:
        self._window_s = window_s
        self._demand_count = 0
        self._began_s = now_s
        self._rose_s = now_s
        # (until when, how much), older and larger ones first: a smaller, older value can never be a peak again.
        self._past: deque[tuple[float, int]] = deque()

    def note(self, demand_count: int, now_s: float) -> None:
        """Demand is `demand_count` from now on."""
        if demand_count > self._demand_count:
            self._rose_s = now_s
        if demand_count != self._demand_count:
            while self._past and self._past[-1][1] <= self._demand_count:
                self._past.pop()
            self._past.append((now_s, self._demand_count))
            self._demand_count = demand_count
        while self._past and self._past[0][0] < now_s - self._window_s:
            self._past.popleft()

    def peak_count(self, now_s: float, window_s: float) -> int:
        """The largest demand during the last `window_s` seconds; no window may be larger than the constructor's."""
        recent = (count for until_s, count in self._past if until_s >= now_s - window_s)
        return max(self._demand_count, max(recent, default=0))

    def watched_s(self, now_s: float) -> float:
        """Seconds since the beginning."""
        return now_s - self._began_s

    def quiet_s(self, now_s: float) -> float:
        """Seconds since demand last rose; since the beginning when it never did."""
        return now_s - self._rose_s
