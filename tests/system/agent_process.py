"""Agents that a test starts by itself, on a node whose own agent has been stopped (or has not: then this one waits)."""

from __future__ import annotations

import itertools
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from lab.lab import Lab, LabNode
from lab.processes import ReadySocket, start_notifying
from tests.system.eventually import DEADLINE_S

_numbers = itertools.count()


class AgentProcess:
    """One agent process; it logs where the lab's agent of its node logs."""

    def __init__(self, child: subprocess.Popen[bytes], ready: ReadySocket) -> None:
        self._child = child
        self._ready = ready

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_until_ready(self) -> None:
        assert self._ready.wait(self._child, DEADLINE_S), "the agent did not get ready; its log says why"

    def send(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def exit_code(self) -> int:
        """Of the ended process. Raises: subprocess.TimeoutExpired when it does not end."""
        return self._child.wait(timeout=DEADLINE_S)


@contextmanager
def agent(lab: Lab, node: LabNode, **settings: str) -> Iterator[AgentProcess]:
    """Start an agent on a node, with `settings` beside the lab's own; it is killed at the end if it still runs."""
    ready = ReadySocket(node.directory / f"ready-{next(_numbers)}.sock")
    child = start_notifying(
        lab.agent_argv(node), environment={**lab.agent_environment(node), **settings}, log=node.log, ready=ready
    )
    try:
        yield AgentProcess(child, ready)
    finally:
        child.kill()
        child.wait(timeout=DEADLINE_S)
        ready.close()
