"""The real plugin against the real server around a scripted agent."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.cni_body import MAX_BODY_BYTES
from api.cni_call import SUPPORTED_VERSIONS
from api.problems import CniCode, CniError
from plugin import shim as program
from tests.contract.scripted_node import WAIT_S, ScriptedNode, running
from tests.contract.shim_process import CONFIG, DEADLINE_S, environment, plugin_under_test, shim, started


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.sock"


@pytest.fixture
def node(path: Path) -> Iterator[ScriptedNode]:
    scripted = ScriptedNode()
    with running(scripted, path):
        yield scripted


def test_an_add_prints_the_result_and_carries_the_environment(node: ScriptedNode, path: Path) -> None:
    outcome = shim("ADD", path)
    assert outcome.status == 0
    assert outcome.stderr == b""
    assert outcome.body["ips"] == [{"address": "10.0.1.9/32", "gateway": "169.254.1.1", "interface": 1}]
    (call,) = node.calls
    assert (call.container_id, call.netns, call.ifname) == ("c1", "/var/run/netns/c1", "eth0")
    assert (call.pod_namespace, call.pod_name, call.pod_uid) == ("default", "web-0", "u-1")
    assert call.config == json.loads(CONFIG)


def test_each_run_has_a_request_id_of_its_own(node: ScriptedNode, path: Path) -> None:
    for _ in range(2):
        assert shim("ADD", path).status == 0
    first, second = (call.request_id for call in node.calls)
    assert first != second
    assert len(first) == 12


@pytest.mark.parametrize("command", ["DEL", "CHECK"])
def test_success_without_a_result_prints_nothing(node: ScriptedNode, path: Path, command: str) -> None:
    outcome = shim(command, path)
    assert (outcome.status, outcome.stdout, outcome.stderr) == (0, b"", b"")
    assert [call.verb for call in node.calls] == [command]


def test_gc_passes_the_valid_attachments_on(node: ScriptedNode, path: Path) -> None:
    config = (
        b'{"cniVersion":"1.1.0","name":"enoki","type":"enoki",'
        b'"cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]}'
    )
    assert shim("GC", path, config).status == 0
    assert node.valid == {("c1", "eth0")}


def test_status_reports_what_the_agent_says(node: ScriptedNode, path: Path) -> None:
    config = CONFIG.replace(b"1.0.0", b"1.1.0")
    assert shim("STATUS", path, config).status == 0
    node.ready = False
    outcome = shim("STATUS", path, config)
    assert (outcome.status, outcome.body["code"]) == (1, 50)


def test_an_error_object_is_printed_untouched(node: ScriptedNode, path: Path) -> None:
    node.failure = CniError(CniCode.TRY_AGAIN_LATER, "subnet_exhausted: subnet-0a1b is full", "ünï\n")
    outcome = shim("ADD", path)
    assert outcome.status == 1
    assert outcome.body == {
        "cniVersion": "1.0.0",
        "code": 11,
        "msg": "subnet_exhausted: subnet-0a1b is full",
        "details": "ünï\n",
    }


def test_a_bug_in_the_agent_is_an_error_object_without_a_traceback(node: ScriptedNode, path: Path) -> None:
    node.failure = RuntimeError("secret")
    outcome = shim("ADD", path)
    assert (outcome.status, outcome.body["code"]) == (1, 999)
    assert b"secret" not in outcome.stdout


def test_odd_characters_in_variables_arrive_as_they_are(node: ScriptedNode, path: Path) -> None:
    netns = '/run/"quoted"\\back/ünï'
    assert shim("ADD", path, CNI_NETNS=netns).status == 0
    assert node.calls[0].netns == netns


def test_a_variable_that_is_not_utf8_is_refused(node: ScriptedNode, path: Path) -> None:
    outcome = shim("ADD", path, CNI_NETNS=b"/run/\xff")
    assert (outcome.status, outcome.body["code"]) == (1, 4)
    assert node.calls == []


@pytest.mark.parametrize(
    "config",
    [
        CONFIG + b',"container_id":"other"',
        CONFIG + b',"config":{}',
        CONFIG + b',"extra":1',
        CONFIG + b'},{"a":1',
        b'1,"config":' + CONFIG,
        CONFIG + b"}",
        b"",
        b"{",
        b"null",
        b"\xff" + CONFIG,
        b'{"cniVersion":NaN}',
        b"[" * 100_000,
    ],
)
def test_standard_input_cannot_smuggle_anything_in(node: ScriptedNode, path: Path, config: bytes) -> None:
    outcome = shim("ADD", path, config)
    assert (outcome.status, outcome.body["code"], outcome.stderr) == (1, 6, b"")
    assert node.calls == []


def test_a_large_configuration_arrives_and_a_larger_one_is_refused(node: ScriptedNode, path: Path) -> None:
    def config(size_bytes: int) -> bytes:
        head, tail = CONFIG[:-1] + b',"padding":"', b'"}'
        return head + b"x" * (size_bytes - len(head) - len(tail)) + tail

    assert shim("ADD", path, config(program.MAX_STDIN_BYTES)).status == 0
    outcome = shim("ADD", path, config(program.MAX_STDIN_BYTES + 1))
    assert (outcome.status, outcome.body["code"]) == (1, 6)
    assert program.MAX_STDIN_BYTES < MAX_BODY_BYTES


def test_the_plugin_and_the_agent_speak_the_same_versions() -> None:
    assert tuple(version.decode() for version in program.SUPPORTED_VERSIONS) == SUPPORTED_VERSIONS


def test_killing_the_plugin_cancels_its_parked_add(node: ScriptedNode, path: Path) -> None:
    node.hold_adds = True
    with started("ADD", path) as process:
        assert node.add_arrived.wait(WAIT_S)
        process.kill()
        assert node.add_cancelled.wait(WAIT_S)


def test_a_closed_standard_output_is_not_a_success(node: ScriptedNode, path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [plugin_under_test()],
            env=environment("ADD", path),
            input=CONFIG,
            stdout=write_end,
            stderr=subprocess.PIPE,
            timeout=DEADLINE_S,
            check=False,
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_hundred_at_once(node: ScriptedNode, path: Path) -> None:
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(shim("ADD", path).status)) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S * 3)
    assert statuses == [0] * 100
