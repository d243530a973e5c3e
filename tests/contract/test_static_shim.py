"""The static plugin needs nothing of the host, and answers byte for byte what the plugin of a checkout answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.scripted_node import ScriptedNode, running
from tests.contract.shim_process import CONFIG, DEADLINE_S, SHIM, environment, shim

COMMANDS = ("ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION", "FOO", "")
CONFIGS = (
    CONFIG,
    b"",
    b"{",
    b'{"cniVersion":"0.4.0"}',
    b'{"cniVersion":"9.9.9"}',
    b'{"cniVersion":"1.1.0","x":"\xc3\xa9"}',
)
HOSTILE: tuple[dict[str, str | bytes], ...] = (
    {"CNI_ARGS": b"\xff"},
    {"CNI_NETNS": 'a"\\\n\x01é'},
    {"ENOKI_TIMEOUT_S": "x"},
    {"LC_ALL": "tr_TR.UTF-8"},
)


@pytest.fixture
def empty_root(static_plugin: Path, tmp_path: Path) -> Iterator[Path]:
    """A root directory that holds the executable, /proc and /run, and nothing else."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it changes the root directory")
    shutil.copy(static_plugin, tmp_path / "enoki")
    (tmp_path / "run").mkdir()
    (tmp_path / "proc").mkdir()
    with mounted(["-t", "proc", "proc"], tmp_path / "proc"):
        yield tmp_path


@contextmanager
def mounted(what: Sequence[str], where: Path) -> Iterator[None]:
    subprocess.run(["mount", *what, str(where)], check=True, timeout=DEADLINE_S)
    try:
        yield
    finally:
        subprocess.run(["umount", str(where)], check=True, timeout=DEADLINE_S)


@pytest.mark.parametrize("command", COMMANDS)
def test_both_kinds_answer_the_same_bytes(static_plugin: Path, tmp_path: Path, command: str) -> None:
    path = tmp_path / "agent.sock"
    with running(ScriptedNode(), path):
        for config, changes in [*((config, {}) for config in CONFIGS), *((CONFIG, changes) for changes in HOSTILE)]:
            outcomes = [shim(command, path, config, program=program, **changes) for program in (SHIM, static_plugin)]
            assert outcomes[0] == outcomes[1], (config, changes)


def test_its_failures_reach_the_agents_log_too(static_plugin: Path, tmp_path: Path) -> None:
    """One line beside the socket (docs/decisions/0073), the same from both."""
    lines = []
    for name, program in (("checkout", SHIM), ("static", static_plugin)):
        socket = tmp_path / name / "agent.sock"
        socket.parent.mkdir()
        assert shim("ADD", socket, program=program).status == 1
        (line,) = Path(f"{socket}.shim-log").read_text().splitlines()
        lines.append(json.loads(line))
    for line in lines:
        assert line["command"] == "ADD"
        assert line["message"]
    assert lines[0].keys() == lines[1].keys()


def test_it_runs_where_there_is_nothing_else(empty_root: Path) -> None:
    socket = empty_root / "run" / "agent.sock"
    with running(ScriptedNode(), socket):
        expected = shim("ADD", socket, program=SHIM)
        added = in_root(empty_root, "ADD")
        deleted = in_root(empty_root, "DEL")
    assert (added.returncode, added.stdout, added.stderr) == (0, expected.stdout, b"")
    assert (deleted.returncode, deleted.stdout, deleted.stderr) == (0, b"", b"")
    assert b'"code":11' in in_root(empty_root, "ADD").stdout, "without an agent"
    assert sorted(path.name for path in empty_root.iterdir()) == ["enoki", "proc", "run"]


def test_it_opens_no_file_of_the_host(static_plugin: Path, tmp_path: Path) -> None:
    """A host's Python, its environment or its locale cannot change what the plugin does."""
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit(3)")
    outcome = shim(
        "VERSION",
        tmp_path / "absent",
        program=static_plugin,
        PYTHONPATH=str(tmp_path),
        PYTHONHOME=str(tmp_path),
        PYTHONVERBOSE="1",
    )
    assert (outcome.status, outcome.stderr) == (0, b"")
    headers = subprocess.run(
        ["readelf", "--program-headers", str(static_plugin)], capture_output=True, check=True, timeout=DEADLINE_S
    ).stdout
    assert b"INTERP" not in headers, "no loader"
    assert b"DYNAMIC" not in headers, "no shared library"


def in_root(root: Path, command: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["/usr/sbin/chroot", str(root), "/enoki"],
        env=environment(command, Path("/run/agent.sock")),
        input=CONFIG,
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
