"""The real plugin without an agent, or with one that is broken."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from plugin import shim as program
from tests.contract.scripted_node import WAIT_S, ScriptedNode, running
from tests.contract.shim_process import CONFIG, DEADLINE_S, ROOT, SHIM, environment, plugin_under_test, shim, started

REAL_REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}\n"
WITHOUT_AGENT = [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


@contextmanager
def replying(path: Path, *replies: bytes) -> Iterator[None]:
    """A listener that reads a request, sends a reply and closes the connection, once for each of `replies`."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def each() -> None:
        for reply in replies:
            connection, _ = listener.accept()
            with connection:
                head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
                length_bytes = int(head.partition(b"Content-Length: ")[2].partition(b"\r\n")[0])
                while len(body) < length_bytes:
                    body += connection.recv(65536)
                connection.sendall(reply)

    thread = threading.Thread(target=each)
    thread.start()
    try:
        yield
    finally:
        thread.join(WAIT_S)
        listener.close()
        assert not thread.is_alive()


@pytest.mark.parametrize(("command", "code"), WITHOUT_AGENT)
def test_no_socket(path: Path, command: str, code: int) -> None:
    outcome = shim(command, path)
    assert (outcome.status, outcome.body["code"], outcome.body["cniVersion"]) == (1, code, "1.0.0")
    assert str(path) in outcome.body["msg"]


@pytest.mark.parametrize(("command", "code"), WITHOUT_AGENT)
def test_a_socket_nobody_listens_on(path: Path, command: str, code: int) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    outcome = shim(command, path)
    assert (outcome.status, outcome.body["code"]) == (1, code)


def test_del_without_an_agent_succeeds(path: Path) -> None:
    absent = shim("DEL", path)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    refused = shim("DEL", path)
    for outcome in (absent, refused):
        assert (outcome.status, outcome.stdout, outcome.stderr) == (0, b"", b"")


def test_del_does_not_succeed_when_the_socket_cannot_be_reached_for_another_reason(tmp_path: Path) -> None:
    outcome = shim("DEL", tmp_path / ("x" * 200))
    assert (outcome.status, outcome.body["code"]) == (1, 11)


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "STATUS", "GC"])
def test_a_listener_that_never_answers(path: Path, command: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        outcome = shim(command, path, ENOKI_TIMEOUT_S="0.1")
    assert (outcome.status, outcome.body["code"]) == (1, 11)


def test_a_full_queue_is_given_up_after_the_connect_timeout(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))
        began_s = time.monotonic()
        outcome = shim("DEL", path)
        took_s = time.monotonic() - began_s
    assert (outcome.status, outcome.body["code"]) == (1, 11)
    assert program.CONNECT_TIMEOUT_S <= took_s < program.DEFAULT_TIMEOUT_S


def test_a_stopped_agent_and_the_same_agent_continued(path: Path) -> None:
    with agent_process(path) as agent:
        agent.send_signal(signal.SIGSTOP)
        try:
            frozen = shim("DEL", path, ENOKI_TIMEOUT_S="0.3")
        finally:
            agent.send_signal(signal.SIGCONT)
        assert (frozen.status, frozen.body["code"]) == (1, 11)
        assert shim("DEL", path).status == 0


def test_a_request_in_flight_is_answered_after_sigterm(path: Path) -> None:
    with agent_process(path) as agent, started("ADD", path) as process:
        assert agent.stdin is not None
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"add\n"
        agent.send_signal(signal.SIGTERM)
        assert agent.stdout.readline() == b"stopping\n"
        agent.stdin.write(b"go on\n")
        agent.stdin.flush()
        stdout, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 0
        assert json.loads(stdout)["ips"]
        assert agent.wait(DEADLINE_S) == 0
    assert not path.exists()
    assert shim("ADD", path).body["code"] == 11


def test_an_agent_killed_while_it_works(path: Path) -> None:
    with agent_process(path) as agent, started("ADD", path) as process:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"add\n"
        agent.kill()
        stdout, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, json.loads(stdout)["code"]) == (1, 11)


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK", "STATUS", "GC"])
def test_an_agent_that_closes_without_an_answer_is_asked_again(path: Path, command: str) -> None:
    with replying(path, b"", b"", REAL_REPLY):
        outcome = shim(command, path)
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, b"{}\n", b"")


@pytest.mark.parametrize(("command", "code"), [*WITHOUT_AGENT, ("DEL", None)])
def test_an_agent_that_closes_and_goes_is_no_agent(path: Path, command: str, code: int | None) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def leave() -> None:
            with listener.accept()[0] as connection:
                listener.close()
                connection.recv(1)

        leaving = threading.Thread(target=leave)
        leaving.start()
        outcome = shim(command, path)
        leaving.join(WAIT_S)
    assert outcome.status == (0 if code is None else 1)
    assert code is None or outcome.body["code"] == code


def test_an_agent_that_crashes_at_every_request_is_given_up(path: Path) -> None:
    with replying(path, *[b""] * len(program.ASK_AGAIN_AFTER_S)):
        outcome = shim("DEL", path)
    assert (outcome.status, outcome.body["code"]) == (1, 11)
    assert "went away" in outcome.body["msg"]


