"""The recent past, for readers that are behind: immutable states with the time from which each was true."""

from __future__ import annotations

from bisect import bisect_right

from sim.model.records import State


class History:
    """States in the order they became true. Keeps as much as a reader `horizon_s` behind may ask for."""

    def __init__(self, state: State) -> None:
        self._times_s: list[float] = [float("-inf")]
        self._states: list[State] = [state]

    def record(self, state: State, *, now_s: float, horizon_s: float) -> None:
        """`state` is true from `now_s` on, which never goes back."""
        now_s = max(now_s, self._times_s[-1])
        self._times_s.append(now_s)
        self._states.append(state)
        oldest = bisect_right(self._times_s, now_s - horizon_s) - 1
        if oldest > 0:
            del self._times_s[:oldest], self._states[:oldest]

    def at(self, time_s: float) -> State:
        """The state that was true at `time_s`, or the oldest one still known."""
        return self._states[max(0, bisect_right(self._times_s, time_s) - 1)]
