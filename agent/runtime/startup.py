"""A start in named stages: each is tried until it is done, and says meanwhile what it waits for."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum

from agent.errors import AgentError
from agent.runtime.log import event_logger
from agent.runtime.reconciler import Backoff

log = event_logger(__name__)

LONGEST_HINT_S = 30.0
"""An error may ask for minutes (a missing permission). A node that cannot start looks more often: it has nothing else
to do, and whoever has just mended it is watching."""


class StageState(StrEnum):
    """How far a stage is. FAILED is tried again after a backoff."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """One stage.

    since: when it entered its state; None while pending.
    reason: the last failure; empty when there is none.
    """

    name: str
    state: StageState = StageState.PENDING
    since: datetime | None = None
    reason: str = ""


class Startup:
    """Runs stages in order, one after the other; `ready` is set when the last one is done.

    A stage that raises an `AgentError` is tried again after a backoff, at least the error's own `retry_after_s` (up to
    `LONGEST_HINT_S`): stages are repeatable. Anything else is a bug and ends `run`.
    """

    def __init__(
        self,
        stages: Mapping[str, Callable[[], Awaitable[None]]],
        *,
        backoff: Backoff = Backoff(max_s=15.0),  # noqa: B008 - frozen
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.ready = asyncio.Event()
        self._stages = dict(stages)
        self._status = {name: StageStatus(name=name) for name in stages}
        self._backoff = backoff
        self._draw = draw

    def status(self) -> tuple[StageStatus, ...]:
        """Every stage, in the order they run."""
        return tuple(self._status.values())

    def waits_for(self) -> str:
        """What keeps the start from being done, in one sentence; empty when it is."""
        current = next((stage for stage in self.status() if stage.state is not StageState.DONE), None)
        if current is None:
            return ""
        return f"stage {current.name} is {current.state}" + (f": {current.reason}" if current.reason else "")

    async def run(self) -> None:
        """All stages; returns once ready. Cancel: at any time; a stage is repeated by the next start."""
        for name, stage in self._stages.items():
            failure_count = 0
            self._enter(name, StageState.RUNNING)
            while True:
                try:
                    await stage()
                    break
                except AgentError as exc:
                    failure_count += 1
                    hint_s = min(exc.retry_after_s or 0.0, LONGEST_HINT_S)
                    delay_s = max(self._backoff.delay_s(failure_count, draw=self._draw()), hint_s)
                    if failure_count == 1:
                        log.warning("stage_failed", stage=name, error=str(exc), retry_after_s=round(delay_s, 3))
                    self._enter(name, StageState.FAILED, reason=str(exc))
                    await asyncio.sleep(delay_s)
            self._enter(name, StageState.DONE)
            log.info("stage_done", stage=name, failures=failure_count)
        self.ready.set()

    def _enter(self, name: str, state: StageState, *, reason: str = "") -> None:
        before = self._status[name]
        since = before.since if before.state is state else datetime.now(tz=UTC)
        self._status[name] = replace(before, state=state, since=since, reason=reason)
