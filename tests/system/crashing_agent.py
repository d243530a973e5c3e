"""The agent, made to die at a chosen step: what the kill tests start instead of `python -m agent`.

What runs is `agent.__main__.main()`, unchanged: the steps are seen from outside, by a profile function
(sys.setprofile). This program imports the agent once and forks it whenever a test asks, so that a restart takes a
fraction of the second that the imports take. The fork dies with this program.

A step is the moment before or after a call of a function in `FUNCTIONS`, counted from the beginning of the request the
`Crash` names, on whatever thread. (That a coroutine is suspended and resumed meanwhile is no step: threads would make
the count differ from run to run, and nothing changes there.) For a netlink batch a step is also each place between two
of its messages: only the messages before it reach the kernel.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import select
import signal
import socket
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType

REPOSITORY = Path(__file__).resolve().parents[2]

FUNCTIONS = {
    "add": {
        "api/cni_routes.py": {"_Endpoint.answer"},
        "agent/attachments.py": {"Attachments.add", "Attachments._add", "Attachments._replace_predecessor"},
        "agent/ipam/pool.py": {"Pool.reserve"},
        "agent/ipam/ledger.py": {"Ledger.reserve"},
        "agent/datapath/kernel.py": {"KernelDatapath.wire"},
        "agent/datapath/pods.py": {"wire", "_create", "_configure", "_configure_pod"},
        "agent/datapath/netlink.py": {"NetlinkSocket.batch"},
        "agent/datapath/sysctls.py": {"_write"},
    },
    "delete": {
        "api/cni_routes.py": {"_Endpoint.answer"},
        "agent/attachments.py": {"Attachments.delete", "Attachments._delete", "Attachments._detach"},
        "agent/ipam/pool.py": {"Pool.release"},
        "agent/ipam/ledger.py": {"Ledger.release"},
        "agent/datapath/kernel.py": {"KernelDatapath.unwire"},
        "agent/datapath/pods.py": {"unwire", "_release"},
        "agent/datapath/released.py": {"put"},
        "agent/datapath/releases.py": {"Releases.released"},
        "agent/datapath/netlink.py": {"NetlinkSocket.batch"},
    },
}
"""Functions on the way of an ADD and of a DEL that change something, or wait for what does, by file."""

PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """When to die: at this step (from 1 on) of the first `verb` ("add" or "delete") of this container."""

    verb: str
    container_id: str
    step: int


def restart(agent_socket: Path, crash: Crash | None, *, kill: bool) -> list[str]:
    """Start the agent anew and return when it is ready; the steps its predecessor took.

    crash: when the new one dies by itself; None for never. kill: SIGKILL the predecessor now; otherwise it is expected
    to die by itself, at its own step.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
        control.settimeout(2 * PATIENCE_S)
        control.connect(_control_path(agent_socket))
        control.sendall(json.dumps({"crash": crash and asdict(crash), "kill": kill}).encode())
        reply = json.loads(control.recv(1 << 20))
    assert "error" not in reply, reply["error"]
    steps: list[str] = reply["steps"]
    return steps


def _comes_later(frame: FrameType) -> bool:
    """Whether it is a batch of what a release leaves for later, which is on nobody's way."""
    up: FrameType | None = frame
    while up is not None:
        file, function = up.f_code.co_filename, up.f_code.co_qualname
        if file.endswith("datapath/cooling.py") or (file.endswith("datapath/released.py") and function == "delete"):
            return True
        up = up.f_back
    return False


class Countdown:
    """The profile function: writes down every step, and kills the process at the chosen one."""

    def __init__(self, crash: Crash, steps_fd: int) -> None:
        self._crash = crash
        self._steps_fd = steps_fd
        self._lock = threading.Lock()
        self._names: dict[CodeType, str] = {}
        self._paused: set[FrameType] = set()
        self._begun = False
        self._count = 0

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if event not in {"call", "return"}:
            return
        code = frame.f_code
        name = self._names.get(code)
        if name is None:
            name = self._names[code] = self._step_name(code)
        if not name or self._is_pause(frame, event, argument) or _comes_later(frame):
            return
        if not (self._begun or self._begins(name, frame)):
            return
        self._begun = True
        self._take(f"{'before' if event == 'call' else 'after'} {name}")
        if event == "call" and name.endswith("NetlinkSocket.batch"):
            self._cut(frame, name)

    def _step_name(self, code: CodeType) -> str:
        """`<file> <function>` of a function whose calls are steps; empty for others."""
        path = Path(code.co_filename)
        file = path.relative_to(REPOSITORY).as_posix() if path.is_relative_to(REPOSITORY) else ""
        return f"{file} {code.co_qualname}" if code.co_qualname in FUNCTIONS[self._crash.verb].get(file, ()) else ""

    def _is_pause(self, frame: FrameType, event: str, argument: object) -> bool:
        """Whether a coroutine is only suspended (it hands a future out) or resumed."""
        if event == "return" and asyncio.isfuture(argument):
            self._paused.add(frame)
            return True
        if event == "call" and frame in self._paused:
            self._paused.discard(frame)
            return True
        return False

    def _begins(self, name: str, frame: FrameType) -> bool:
        if name != f"agent/attachments.py Attachments.{self._crash.verb}":
            return False
        local = frame.f_locals
        key = local["request"].holder.key if self._crash.verb == "add" else local["key"]
        return bool(key.container_id == self._crash.container_id)

    def _cut(self, frame: FrameType, name: str) -> None:
        """The places inside a batch."""
        messages = frame.f_locals["messages"]
        for sent_count in range(1, len(messages)):
            self._take(
                f"after message {sent_count} of {len(messages)} of {name}",
                sending=(frame.f_locals["self"]._socket, b"".join(messages[:sent_count])),
            )

    def _take(self, step: str, sending: tuple[socket.socket, bytes] | None = None) -> None:
        with self._lock:
            self._count += 1
            os.write(self._steps_fd, f"{step}\n".encode())
            if self._count == self._crash.step:
                if sending is not None:
                    sender, datagram = sending
                    sender.send(datagram)
                os.kill(os.getpid(), signal.SIGKILL)


