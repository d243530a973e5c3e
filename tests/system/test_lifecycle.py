"""How an agent comes and goes, and what the plugin answers while it is not there, not ready, or does not answer."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import agent_api
from lab.lab import REPOSITORY, Lab, LabNode
from lab.pods import Pod, delete_namespace, make_namespace
from tests.system import three_truths as truths
from tests.system.agent_process import agent
from tests.system.conftest import LabFactory
from tests.system.eventually import DEADLINE_S, eventually, eventually_equal
from tests.system.plugin_process import Asking, ask
from tests.system.vpc_control import VpcControl

ADDRESSES = 3
"""A t3.small's ENI has four addresses, one of them its own (EC2 User Guide, "IP addresses per network interface per
instance type"); with MAX_ENI=1 a fourth pod waits in vain."""

QUICK = {"ENOKI_ADD_DEADLINE_S": "2", "IP_COOLDOWN_PERIOD": "15"}
"""An ADD gives up soon; what cools is seen to cool, however slow the machine is."""

UNAVAILABLE: dict[str, Any] = {"kind": "error", "code": "Unavailable", "http_status": 503}
"""EC2's words for "it is us, try again" (EC2 API reference, "Error codes")."""


@pytest.fixture(scope="module")
def vpc(lab: LabFactory) -> Lab:
    """One node, its own agent stopped: every test starts what it needs."""
    vpc = lab(instance_type="t3.small", agent_environment={"MAX_ENI": "1", "IP_COOLDOWN_PERIOD": "1"})
    vpc.stop_agent(0)
    return vpc


@pytest.fixture
def pods(vpc: Lab, node: LabNode) -> Iterator[list[Pod]]:
    """As many pods as the node can have, and one more; namespaces only."""
    made = [
        Pod(
            container_id=f"{vpc.plan.name}-pod-{number}",
            name=f"web-{number}",
            socket=node.socket,
            network={"cniVersion": "1.1.0", "name": "enoki", "type": "enoki", "cni.dev/valid-attachments": []},
        )
        for number in range(ADDRESSES + 1)
    ]
    for pod in made:
        make_namespace(pod.container_id)
    yield made
    for pod in made:
        delete_namespace(pod.container_id)
    eventually_equal(lambda: truths.host_links(node), {})


def test_the_socket_is_for_root_alone(vpc: Lab, node: LabNode) -> None:
    with agent(vpc, node) as running:
        running.wait_until_ready()
        found = node.socket.stat().st_mode
        assert stat.S_ISSOCK(found)
        assert stat.S_IMODE(found) == 0o600


def test_sigterm_turns_waiters_away_and_keeps_pods(vpc: Lab, node: LabNode, pods: list[Pod]) -> None:
    with agent(vpc, node) as running:
        running.wait_until_ready()
        live = {pod.container_id: ask(pod, "ADD").address for pod in pods[:ADDRESSES]}
        waiting = Asking(pods[ADDRESSES], "ADD")
        eventually_equal(lambda: truths.waiter_count(node), 1)

        running.send(signal.SIGTERM)

        answer = waiting.answer()
        assert answer.code == 11
        assert "agent_stopping" in answer.text
        assert running.exit_code() == 0
    assert not node.socket.exists()
    assert set(truths.pod_routes(node)) == set(live.values())
    with agent(vpc, node) as successor:
        successor.wait_until_ready()
        truths.assert_agreed(node, truths.Ec2(vpc), live)
        assert [ask(pod, "DEL").code for pod in pods] == [0] * len(pods)


def test_sigterm_during_the_start(vpc: Lab, node: LabNode, pods: list[Pod]) -> None:
    with VpcControl(vpc).fault("DescribeNetworkInterfaces", **UNAVAILABLE), agent(vpc, node) as running:
        eventually(lambda: _stage(node, "addresses"), lambda stage: stage["state"] == "failed")
        waiting = Asking(pods[0], "ADD")
        eventually(lambda: _open_connections(running.pid, node), lambda count: count >= 1)
        running.send(signal.SIGTERM)
        assert waiting.answer().code == 11
        assert running.exit_code() == 0


def test_a_second_agent_waits_and_takes_over(vpc: Lab, node: LabNode, pods: list[Pod]) -> None:
    with agent(vpc, node) as first:
        first.wait_until_ready()
        old = ask(pods[0], "ADD").address
        already = len(truths.log_events(node, "socket_lock_waiting"))
        with agent(vpc, node) as second:
            eventually(lambda: len(truths.log_events(node, "socket_lock_waiting")), lambda count: count > already)
            assert ask(pods[1], "ADD").code == 0, "the first one still serves"
            assert ask(pods[1], "DEL").code == 0

            first.send(signal.SIGTERM)
            assert first.exit_code() == 0
            second.wait_until_ready()

            new = ask(pods[2], "ADD").address
            live = {pods[0].container_id: old, pods[2].container_id: new}
            truths.assert_agreed(node, truths.Ec2(vpc), live)
            assert [ask(pod, "DEL").code for pod in pods] == [0] * len(pods)
            assert truths.pod_routes(node) == {}


