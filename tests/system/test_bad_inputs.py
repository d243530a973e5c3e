"""Hostile environments and standard inputs through the real plugin to the real agent: each a clear CNI error, nothing
left behind, and the agent none the worse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from lab.lab import Lab, LabNode
from lab.pods import SHIM, Pod, delete_namespace, make_namespace
from tests.contract.bad_requests import BAD_REQUESTS, BadRequest
from tests.contract.shim_process import Outcome, shim
from tests.system import three_truths as truths
from tests.system.conftest import LabFactory
from tests.system.eventually import eventually_equal
from tests.system.plugin_process import ask

VARIABLES = {"container_id": "CNI_CONTAINERID", "netns": "CNI_NETNS", "ifname": "CNI_IFNAME", "args": "CNI_ARGS"}
ENVIRONMENT, CONFIG, TRY_AGAIN = 4, 7, 11
BUGS = frozenset({100, 999})
"""Codes that mean a failure inside: nothing a runtime says may cause one."""


@pytest.fixture(scope="module")
def vpc(lab: LabFactory) -> Lab:
    return lab(agent_environment={"IP_COOLDOWN_PERIOD": "1"})


@pytest.fixture(scope="module")
def victim(vpc: Lab, node: LabNode) -> Iterator[Pod]:
    """A pod that is attached, and must stay so."""
    pod = Pod(container_id=f"{vpc.plan.name}-pod-victim", name="victim", socket=node.socket)
    pod.start()
    yield pod
    assert ask(pod, "DEL").code == 0
    delete_namespace(pod.container_id)


@pytest.fixture(autouse=True)
def unharmed(vpc: Lab, node: LabNode, victim: Pod) -> Iterator[None]:
    """After every test: only the victim is there, and the same agent still runs and has logged no bug."""
    pid, live = vpc.agent_pid(0), truths.allocations(node)
    yield
    truths.assert_agreed(node, truths.Ec2(vpc), live)
    eventually_equal(lambda: truths.owners(node), {victim.container_id})
    assert vpc.agent_pid(0) == pid
    assert vpc.running
    assert [line for line in truths.log_events(node) if line["level"] == "error" or "traceback" in line] == []


@pytest.fixture
def spare(vpc: Lab) -> Iterator[str]:
    """The path of a network namespace that nobody uses."""
    name = f"{vpc.plan.name}-pod-spare"
    make_namespace(name)
    yield f"/run/netns/{name}"
    delete_namespace(name)


@settings(
    max_examples=500,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(request=BAD_REQUESTS)
def test_a_malformed_add(node: LabNode, spare: str, request: BadRequest) -> None:
    """All but the one thing is right: the namespace exists, and a pod could start in it."""
    assume(not any("\x00" in value for value in request.members.values()))
    members = {"netns": spare, "container_id": "spare", **request.members}
    outcome = _shim(node, "ADD", request.config, members)
    assert outcome.body["code"] == request.code


@settings(
    max_examples=200,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    command=st.sampled_from(["DEL", "CHECK", "STATUS", "GC"]),
    config=st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=10)),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    ),
)
def test_noise_in_any_other_command(node: LabNode, victim: Pod, command: str, config: bytes) -> None:
    """It is about the victim, which noise must not detach."""
    outcome = _shim(node, command, config, {"netns": victim.netns, "container_id": victim.container_id})
    assert 1 <= outcome.body["code"] <= CONFIG


def _fifo(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


def _file(path: Path) -> str:
    path.write_text("not a namespace")
    return str(path)


def _loop(path: Path) -> str:
    path.symlink_to(path)
    return str(path)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda _: "/run/netns/there-is-no-such-namespace", id="absent"),
        pytest.param(lambda path: str(path.parent), id="directory"),
        pytest.param(_file, id="file"),
        pytest.param(_fifo, id="fifo"),
        pytest.param(_loop, id="loop"),
        pytest.param(lambda _: "/dev/zero", id="device"),
        pytest.param(lambda _: "/dev/tty", id="terminal"),
        pytest.param(lambda _: "/proc/self/ns/mnt", id="mount namespace"),
        pytest.param(lambda _: "/proc/self/ns/net", id="the agent's own"),
        pytest.param(lambda _: "/proc/self/fd/0", id="descriptor"),
        pytest.param(lambda _: "/proc/kmsg", id="kernel log"),
        pytest.param(lambda _: "/etc/passwd/x", id="below a file"),
    ],
)
@pytest.mark.parametrize("command", ["ADD", "CHECK"])
def test_what_is_no_network_namespace(
    node: LabNode, victim: Pod, tmp_path: Path, make: Callable[[Path], str], command: str
) -> None:
    container_id = victim.container_id if command == "CHECK" else "stranger"
    outcome = _shim(node, command, _config(), {"netns": make(tmp_path / "x"), "container_id": container_id})
    assert outcome.body["code"] == ENVIRONMENT
    assert "netns_invalid" in outcome.body["msg"]


def test_the_node_itself_is_no_pod(node: LabNode) -> None:
    outcome = _shim(node, "ADD", _config(), {"netns": f"/run/netns/{node.namespace}", "container_id": "stranger"})
    assert outcome.body["code"] == ENVIRONMENT
    assert "own network namespace" in outcome.body["msg"]


def test_an_interface_name_that_is_taken(node: LabNode, spare: str) -> None:
    outcome = _shim(node, "ADD", _config(), {"netns": spare, "container_id": "stranger", "ifname": "lo"})
    assert outcome.body["code"] == CONFIG
    assert "already has an interface lo" in outcome.body["msg"]


def test_another_container_in_the_namespace_of_the_victim(node: LabNode, victim: Pod) -> None:
    members = {"netns": victim.netns, "container_id": "stranger", "args": ""}
    outcome = _shim(node, "ADD", _config(), members)
    assert outcome.body["code"] == CONFIG
    assert _shim(node, "DEL", _config(), members, status=0).stdout == b""
    assert ask(victim, "CHECK").code == 0


def test_a_del_with_the_namespace_of_another(node: LabNode, victim: Pod) -> None:
    """What DEL detaches is the container it names, whatever namespace and pod it adds."""
    assert ask(replace(victim, container_id="stranger"), "DEL").code == 0
    assert victim.container_id in truths.allocations(node)


def test_a_huge_configuration(node: LabNode, spare: str) -> None:
    members = {"netns": spare, "container_id": "stranger"}
    padded = _config()[:-1] + b',"runtimeConfig":"' + b"x" * 2_000_000 + b'"}'
    assert _shim(node, "ADD", padded, members).body["code"] == 6


def test_a_configuration_that_never_ends(node: LabNode, victim: Pod) -> None:
    """The plugin's own deadline; the agent never hears of it."""
    child = subprocess.Popen(
        [SHIM],
        env={**victim.environment("ADD"), "ENOKI_TIMEOUT_S": "0.3"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b'{"cniVersion":')
        child.stdin.flush()
        assert json.loads(child.stdout.readline())["code"] == TRY_AGAIN
        assert child.wait(timeout=10) == 1
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()


def _config(**members: Any) -> bytes:
    return json.dumps({"cniVersion": "1.1.0", "name": "enoki", "type": "enoki", **members}).encode()


def _shim(node: LabNode, command: str, config: bytes, members: Mapping[str, str], *, status: int = 1) -> Outcome:
    """Run the plugin; it must end as told, silently on standard error, and without a failure inside."""
    changes: dict[str, Any] = {VARIABLES[name]: value.encode() for name, value in members.items()}
    outcome = shim(command, node.socket, config, **changes)
    assert (outcome.status, outcome.stderr) == (status, b"")
    if status:
        assert outcome.body["msg"]
        assert outcome.body["code"] not in BUGS
    return outcome
