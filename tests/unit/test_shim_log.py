"""What the CNI plugin could not say, from its line in the file to the agent's log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.shim_log import MAX_LINES, take
from plugin.shim import failure_line


def read(path: Path) -> list[dict[str, str]]:
    """Both turns: the file is set aside first, and read when nobody can be writing to it any more."""
    assert take(path) == []
    return take(path)


def test_a_line_of_the_plugin_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock.shim-log"
    environ = {b"CNI_COMMAND": b"ADD", b"CNI_CONTAINERID": b'c"1\n', b"CNI_ARGS": b"\xff"}
    path.write_bytes(failure_line(11, "the node agent is not there: \u00e9", environ))
    (found,) = read(path)
    assert found == {
        "command": "ADD",
        "container_id": 'c"1\n',
        "args": "\ufffd",
        "code": "11",
        "message": "the node agent is not there: \u00e9",
    }
    assert take(path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_line_is_short_whatever_the_environment(tmp_path: Path) -> None:
    line = failure_line(4, "m" * 9000, dict.fromkeys((b"CNI_COMMAND", b"CNI_CONTAINERID", b"CNI_ARGS"), b"\x01" * 9000))
    assert json.loads(line)["code"] == "4"
    assert len(line) < 16_000


@pytest.mark.parametrize("line", [b"", b"nonsense", b"[1]", b'"x"', b"\xff\x00", b'{"command":'])
def test_a_line_that_is_not_the_plugins_is_passed_over(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(line + b'\n{"code":"11","message":"x","event":"mine"}\n')
    assert read(path) == [{"code": "11", "message": "x"}]


def test_a_flood_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"code":"11"}\n' * (MAX_LINES + 7))
    found = read(path)
    assert len(found) == MAX_LINES + 1
    assert found[-1] == {"message": "and 7 more failures"}
