"""One TaskGroup at the top of the process: nothing limps on, and stopping goes stage by stage."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from agent.runtime.log import event_logger

Stage = Mapping[str, Callable[[], Coroutine[Any, Any, None]]]
"""Long-lived tasks that stop together, by name."""

log = event_logger(__name__)


class UnexpectedExit(Exception):
    """A long-lived task returned although nobody asked it to stop."""


async def supervise(*stages: Stage, stop: asyncio.Event, stage_timeout_s: float = 10.0) -> None:
    """Run every task of every stage until `stop` is set, then cancel stage by stage, the last stage first.

    Put the door last: it stops taking requests, and drains, while the loops that serve them still turn.
    A stage that has not stopped after `stage_timeout_s` is logged and left behind, so that the earlier ones get
    their chance; the call still waits for it at the end.

    Raises: ExceptionGroup when a task fails, returns before `stop`, or fails while it stops. All others are
    cancelled first, at once.
    Cancel: cancels all tasks at once.
    """
    async with asyncio.TaskGroup() as group:
        started = [
            [group.create_task(_until_stopped(name, run, stop), name=name) for name, run in stage.items()]
            for stage in stages
        ]
        await stop.wait()
        for tasks in reversed(started):
            await _stop_stage(tasks, stage_timeout_s)


async def _until_stopped(name: str, run: Callable[[], Coroutine[Any, Any, None]], stop: asyncio.Event) -> None:
    await run()
    if not stop.is_set():
        raise UnexpectedExit(name)


async def _stop_stage(tasks: list[asyncio.Task[None]], timeout_s: float) -> None:
    names = [task.get_name() for task in tasks]
    log.info("stage_stopping", tasks=names)
    for task in tasks:
        task.cancel()
    if tasks:
        _, pending = await asyncio.wait(tasks, timeout=timeout_s)
        if pending:
            stuck = sorted(task.get_name() for task in pending)
            log.error("stage_stuck", tasks=stuck, waited_s=timeout_s)
