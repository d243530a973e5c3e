"""Who owns the socket, who may open it, and how it closes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from agent.runtime.door import hold_socket
from agent.runtime.socket_server import serve

DEADLINE_S = 10.0
HOLDER = """
import asyncio, sys
from pathlib import Path
from agent.runtime.door import hold_socket
async def main():
    async with hold_socket(Path(sys.argv[1])):
        print("held", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "agent.sock"


@pytest.fixture
def open_umask() -> Any:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
async def test_the_mode_is_right_from_the_first_instant(path: Path) -> None:
    modes: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            try:
                modes.add(stat.S_IMODE(path.stat().st_mode))
            except FileNotFoundError:
                continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for _ in range(200):
            async with hold_socket(path):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
    finally:
        done.set()
        watcher.join()
    assert modes <= {0o600}


async def test_it_cleans_up_but_keeps_the_lock_file(path: Path) -> None:
    async with hold_socket(path) as sock:
        assert path.is_socket()
    assert sock.fileno() == -1
    assert not path.exists()
    assert Path(f"{path}.lock").exists()


async def test_something_else_in_the_way_is_not_deleted(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("precious")
    with pytest.raises(OSError, match="in use"):
        async with hold_socket(path):
            pytest.fail("bound over a file")
    assert path.read_text() == "precious"


class _Waiting(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.event = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "socket_lock_waiting":
            self.event.set()


@pytest.fixture
def waiting() -> Any:
    handler, logger = _Waiting(), logging.getLogger("agent.runtime.door")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler.event
    logger.removeHandler(handler)
    logger.setLevel(level)


async def test_a_second_agent_waits_and_takes_over(path: Path, waiting: asyncio.Event) -> None:
    order: list[str] = []

    async def second() -> None:
        async with hold_socket(path):
            order.append("second in")

    async with asyncio.timeout(DEADLINE_S):
        async with hold_socket(path) as first:
            task = asyncio.create_task(second())
            await waiting.wait()
            first.listen()
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
            order.append("first out")
        await task
    assert order == ["first out", "second in"]


async def test_a_waiting_agent_can_be_cancelled(path: Path, waiting: asyncio.Event) -> None:
    async def second() -> None:
        async with hold_socket(path):
            pytest.fail("two owners")

    async with asyncio.timeout(DEADLINE_S), hold_socket(path):
        task = asyncio.create_task(second())
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert path.is_socket()


async def test_a_killed_agent_leaves_a_socket_that_the_next_one_replaces(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        process.send_signal(signal.SIGKILL)
    assert path.is_socket()
    async with asyncio.timeout(DEADLINE_S), hold_socket(path) as sock:
        sock.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


class _App:
    """Answers `/quick` at once and everything else when told to."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = False

    async def __call__(self, scope: Any, _receive: Any, send: Any) -> None:
        if scope["path"] != "/quick":
            self.arrived.set()
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


async def ask(path: Path, target: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    reply = await reader.read()
    writer.close()
    await writer.wait_closed()
    return reply


async def until_refused(path: Path) -> None:
    while True:
        try:
            _, writer = await asyncio.open_unix_connection(path)
        except OSError:
            return
        writer.close()
        await writer.wait_closed()


async def until_served(path: Path) -> None:
    while True:
        try:
            assert (await ask(path, "/quick")).endswith(b"ok")
        except OSError:
            await asyncio.sleep(0)
        else:
            return


async def test_cancelling_drains(path: Path) -> None:
    app = _App()
    async with asyncio.timeout(DEADLINE_S), hold_socket(path) as sock:
        serving = asyncio.create_task(serve(app, sock, drain_s=DEADLINE_S))
        await until_served(path)
        in_flight = asyncio.create_task(ask(path, "/slow"))
        await app.arrived.wait()
        serving.cancel()
        await until_refused(path)
        serving.cancel()
        assert not in_flight.done()
        app.release.set()
        assert (await in_flight).startswith(b"HTTP/1.1 200")
        with pytest.raises(asyncio.CancelledError):
            await serving
    assert not app.cancelled


async def test_what_does_not_finish_in_time_is_cancelled(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = _App()
    async with asyncio.timeout(DEADLINE_S), hold_socket(path) as sock:
        serving = asyncio.create_task(serve(app, sock, drain_s=1.0))
        await until_served(path)
        in_flight = asyncio.create_task(ask(path, "/slow"))
        await app.arrived.wait()
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        await in_flight
    assert app.cancelled
    assert "timeout graceful shutdown exceeded" in caplog.text


async def test_signal_handlers_are_left_alone(path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with asyncio.timeout(DEADLINE_S), hold_socket(path) as sock:
        serving = asyncio.create_task(serve(_App(), sock))
        await until_served(path)
        assert signal.getsignal(signal.SIGTERM) is before
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving


async def test_who_comes_before_anybody_serves_waits_and_is_answered(path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), hold_socket(path) as sock:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET / HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body"})

        serving = asyncio.create_task(serve(app, sock))
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        serving.cancel()
        await asyncio.wait([serving])

    assert answer.startswith(b"HTTP/1.1 204")


async def test_the_wait_for_the_lock_is_used_once(path: Path) -> None:
    prepared = asyncio.Event()
    calls: list[int] = []

    def prepare() -> None:
        calls.append(1)
        prepared.set()

    async def second() -> None:
        async with hold_socket(path, while_waiting=prepare):
            pass

    async with asyncio.timeout(DEADLINE_S):
        async with hold_socket(path, while_waiting=lambda: calls.append(0)):
            task = asyncio.create_task(second())
            await prepared.wait()
        await task

    assert calls == [1]


async def test_who_waits_in_the_backlog_when_it_stops_is_answered(path: Path) -> None:
    """Connected, but neither accepted nor read: the loop was busy, and then it stopped."""
    app = _App()
    async with asyncio.timeout(DEADLINE_S), hold_socket(path) as sock:
        serving = asyncio.create_task(serve(app, sock))
        await until_served(path)
        serving.cancel()
        clients = []
        for _ in range(300):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(path))
            client.sendall(b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n")
            clients.append(client)
        with pytest.raises(asyncio.CancelledError):
            await serving
    replies = [await asyncio.to_thread(read_all, client) for client in clients]
    assert [reply for reply in replies if not reply.endswith(b"ok")] == []


def read_all(client: socket.socket) -> bytes:
    with client:
        client.settimeout(DEADLINE_S)
        return b"".join(iter(lambda: client.recv(4096), b""))


async def test_who_connects_and_says_nothing_does_not_hold_up_the_end(path: Path) -> None:
    async with asyncio.timeout(DEADLINE_S), hold_socket(path) as sock:
        serving = asyncio.create_task(serve(_App(), sock, drain_s=10 * DEADLINE_S))
        await until_served(path)
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(path))
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
