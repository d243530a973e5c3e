"""The plugin as a container runtime starts it, also in the background: a request that waits is a process that runs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from lab.pods import SHIM, Pod

T = TypeVar("T")

DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the runtime reads. body: empty when the plugin printed nothing."""

    status: int
    body: Mapping[str, Any]

    @property
    def code(self) -> int:
        """The CNI error code; 0 for success."""
        assert (self.status == 0) == ("code" not in self.body), self
        return int(self.body.get("code", 0))

    @property
    def text(self) -> str:
        """Message and details of an error, as `kubectl describe pod` shows them."""
        return f"{self.body['msg']}; {self.body.get('details', '')}"

    @property
    def address(self) -> str:
        """What ADD gave, without its prefix length."""
        assert self.code == 0, self.text
        return str(self.body["ips"][0]["address"]).removesuffix("/32")


class Asking:
    """One run of the plugin, started when made."""

    def __init__(self, pod: Pod, command: str, **variables: str) -> None:
        self._child = subprocess.Popen(
            [SHIM],
            env={**pod.environment(command), **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(pod.network).encode())
        self._child.stdin.close()
        self._child.stdin = None

    def answer(self) -> Answer:
        """Wait for its end. Whatever it prints must be a CNI object, and nothing may be on standard error."""
        stdout, stderr = self._child.communicate(timeout=DEADLINE_S)
        assert stderr == b"", stderr
        return Answer(status=self._child.returncode, body=json.loads(stdout) if stdout.strip() else {})

    def kill(self) -> None:
        self._child.kill()
        self._child.communicate(timeout=DEADLINE_S)


def ask(pod: Pod, command: str, **variables: str) -> Answer:
    """Run the plugin to its end. variables: further ones of its environment (ENOKI_TIMEOUT_S, ...)."""
    return Asking(pod, command, **variables).answer()


def in_parallel(do: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """All at once; the first failure is raised after all have ended."""
    work = list(items)
    with ThreadPoolExecutor(len(work)) as threads:
        return list(threads.map(do, work))
