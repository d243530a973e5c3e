"""Start the real plugin as a container runtime does."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "bin" / "enoki"
"""The plugin run by the machine's Python, as in a checkout."""
CONFIG = b'{"cniVersion":"1.0.0","name":"enoki","type":"enoki"}'
POD_ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1"
DEADLINE_S = 60.0

Value = str | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the runtime sees of one run."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def body(self) -> dict[str, Any]:
        """Standard output, decoded."""
        decoded: dict[str, Any] = json.loads(self.stdout)
        return decoded


_under_test = SHIM


def plugin_under_test() -> Path:
    """The executable that the running test is about; see conftest.py."""
    return _under_test


@contextmanager
def testing(program: Path) -> Iterator[None]:
    """Make `program` the plugin under test."""
    global _under_test  # noqa: PLW0603  # set by one fixture, around each test
    before, _under_test = _under_test, program
    try:
        yield
    finally:
        _under_test = before


def environment(command: str, socket: Path, **changes: Value) -> dict[bytes, bytes]:
    """The environment of a run: a valid one, with `changes`."""
    values: dict[str, Value] = {
        "PATH": os.defpath,
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/var/run/netns/c1",
        "CNI_IFNAME": "eth0",
        "CNI_ARGS": POD_ARGS,
        "CNI_PATH": "/opt/cni/bin",
        "ENOKI_SOCKET": str(socket),
        **changes,
    }
    return {os.fsencode(name): os.fsencode(value) for name, value in values.items()}


@contextmanager
def started(command: str, socket: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run that goes on by itself; it has been given its configuration."""
    with subprocess.Popen(
        [plugin_under_test()], env=environment(command, socket), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(CONFIG)
        process.stdin.close()
        process.stdin = None
        yield process


def shim(
    command: str, socket: Path, config: bytes = CONFIG, *, program: Path | None = None, **changes: Value
) -> Outcome:
    """Run the plugin to its end; the one that is under test, unless `program` says which."""
    done = subprocess.run(
        [program or plugin_under_test()],
        env=environment(command, socket, **changes),
        input=config,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return Outcome(status=done.returncode, stdout=done.stdout, stderr=done.stderr)