def _control_path(agent_socket: Path) -> str:
    return f"{agent_socket}.control"


class _Nursery:
    """Forks agents, one at a time."""

    def __init__(self, agent_socket: Path) -> None:
        self._steps = Path(f"{agent_socket}.steps")
        self._ready_path = f"{agent_socket}.ready"
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ready.bind(self._ready_path)
        self._child = 0

    def start(self, crash: Crash | None) -> None:
        """Fork an agent and wait until it is ready. Raises: RuntimeError when it does not get there."""
        self._child = os.fork()
        if self._child == 0:
            self._be_the_agent(crash)
        child_fd = os.pidfd_open(self._child)
        try:
            found, _, _ = select.select([self._ready.fileno(), child_fd], [], [], PATIENCE_S)
            if self._ready.fileno() not in found:
                raise RuntimeError("the agent did not get ready; its log says why")
            self._ready.recv(64)
        finally:
            os.close(child_fd)

    def end(self, *, kill: bool) -> list[str]:
        """Wait for the agent's death by SIGKILL; the steps it took. Raises: RuntimeError when it lives or ended."""
        child_fd = os.pidfd_open(self._child)
        try:
            if kill:
                signal.pidfd_send_signal(child_fd, signal.SIGKILL)
            if not select.select([child_fd], [], [], PATIENCE_S)[0]:
                raise RuntimeError("the agent has not died at its step")
        finally:
            os.close(child_fd)
        _, status = os.waitpid(self._child, 0)
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            raise RuntimeError(f"the agent ended by itself, wait status {status:#x}")
        return self._steps.read_text().splitlines()

    def _be_the_agent(self, crash: Crash | None) -> None:
        status = 1
        try:
            from agent import __main__ as program  # noqa: PLC0415 - only the fork may become the agent
            from agent import assembly  # noqa: PLC0415

            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, prctl(2)
            random.seed()  # or every fork would draw the same numbers
            os.environ["NOTIFY_SOCKET"] = self._ready_path  # noqa: TID251
            steps_fd = os.open(self._steps, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            if crash is not None:
                countdown = Countdown(crash, steps_fd)
                threading.setprofile(countdown)
                announce = assembly.announce

                def armed() -> None:
                    # Not before: watching every call would make the start twice as long.
                    sys.setprofile(countdown)
                    announce()

                assembly.announce = armed
            status = program.main()
        except BaseException:  # noqa: BLE001 - a fork must not return into its parent's code
            traceback.print_exc()
        finally:
            os._exit(status)


def main() -> None:
    """Start an agent that never dies by itself; then one after the other, as told on the control socket."""
    import agent.__main__  # noqa: PLC0415 - imported once, for all forks
    import agent.assembly  # noqa: F401, PLC0415
    from agent.runtime.notify import notify_ready  # noqa: PLC0415

    agent_socket = Path(os.environ["ENOKI_SOCKET"])  # noqa: TID251
    starter = os.environ["NOTIFY_SOCKET"]  # noqa: TID251
    nursery = _Nursery(agent_socket)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(_control_path(agent_socket))
        listener.listen()
        nursery.start(None)
        notify_ready(starter)
        while True:
            control, _ = listener.accept()
            with control:
                told = json.loads(control.recv(4096))
                try:
                    steps = nursery.end(kill=told["kill"])
                    nursery.start(told["crash"] and Crash(**told["crash"]))
                    reply: dict[str, object] = {"steps": steps}
                except RuntimeError as problem:
                    reply = {"error": str(problem)}
                control.sendall(json.dumps(reply).encode())


if __name__ == "__main__":
    main()
