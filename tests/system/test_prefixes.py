"""Prefix delegation with the real agent: switched on and off on a node with pods, killed, and without a whole /28."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from lab import agent_api
from lab.lab import Lab, LabNode
from lab.pods import Pod, delete_namespace, make_namespace
from tests.system import three_truths as truths
from tests.system.agent_process import agent
from tests.system.conftest import LabFactory
from tests.system.eventually import eventually_equal
from tests.system.plugin_process import ask
from tests.system.vpc_control import VpcControl

PREFIXES = {"ENABLE_PREFIX_DELEGATION": "true", "WARM_PREFIX_TARGET": "1"}
POD_COUNT = 9
"""An m5.large's ENI has nine slots: as single addresses they are all taken by the first three pods and what is warm."""


@pytest.fixture(scope="module")
def vpc(lab: LabFactory) -> Lab:
    """A node for each test, their own agents stopped: every test starts what it needs."""
    vpc = lab(node_count=2, agent_environment={"MAX_ENI": "1", "IP_COOLDOWN_PERIOD": "1"})
    for number in range(2):
        vpc.stop_agent(number)
    return vpc


@pytest.fixture
def node(vpc: Lab, request: pytest.FixtureRequest) -> LabNode:
    number: int = request.param
    return vpc.nodes[number]


@pytest.fixture
def pods(vpc: Lab, node: LabNode) -> Iterator[list[Pod]]:
    """Namespaces only."""
    made = [
        Pod(container_id=f"{node.instance_id}-pod-{number}", name=f"web-{number}", socket=node.socket)
        for number in range(POD_COUNT)
    ]
    for pod in made:
        make_namespace(pod.container_id)
    yield made
    for pod in made:
        delete_namespace(pod.container_id)
    eventually_equal(lambda: truths.host_links(node), {})


@pytest.mark.parametrize("node", [0], indirect=True)
def test_a_switch_and_a_kill_keep_every_pod(vpc: Lab, node: LabNode, pods: list[Pod]) -> None:
    ec2 = truths.Ec2(vpc)
    with agent(vpc, node) as first:
        first.wait_until_ready()
        live = {pod.container_id: ask(pod, "ADD").address for pod in pods[:3]}
        assert ec2.prefixes(node) == set()
        first.send(signal.SIGTERM)
        assert first.exit_code() == 0
    with agent(vpc, node, **PREFIXES) as second:
        second.wait_until_ready()
        truths.assert_agreed(node, ec2, live)
        # The ENI is full of single addresses: some go to make room, and then there are prefixes.
        eventually_equal(lambda: len(ec2.prefixes(node)), 1)
        more = {pod.container_id: ask(pod, "ADD").address for pod in pods[3:]}
        assert all(ec2.prefix_of(node, address) for address in more.values())
        eni = agent_api.get(node.socket, "/v1/enis")[0]
        assert {block for block in eni["blocks"] if block.endswith("/28")} == {str(it) for it in ec2.prefixes(node)}
        assert len(eni["blocks"]) <= eni["slot_count"]
        truths.assert_agreed(node, ec2, live | more)
        second.send(signal.SIGKILL)
        second.exit_code()
    with agent(vpc, node) as third:
        third.wait_until_ready()
        truths.assert_agreed(node, ec2, live | more)
        assert [ask(pod, "DEL").code for pod in pods] == [0] * len(pods)
        assert truths.pod_routes(node) == {}


@pytest.mark.parametrize("node", [1], indirect=True)
def test_a_subnet_without_a_whole_prefix_still_serves(vpc: Lab, node: LabNode, pods: list[Pod]) -> None:
    ec2 = truths.Ec2(vpc)
    refusal = {"kind": "error", "code": "InsufficientCidrBlocks", "http_status": 400}
    # The first agent left nine single addresses. Prefixes are wanted, and refused: the nine go on serving.
    with (
        VpcControl(vpc).fault("AssignPrivateIpAddresses", times=1, **refusal),
        agent(vpc, node, **PREFIXES) as running,
    ):
        running.wait_until_ready()
        addresses = {ask(pod, "ADD").address for pod in pods}
        assert len(addresses) == POD_COUNT
        assert addresses <= ec2.pod_addresses(node)
        assert ec2.prefixes(node) == set()
        [refused] = [line for line in truths.log_events(node, "pool_degraded") if line["cause"] == "subnet_fragmented"]
        assert "prefixes of subnet-" in refused["scope"]
        assert [ask(pod, "DEL").code for pod in pods] == [0] * len(pods)