def test_settings_that_are_not_allowed_touch_nothing(requires_root: None) -> None:
    name = f"ek{os.getpid():x}-settings"
    make_namespace(name)
    try:
        before = _kernel(name)
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{name}", "--", sys.executable, "-m", "agent"],
            env={
                "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                "ENOKI_SOCKET": f"/run/{name}/agent.sock",
                "WARM_IP_TARGET": "many",
                "AWS_VPC_ENI_MTU": "20",
            },
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 78
        assert done.stderr.splitlines() == [
            'enoki: WARM_IP_TARGET is "many"; allowed: an integer from 0 to 10000',
            'enoki: AWS_VPC_ENI_MTU is "20"; allowed: an integer from 576 to 9001',
        ]
        assert _kernel(name) == before
        assert not Path(f"/run/{name}").exists()
    finally:
        delete_namespace(name)


def test_a_stopped_agent(vpc: Lab, node: LabNode, pods: list[Pod]) -> None:
    with agent(vpc, node) as running:
        running.wait_until_ready()
        ask(pods[0], "ADD")
        running.send(signal.SIGTERM)
        assert running.exit_code() == 0

    codes = {command: ask(pods[0], command).code for command in ("ADD", "DEL", "CHECK", "GC", "STATUS")}

    assert codes == {"ADD": 11, "DEL": 0, "CHECK": 11, "GC": 11, "STATUS": 50}
    delete_namespace(pods[0].container_id)
    with agent(vpc, node) as running:
        running.wait_until_ready()
        eventually_equal(lambda: truths.allocations(node), {})


def test_an_agent_that_cannot_start_says_why(vpc: Lab, node: LabNode, pods: list[Pod]) -> None:
    with agent(vpc, node) as earlier:
        earlier.wait_until_ready()
        leaving, staying = ask(pods[0], "ADD").address, ask(pods[1], "ADD").address
    refusal = VpcControl(vpc).fault("DescribeNetworkInterfaces", **UNAVAILABLE)
    with agent(vpc, node, **QUICK) as running:
        with refusal:
            stage = eventually(lambda: _stage(node, "addresses"), lambda stage: stage["state"] == "failed")
            assert "DescribeNetworkInterfaces" in stage["reason"]
            status, startup = agent_api.ask(node.socket, "/v1/startup")
            assert (status, startup["ready"]) == (503, False)
            for command in ("ADD", "CHECK", "GC"):
                answer = ask(pods[2], command)
                assert (answer.code, "stage addresses" in answer.text) == (11, True), command
            answer = ask(pods[2], "STATUS")
            assert (answer.code, "stage addresses" in answer.text) == (50, True)
            assert ask(pods[0], "DEL").code == 0
            assert set(truths.pod_routes(node)) == {staying}
            assert leaving in truths.cooling(node)
        running.wait_until_ready()
        truths.assert_agreed(node, truths.Ec2(vpc), {pods[1].container_id: staying})
        assert ask(pods[2], "ADD").code == 0
        assert [ask(pod, "DEL").code for pod in pods] == [0] * len(pods)


def test_a_frozen_agent(vpc: Lab, node: LabNode, pods: list[Pod]) -> None:
    with agent(vpc, node) as running:
        running.wait_until_ready()
        held = ask(pods[0], "ADD").address
        running.send(signal.SIGSTOP)
        codes = {command: ask(pods[1], command, ENOKI_TIMEOUT_S="0.5").code for command in ("ADD", "DEL", "STATUS")}
        assert codes == {"ADD": 11, "DEL": 11, "STATUS": 11}
        given_up = [Asking(pod, "ADD", ENOKI_TIMEOUT_S="0.5") for pod in pods[1:]]
        assert [each.answer().code for each in given_up] == [11] * len(given_up)

        running.send(signal.SIGCONT)

        # Whatever became of those requests, a runtime deletes what it believes to have failed.
        assert [ask(pod, "DEL").code for pod in pods[1:]] == [0] * len(given_up)
        eventually_equal(lambda: truths.allocations(node), {pods[0].container_id: held})
        truths.assert_agreed(node, truths.Ec2(vpc), {pods[0].container_id: held})
        assert ask(pods[0], "DEL").code == 0


def _stage(node: LabNode, name: str) -> dict[str, str]:
    """One stage of the start; `state` is empty while nobody listens."""
    try:
        _, startup = agent_api.ask(node.socket, "/v1/startup")
    except OSError:
        return {"state": ""}
    found: dict[str, str] = next(stage for stage in startup["stages"] if stage["name"] == name)
    return found


def _open_connections(pid: int, node: LabNode) -> int:
    """Connections that the agent has accepted on its socket."""
    listed = subprocess.run(
        ["ss", "-xpH", "state", "established"], capture_output=True, text=True, check=True, timeout=10
    )
    return sum(f"pid={pid}," in line and str(node.socket) in line for line in listed.stdout.splitlines())


def _kernel(namespace: str) -> list[str]:
    """What an agent would touch."""
    commands = (["ip", "rule"], ["ip", "route", "show", "table", "all"], ["nft", "list", "ruleset"])
    sysctls = ["sysctl", "net.ipv4.ip_forward", "net.ipv4.conf.all.rp_filter"]
    return [truths.run_in(Path("/run/netns") / namespace, *argv) for argv in (*commands, sysctls)]
