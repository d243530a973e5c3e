"""enokictl as a process against a scripted node: forms, exit codes, and what it says when things are wrong."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import yaml

from agent.events.model import Kind
from api.node_schemas import PlanView
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


def on_a_terminal(path: Path, *argv: str, columns: int = 80, environment: Mapping[str, str] | None = None) -> str:
    """What it writes to a terminal of that width."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    child = subprocess.Popen(
        [sys.executable, "-m", "ctl", *argv],
        env={"ENOKI_SOCKET": str(path), "PATH": "/usr/bin:/bin", "TERM": "xterm-256color", **(environment or {})},
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
    child.wait(DEADLINE_S)
    return seen.decode()


@pytest.mark.parametrize(("environment", "is_coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours_on_terminals_only(path: Path, environment: dict[str, str], is_coloured: bool) -> None:  # noqa: FBT001
    """On a terminal; without them when NO_COLOR says so."""
    assert ("\x1b[32m" in on_a_terminal(path, "explain", "node", environment=environment)) is is_coloured


@pytest.mark.parametrize("argv", ["pods", "enis", "pool", "budget", "doctor", "config", "plan", "history 10.0.1.9"])
def test_a_narrow_terminal_cuts_nothing(path: Path, argv: str) -> None:
    """Lines are left to the terminal to wrap: what is written does not depend on its width."""
    narrow = on_a_terminal(path, *argv.split(), columns=40)
    words = re.sub(r"\x1b\[[0-9;]*m", "", narrow).replace("\r\n", "\n")
    assert words == enokictl(path, *argv.split()).stdout
    assert all(line == line.rstrip() for line in words.splitlines())


def test_a_tree_is_wrapped_by_words(path: Path) -> None:
    words = on_a_terminal(path, "explain", "default/web-1", columns=40)
    tree = re.sub(r"\x1b\[[0-9;]*m", "", words).replace("\r\n", "\n")
    assert max(len(line) for line in tree.splitlines()) <= 40
    assert "\u2026" not in tree
    wide = enokictl(path, "explain", "default/web-1").stdout
    assert re.sub(r"[\s\u2500-\u257f]", "", tree) == re.sub(r"[\s\u2500-\u257f]", "", wide)


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
        (["trace", "default/web-0", "example.com"], 2, '"to" is "example.com": not an IPv4 or IPv6 address'),
        (["explain", "a/b/c"], 2, '"a/b/c" is no pod'),
        (["explain", "../../etc"], 2, "is no pod"),
        (["explain", "default/a b"], 2, 'path parameter "pod" is "a b"'),
        (["logs", "-n", "0"], 2, 'query parameter "limit" is "0"'),
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
        script += "COMP_WORDS=(enokictl pods -o j); COMP_CWORD=3; _enokictl; echo ${COMPREPLY[@]}\n"
        script += "COMP_WORDS=(enokictl explain n); COMP_CWORD=2; _enokictl; echo ${COMPREPLY[@]}\n"
        script += "COMP_WORDS=(enokictl pods --socket /et); COMP_CWORD=3; _enokictl; echo ${COMPREPLY[@]}\n"
        completed = subprocess.run(
            ["bash", "-c", script], capture_output=True, text=True, check=True, timeout=DEADLINE_S
        )
        assert completed.stdout.split() == ["explain", "--follow", "json", "node", "/etc"]
