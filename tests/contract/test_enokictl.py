"""enokictl as a process against a scripted node: forms, exit codes, and what it says when things are wrong."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from agent.events.model import Kind
from api.operator_schemas import PlanView
from api.problems import Problem
from ctl.__main__ import parser
from tests.contract.scripted_node import ScriptedNode, running
from tests.contract.shim_process import ROOT

DEADLINE_S = 30.0

COMMANDS = {
    "status": 1,  # the scripted pool has a condition
    "pods": 0,
    "enis": 0,
    "pool": 0,
    "plan": 0,
    "explain default/web-0": 0,
    "explain web-0": 0,
    "explain default/web-1": 1,
    "explain node": 0,
    "budget": 0,
    "doctor": 1,
    "doctor --unwell": 1,
    "adopt": 1,
    "config": 0,
    "config --changed": 0,
    "trace default/web-0 203.0.113.5": 0,
    "history 10.0.1.9": 0,
    "logs --pod default/web-0 -n 5": 0,
    "log-level": 0,
    "log-level debug": 0,
}


@pytest.fixture(scope="module")
def node() -> ScriptedNode:
    return ScriptedNode()


@pytest.fixture(scope="module")
def path(node: ScriptedNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("ctl") / "agent.sock"
    with running(node, path):
        yield path


def enokictl(path: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ctl", *argv],
        env={"ENOKI_SOCKET": str(path), "PATH": "/usr/bin:/bin", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_in_its_three_forms(path: Path, command: str) -> None:
    table, as_json, as_yaml = (enokictl(path, *command.split(), "-o", form) for form in ("table", "json", "yaml"))
    for done in (table, as_json, as_yaml):
        assert (done.returncode, done.stderr) == (COMMANDS[command], "")
    assert table.stdout.strip()
    assert "\x1b" not in table.stdout
    assert yaml.safe_load(as_yaml.stdout) == json.loads(as_json.stdout)


def test_every_command_is_tried() -> None:
    _, commands = parser()
    assert {command.split()[0] for command in COMMANDS} | {"events", "completion", "support-bundle", "top"} == set(
        commands
    )


def test_people_read_cause_and_remedy(path: Path) -> None:
    words = enokictl(path, "explain", "default/web-1").stdout
    for part in ("waiting", "subnet_exhausted", "free=0", "free addresses in the subnet", "next try: in 62 s"):
        assert part in words


def test_colours_on_terminals_only(path: Path) -> None:
    """On a terminal; without them when NO_COLOR says so."""
    for environment, is_coloured in (({"TERM": "xterm-256color"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)):
        ours, theirs = pty.openpty()
        child = subprocess.Popen(
            [sys.executable, "-m", "ctl", "explain", "node"],
            env={"ENOKI_SOCKET": str(path), "PATH": "/usr/bin:/bin", **environment},
            cwd=ROOT,
            stdout=theirs,
        )
        os.close(theirs)
        seen = b""
        try:
            while chunk := os.read(ours, 65536):
                seen += chunk
        except OSError:
            pass  # EIO: the other end has closed
        finally:
            os.close(ours)
        assert child.wait(DEADLINE_S) == 0
        assert (b"\x1b[32m" in seen) is is_coloured


def test_events(node: ScriptedNode, path: Path) -> None:
    node.journal.publish(Kind.ENI, eni="eni-1", change="seen", words="\x1b[31mred\x07")
    done = enokictl(path, "events")
    assert (done.returncode, done.stderr) == (0, "")
    assert "eni=eni-1" in done.stdout
    assert "\x1b" not in done.stdout
    (line,) = enokictl(path, "events", "-o", "json").stdout.splitlines()
    event = json.loads(line)
    assert event["fields"]["eni"] == "eni-1"
    assert yaml.safe_load(enokictl(path, "events", "-o", "yaml").stdout) == event
    assert enokictl(path, "events", "--after", str(event["id"])).stdout == ""


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["explain", "default/nobody"], 4, "enokictl: Unknown pod: default/nobody is not known\n"),
        (["trace", "default/other", "10.0.0.1"], 4, "Unknown pod"),
        (["trace", "default/web-0", "example.com"], 4, "Invalid parameters"),
        (["explain", "a/b/c"], 4, '"a/b/c" is no pod'),
        (["explain", "../../etc"], 4, "is no pod"),
        (["explain", "default/a b"], 4, "Invalid parameters"),
        (["frobnicate"], 2, "invalid choice"),
        ([], 2, "required"),
        (["pods", "--outptu", "json"], 2, "unrecognized"),
    ],
)
def test_what_cannot_be_answered(path: Path, argv: list[str], code: int, words: str) -> None:
    done = enokictl(path, *argv)
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_no_agent(tmp_path: Path) -> None:
    done = enokictl(tmp_path / "agent.sock", "status")
    assert (done.returncode, done.stdout) == (3, "")
    assert "No such file" in done.stderr
    assert "ENOKI_SOCKET" in done.stderr
    assert enokictl(tmp_path / "agent.sock", "events", "--follow").returncode == 3
    assert enokictl(Path("/elsewhere"), "pods", "--socket", str(tmp_path / "agent.sock")).returncode == 3


def test_a_problem_without_a_body_is_told(tmp_path: Path) -> None:
    class Refusing(ScriptedNode):
        def plan(self) -> PlanView:
            raise Problem(503, "Agent starting", "stage kernel is running")

    with running(Refusing(), tmp_path / "agent.sock"):
        done = enokictl(tmp_path / "agent.sock", "plan")
    assert (done.returncode, done.stderr) == (4, "enokictl: Agent starting: stage kernel is running\n")


def test_a_reader_that_has_seen_enough(path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m ctl pool | true"],
        env={"ENOKI_SOCKET": str(path), "PATH": "/usr/bin:/bin"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(path: Path, shell: str) -> None:
    done = enokictl(path, "completion", shell)
    assert done.returncode == 0
    _, commands = parser()
    assert all(name in done.stdout for name in commands)
    if shell == "bash":
        script = f"{done.stdout}\nCOMP_WORDS=(enokictl ex); COMP_CWORD=1; _enokictl; echo ${{COMPREPLY[@]}}\n"
        script += "COMP_WORDS=(enokictl events --f); COMP_CWORD=2; _enokictl; echo ${COMPREPLY[@]}\n"
        completed = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, check=True, timeout=DEADLINE_S
        )
        assert completed.stdout.split() == ["explain", "--follow"]
