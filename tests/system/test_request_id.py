"""One request id from the plugin to EC2: the plugin makes it, every line has it, and EC2's own id leads to the call."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lab.lab import Lab, LabNode
from lab.pods import Pod, delete_namespace, make_namespace
from tests.contract.fuzz import attack, operations
from tests.system import three_truths as truths
from tests.system.conftest import LabFactory
from tests.system.eventually import eventually
from tests.system.plugin_process import Asking, ask
from tests.system.vpc_control import VpcControl

POD_COUNT = 8


@pytest.fixture(scope="module")
def vpc(lab: LabFactory) -> Lab:
    return lab(agent_environment={"WARM_IP_TARGET": "1", "MINIMUM_IP_TARGET": "1", "IP_COOLDOWN_PERIOD": "1"})


@pytest.fixture
def pods(vpc: Lab, node: LabNode) -> Iterator[list[Pod]]:
    made = [
        Pod(container_id=f"{vpc.plan.name}-id-{number}", name=f"id-{number}", socket=node.socket)
        for number in range(POD_COUNT)
    ]
    for pod in made:
        make_namespace(pod.container_id)
    yield made
    for pod in made:
        ask(pod, "DEL")
        delete_namespace(pod.container_id)


def test_from_the_plugin_to_the_call_that_ec2_got(vpc: Lab, node: LabNode, pods: list[Pod]) -> None:
    eventually(lambda: truths.counts(node), lambda counts: counts["free_count"] > 0)
    with VpcControl(vpc).fault("AssignPrivateIpAddresses", kind="delay", delay_s=0.3):
        for asking in [Asking(pod, "ADD") for pod in pods]:
            assert asking.answer().code == 0
    attached = {line["request_id"]: line for line in truths.log_events(node, "attached")}
    assert len(attached) == POD_COUNT
    calls = [line for line in truths.log_events(node, "ec2_call") if line["action"] == "AssignPrivateIpAddresses"]
    waited = [line for line in calls if set(line.get("request_id", "").split(",")) & attached.keys()]
    assert waited, calls
    at_ec2 = {call["request_id"]: call for call in VpcControl(vpc).calls("AssignPrivateIpAddresses")}
    for line in waited:
        call = at_ec2[line["aws_request_id"]]
        assert call["outcome"] == "ok"
        assert call["parameters"]["NetworkInterfaceId"] == line["eni_id"]


@pytest.mark.parametrize(
    "operation", operations(methods=frozenset({"get"})), ids=lambda one: f"{one.method} {one.path}"
)
def test_no_question_breaks_the_real_agent(node: LabNode, operation: object) -> None:
    """Beside the scripted node of the contract tests: here everything behind the routes is real."""
    assert attack(node.socket, operation, example_count=16) > 0
