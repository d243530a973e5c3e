"""A process that takes a node over, or gives it back, and dies by SIGKILL at a chosen step.

    python -m tests.kernel.killed_adoption NETNS < jobs        each job forks; its wait status is answered on a line

The steps of a run are the places before and after everything that changes the node: a program fed with commands (and in
the middle of them), the datapath's own work, a file that is renamed or removed.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from agent.adoption import executor, survey
from agent.adoption.commands import Backend, NatSettings
from agent.adoption.executor import Places
from agent.datapath.kernel import KernelDatapath
from agent.datapath.policy import DatapathPolicy
from agent.ipam.model import Instance
from tests.kernel.datapath_node import Netns

REPOSITORY: Final = Path(__file__).resolve().parents[2]
TIMEOUT_S: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run. back: the way back. dies_at: the step, from 1 on; 0 for a run to the end."""

    back: bool
    backend: Backend
    nat: NatSettings
    instance: Instance
    places: Places
    dies_at: int


class Runner:
    """The process that forks jobs."""

    def __init__(self, pipe: subprocess.Popen[bytes]) -> None:
        self._pipe = pipe

    def dies(self, job: Job) -> bool:
        """Whether it was killed at its step; False when it came to its end before."""
        assert self._pipe.stdin is not None
        assert self._pipe.stdout is not None
        self._pipe.stdin.write(pickle.dumps(job))
        self._pipe.stdin.flush()
        status = int(self._pipe.stdout.readline())
        assert status in (0, -signal.SIGKILL), f"exit status {status}"
        return bool(status)


@contextmanager
def runner(netns: Netns) -> Iterator[Runner]:
    argv = ["ip", "netns", "exec", netns.name, sys.executable, "-m", "tests.kernel.killed_adoption"]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as pipe:
        try:
            yield Runner(pipe)
        finally:
            assert pipe.stdin is not None
            pipe.stdin.close()
            pipe.wait(TIMEOUT_S)


class _Steps:
    def __init__(self, dies_at: int) -> None:
        self._dies_at = dies_at
        self._count = 0

    def take(self) -> None:
        self._count += 1
        if self._count == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.take()
            result = original(*args, **kwargs)
            self.take()
            return result

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            self.take()
            result = await original(*args, **kwargs)
            self.take()
            return result

        setattr(owner, name, awaited if asyncio.iscoroutinefunction(original) else wrapped)

    def within(self, run: Callable[..., str]) -> Callable[..., str]:
        """Like `run`; a program that is fed has a step before, one in the middle of its commands, and one after."""

        def fed(*program: str, feed: str = "") -> str:
            if not feed:
                return run(*program)
            self.take()
            self._count += 1
            if self._count == self._dies_at:
                half = feed if "restore" in program[0] or program[0] == "nft" else _half(feed)
                run(*program, feed=half)
                os.kill(os.getpid(), signal.SIGKILL)
            result = run(*program, feed=feed)
            self.take()
            return result

        return fed


def _half(feed: str) -> str:
    """`ip -batch` is no transaction: what came first stands."""
    lines = feed.splitlines(keepends=True)
    return "".join(lines[: len(lines) // 2])


def _work(job: Job) -> None:
    steps = _Steps(job.dies_at)
    survey.run = steps.within(survey.run)
    steps.around(executor, "_settings")
    for name in ("prepare_node", "ensure_eni"):
        steps.around(KernelDatapath, name)
    for name in ("rename", "unlink"):
        steps.around(Path, name)
    if job.back:
        plan = executor.plan_rollback(job.places, job.nat, job.backend)
        asyncio.run(executor.give_back(plan, job.places, time.time_ns()))
        return
    plan = executor.plan_adoption(job.places, job.nat)
    datapath = KernelDatapath(DatapathPolicy(names_directory=None))
    try:
        asyncio.run(executor.adopt(plan, datapath, job.instance, job.places))
    finally:
        datapath.close()


def main() -> None:
    while True:
        try:
            job: Job = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the test itself
        except EOFError:
            return
        pid = os.fork()
        if pid == 0:
            _work(job)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
