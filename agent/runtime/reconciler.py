"""The one shape of a loop: wake, look at the world, act, say when to look again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agent.errors import AgentError
from agent.runtime.log import event_logger

log = event_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Seconds to wait after the n-th failure in a row: first_s, doubled each time up to max_s, plus jitter.

    jitter: the largest share added at random, so that nodes which failed together do not come back together.
    """

    first_s: float = 1.0
    max_s: float = 60.0
    jitter: float = 0.25

    def delay_s(self, failure_count: int, *, draw: float) -> float:
        """The wait after `failure_count` (>= 1) failures; `draw` is a random number in [0, 1)."""
        doubled_s = self.first_s * float(2 ** min(failure_count - 1, 32))
        return min(self.max_s, doubled_s) * (1.0 + self.jitter * draw)


class Reconciler:
    """Runs `step` for ever; never two at once. Wakes coalesce: any number of them is one more turn.

    step: one turn; returns the seconds until the next one, unless a wake comes first. 0 means at once, inf only when
        woken.
    timeout_s: a turn that takes longer is cancelled and counts as failed.

    An `AgentError` or a timeout backs off, at least for the error's own `retry_after_s`; a wake does not cut that
    short. Anything else is a bug and ends `run`. The first failure is logged, and the recovery, not every turn.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], Awaitable[float]],
        *,
        timeout_s: float,
        backoff: Backoff = Backoff(),
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self._step = step
        self._timeout_s = timeout_s
        self._backoff = backoff
        self._draw = draw
        self._wake = asyncio.Event()
        self._failure_count = 0
        self._last_error = ""
        self._good_at_s: float | None = None

    def wake(self) -> None:
        """Ask for a turn: now if the loop rests, one more if it is in a turn, after the backoff if it backs off."""
        self._wake.set()

    @property
    def failure_count(self) -> int:
        """Failed turns in a row; 0 when the last one was good."""
        return self._failure_count

    @property
    def last_error(self) -> str:
        """Why the last turn failed; empty when it was good."""
        return self._last_error

    def seconds_since_good_turn(self) -> float:
        """Seconds since a turn last ended without an error; since `run` began, or 0, when none has yet."""
        return 0.0 if self._good_at_s is None else asyncio.get_running_loop().time() - self._good_at_s

    async def run(self) -> None:
        """Turn until cancelled.

        Raises: whatever `step` raises that is neither an AgentError nor a timeout.
        Cancel: at any time; a running step is cancelled.
        """
        self._good_at_s = asyncio.get_running_loop().time()
        while True:
            # Cleared before the step: a wake that comes during it is not lost.
            self._wake.clear()
            try:
                delay_s = await self._turn()
            except AgentError as exc:
                await self._back_off(str(exc), exc.retry_after_s or 0.0)
            except _TurnTimeout:
                await self._back_off(f"no end of the turn after {self._timeout_s:g} s", 0.0)
            else:
                self._succeeded()
                await self._rest(delay_s)

    async def _turn(self) -> float:
        deadline = asyncio.timeout(self._timeout_s)
        try:
            async with deadline:
                return await self._step()
        except TimeoutError as exc:
            if deadline.expired():
                raise _TurnTimeout from exc
            raise

    async def _back_off(self, error: str, at_least_s: float) -> None:
        self._failure_count += 1
        self._last_error = error
        delay_s = max(self._backoff.delay_s(self._failure_count, draw=self._draw()), at_least_s)
        if self._failure_count == 1:
            log.warning("loop_degraded", loop=self.name, error=error, retry_after_s=round(delay_s, 3))
        else:
            log.debug("loop_failed", loop=self.name, error=error, failures=self._failure_count)
        await asyncio.sleep(delay_s)

    def _succeeded(self) -> None:
        self._good_at_s = asyncio.get_running_loop().time()
        if self._failure_count:
            log.info("loop_recovered", loop=self.name, failures=self._failure_count)
        self._failure_count = 0
        self._last_error = ""

    async def _rest(self, delay_s: float) -> None:
        # A step that never awaits, woken without end, must still let others run.
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(None if delay_s == float("inf") else delay_s):
                await self._wake.wait()
        except TimeoutError:
            return


class _TurnTimeout(Exception):
    pass
