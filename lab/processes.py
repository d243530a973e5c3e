"""Processes of the lab: started in their own session, told ready by themselves, ended by pid and nothing else."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

_children: dict[int, subprocess.Popen[bytes]] = {}
"""Started by this very process and not yet ended: a Popen dropped while its program runs is a ResourceWarning."""


class LabError(Exception):
    """The lab could not do what was asked; the message says what and what to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """A process that cannot be mistaken for a later one with the same number.

    started_ticks: field 22 of /proc/<pid>/stat (proc(5)): start time after boot in clock ticks.
    """

    pid: int
    started_ticks: int

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        return cls(pid=pid, started_ticks=_started_ticks(pid) or 0)

    @property
    def alive(self) -> bool:
        return _started_ticks(self.pid) == self.started_ticks

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def _started_ticks(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name may hold spaces and parentheses; the fields after it start behind the last one.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def end(process: ProcessId, *, signals: Sequence[tuple[signal.Signals, float]]) -> None:
    """Send each signal in turn and wait up to its seconds for the process to be gone.

    Raises: LabError when it survives the last one.
    """
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if not process.alive:
            _reap(process.pid)
            return
        for number, patience_s in signals:
            signal.pidfd_send_signal(fd, number)
            if select.select([fd], [], [], patience_s)[0]:
                _reap(process.pid)
                return
    except ProcessLookupError:
        return
    finally:
        os.close(fd)
    raise LabError(f"process {process.pid} is still alive after {', '.join(s.name for s, _ in signals)}")


def _reap(pid: int) -> None:
    child = _children.pop(pid, None)
    if child is not None:  # otherwise started by an earlier lab command: its parent is init
        child.wait()


GRACEFUL = ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0))
AT_ONCE = ((signal.SIGKILL, 5.0),)


def start_announcing(argv: Sequence[str], *, log: Path, timeout_s: float) -> tuple[ProcessId, dict[str, object]]:
    """Start a program that prints one line of JSON on stdout once it is ready.

    Raises: LabError with the end of its log when it ends or says nothing within `timeout_s`.
    """
    with log.open("ab") as sink:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=sink, start_new_session=True
        )
    assert child.stdout is not None  # noqa: S101  (PIPE was asked for)
    with child.stdout:
        ready, _, _ = select.select([child.stdout], [], [], timeout_s)
        line = child.stdout.readline() if ready else b""
    if not line:
        child.kill()
        child.wait()
        raise LabError(f"{argv[2]} did not get ready within {timeout_s:.0f} s:\n{tail(log)}")
    _children[child.pid] = child
    announced: dict[str, object] = json.loads(line)
    return ProcessId.of(child.pid), announced


def start_service(argv: Sequence[str], *, environment: Mapping[str, str], log: Path) -> ProcessId:
    """Start a program that tells nobody when it is ready; both of its outputs go to `log`."""
    with log.open("ab") as sink:
        child = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True, env=dict(environment)
        )
    _children[child.pid] = child
    return ProcessId.of(child.pid)


class ReadySocket:
    """The receiving end of sd_notify(3): a service sends READY=1 to the datagram socket named in NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(os.fspath(path))

    def wait(self, child: subprocess.Popen[bytes], timeout_s: float) -> bool:
        """True once READY=1 came, False when the child ended or the time was over."""
        fd = os.pidfd_open(child.pid)
        try:
            ready, _, _ = select.select([self._socket.fileno(), fd], [], [], timeout_s)
            return self._socket.fileno() in ready and b"READY=1" in self._socket.recv(4096)
        finally:
            os.close(fd)

    def close(self) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)


def start_notifying(
    argv: Sequence[str], *, environment: Mapping[str, str], log: Path, ready: ReadySocket
) -> subprocess.Popen[bytes]:
    """Start a service that tells `ready` when it is; `ReadySocket.wait` tells how that went."""
    with log.open("ab") as sink:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
            env={**environment, "NOTIFY_SOCKET": str(ready.path)},
        )
    _children[child.pid] = child
    return child


def tail(log: Path, *, line_count: int = 25) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-line_count:])
    except FileNotFoundError:
        return "(no log)"