def test_asking_again_ends_with_the_time_for_the_whole_run(path: Path) -> None:
    """How often it asks in that time is the machine's: whoever comes is turned away, until nobody comes any more."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def turn_away() -> None:
            with suppress(OSError):  # shut down below
                while True:
                    listener.accept()[0].close()

        turning_away = threading.Thread(target=turn_away)
        turning_away.start()
        outcome = shim("ADD", path, ENOKI_TIMEOUT_S="0.1")
        listener.shutdown(socket.SHUT_RDWR)
        turning_away.join(WAIT_S)
    assert (outcome.status, outcome.body["code"]) == (1, 11)
    assert "in time" in outcome.body["msg"]


@pytest.mark.parametrize("length_bytes", range(1, len(REAL_REPLY)))
def test_every_truncated_reply_is_an_error(path: Path, length_bytes: int) -> None:
    with replying(path, REAL_REPLY[:length_bytes]):
        outcome = shim("ADD", path)
    assert (outcome.status, outcome.body["code"], outcome.stderr) == (1, 11, b"")


def test_the_whole_reply_is_not(path: Path) -> None:
    with replying(path, REAL_REPLY):
        outcome = shim("ADD", path)
    assert (outcome.status, outcome.stdout) == (0, b"{}\n")


@pytest.mark.parametrize(
    "reply",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{}",
        b"HTTP/1.1 2x0 OK\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 4\r\n\r\noops",
    ],
)
def test_a_reply_that_is_not_the_agents(path: Path, reply: bytes) -> None:
    with replying(path, reply):
        outcome = shim("ADD", path)
    assert (outcome.status, outcome.body["code"], outcome.stderr) == (1, 11, b"")


@pytest.mark.parametrize("command", ["", "add", "FOO", "ADD "])
def test_an_unknown_command(path: Path, command: str) -> None:
    outcome = shim(command, path)
    assert (outcome.status, outcome.body["code"]) == (1, 4)


@pytest.mark.parametrize("timeout", ["x", "-1", "0", "nan", "inf", "1e9"])
def test_a_bad_timeout(path: Path, timeout: str) -> None:
    outcome = shim("ADD", path, ENOKI_TIMEOUT_S=timeout)
    assert (outcome.status, outcome.body["code"]) == (1, 4)


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion":"0.3.1"}', "0.3.1"),
        (b'{ "cniVersion" : "0.4.0" }', "0.4.0"),
        (b'{"cniVersion":"1.0.0","prevResult":{"cniVersion":"0.3.1"}}', "1.0.0"),
        (b'{"cniVersion":"9.0.0"}', "1.1.0"),
        (b'{"cniVersion":1}', "1.1.0"),
        (b'{"cniVersion', "1.1.0"),
        (b"", "1.1.0"),
    ],
)
def test_version_needs_no_agent_and_answers_in_the_asked_version(path: Path, stdin: bytes, version: str) -> None:
    outcome = shim("VERSION", path, stdin)
    assert outcome.status == 0
    assert outcome.body == {"cniVersion": version, "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}


def test_closed_standard_input(path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {plugin_under_test()} <&-"],
        env=environment("ADD", path),
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, json.loads(done.stdout)["code"], done.stderr) == (1, 5, b"")


def test_closed_standard_output(path: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {plugin_under_test()} >&-"],
        env=environment("DEL", path),
        input=CONFIG,
        stderr=subprocess.PIPE,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, b"")


def test_it_finds_its_package_through_chains_of_links_and_in_a_fresh_copy(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "install"
    (copy / "bin").mkdir(parents=True)
    shutil.copy(SHIM, copy / "bin" / "enoki")
    shutil.copytree(ROOT / "plugin", copy / "plugin", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "absolute").symlink_to(copy / "bin" / "enoki")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "relative").symlink_to("../absolute")
    (tmp_path / "directory").symlink_to(copy / "bin")
    for way in ("install/bin/enoki", "absolute", "links/relative", "directory/enoki"):
        assert shim("VERSION", path, program=tmp_path / way).status == 0, way


def test_an_add_loads_nothing_but_the_interpreter(path: Path) -> None:
    source = f"""
import sys
before = set(sys.modules)
sys.path.insert(0, {str(ROOT)!r})
import plugin.shim
def leave(status, output):
    sys.stdout.write(" ".join([str(status), *sorted(set(sys.modules) - before)]))
    raise SystemExit
plugin.shim._leave = leave
plugin.shim.run()
"""
    with running(ScriptedNode(), path):
        done = subprocess.run(
            ["/usr/bin/python3", "-I", "-S", "-c", source],
            env=environment("ADD", path),
            input=CONFIG,
            capture_output=True,
            timeout=DEADLINE_S,
            check=True,
        )
    status, *modules = done.stdout.decode().split()
    assert status == "0"
    assert set(modules) <= {"_socket", "plugin", "plugin.shim"}


@contextmanager
def agent_process(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A scripted agent in a process of its own, ready."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.contract.scripted_node", str(path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()
