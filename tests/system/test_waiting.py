"""A pod never waits for a poll: what happens to an ADD that finds no free address, and what it is told in the end."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from typing import Any, Protocol

import pytest

from lab.lab import Lab, LabNode
from lab.pods import Pod, delete_namespace, make_namespace
from tests.system import three_truths as truths
from tests.system.conftest import LabFactory
from tests.system.eventually import eventually, eventually_equal
from tests.system.plugin_process import Asking, ask
from tests.system.vpc_control import VpcControl

TRY_AGAIN_LATER = 11
SUPERSEDED = 101
REFUSED_AFTER_S = 3
"""An ADD's deadline where it is to be refused."""
SERVED_WITHIN_S = 10
"""An ADD's deadline where it is to be served: enough for what it waits for, on a loaded machine too."""
GRANT_S = 1.0
"""How long EC2 takes in the test that waits for it."""
HAND_OVER_S = 0.5
"""From an address's coming into the pool to its holder there is nothing to wait for; a poll would take seconds."""


class Fill(Protocol):
    """Makes pods on a lab's node: `count` with addresses, then `spare_count` with a namespace only."""

    def __call__(self, lab: Lab, count: int, spare_count: int = 3) -> list[Pod]: ...


@pytest.fixture
def fill(requires_root: None) -> Iterator[Fill]:
    """A `Fill`; at the end its pods are gone, and nothing cools any more."""
    with ExitStack() as ends:

        def make(lab: Lab, count: int, spare_count: int = 3) -> list[Pod]:
            node = lab.nodes[0]
            ends.callback(eventually_equal, lambda: truths.counts(node)["cooling_count"], 0)
            pods = [
                Pod(container_id=f"{lab.plan.name}-pod-{number}", name=f"web-{number}", socket=node.socket)
                for number in range(count + spare_count)
            ]
            for pod in pods:
                make_namespace(pod.container_id)
                ends.callback(delete_namespace, pod.container_id)
                ends.callback(ask, pod, "DEL")
            for pod in pods[:count]:
                assert ask(pod, "ADD").code == 0
            return pods

        yield make


def _environment(add_deadline_s: int) -> dict[str, str]:
    return {"WARM_IP_TARGET": "1", "IP_COOLDOWN_PERIOD": "1", "ENOKI_ADD_DEADLINE_S": str(add_deadline_s)}


@pytest.fixture(scope="module")
def growing(lab: LabFactory) -> Lab:
    """A node that keeps few addresses warm and may ask EC2 for more."""
    return lab(agent_environment=_environment(SERVED_WITHIN_S))


@pytest.fixture(scope="module")
def refused(lab: LabFactory) -> Lab:
    """Such a node, whose ADDs soon give up."""
    return lab(agent_environment=_environment(REFUSED_AFTER_S))


FULL = 3


@pytest.fixture(scope="module")
def full(lab: LabFactory) -> Lab:
    """A node with room for three pods: a t3.small's ENI has four addresses (EC2 User Guide, "IP addresses per network
    interface per instance type"), one of them its own."""
    environment = {"MAX_ENI": "1", "IP_COOLDOWN_PERIOD": "1", "ENOKI_ADD_DEADLINE_S": str(SERVED_WITHIN_S)}
    return lab(instance_type="t3.small", agent_environment=environment)


def test_it_is_served_the_moment_ec2_grants(growing: Lab, fill: Fill) -> None:
    node = growing.nodes[0]
    with VpcControl(growing).fault("AssignPrivateIpAddresses", kind="delay", delay_s=GRANT_S):
        pods = fill(growing, 0, truths.counts(node)["free_count"] + 2)
        asking = [Asking(pod, "ADD") for pod in pods]
        eventually(lambda: truths.waiter_count(node), lambda count: count > 0)
        addresses = {each.answer().address for each in asking}
    assert addresses <= truths.Ec2(growing).pod_addresses(node)
    assert len(addresses) == len(pods)
    last = _became(node, "held")[-1]
    came = next(one for one in _became(node, "free") if one["fields"]["address"] == last["fields"]["address"])
    assert came["fields"]["before"] == "unknown"
    assert any(line["duration_s"] >= GRANT_S for line in truths.log_events(node, "ec2_call"))
    assert _time(last["at"]) - _time(came["at"]) < HAND_OVER_S


def test_first_come_first_served(full: Lab, fill: Fill) -> None:
    node = full.nodes[0]
    pods = fill(full, FULL)
    waiting = []
    for number, pod in enumerate(pods[FULL:], 1):
        waiting.append(Asking(pod, "ADD"))
        eventually_equal(lambda: truths.waiter_count(node), number)

    for holder in pods[:FULL]:
        assert ask(holder, "DEL").code == 0

    assert len({each.answer().address for each in waiting}) == len(waiting)
    # In the order of being given an address; the kernel's work on them runs side by side.
    served = [one["fields"]["container_id"] for one in _became(node, "held")][-len(waiting) :]
    assert served == [pod.container_id for pod in pods[FULL:]]


def test_a_client_that_dies_leaves_nothing(full: Lab, fill: Fill) -> None:
    node = full.nodes[0]
    pods = fill(full, FULL)
    waiting = Asking(pods[FULL], "ADD")
    eventually_equal(lambda: truths.waiter_count(node), 1)

    waiting.kill()

    eventually_equal(lambda: truths.waiter_count(node), 0, deadline_s=SERVED_WITHIN_S / 2)
    assert ask(pods[0], "DEL").code == 0
    eventually_equal(lambda: truths.counts(node)["free_count"], 1)
    assert set(truths.allocations(node)) == {pod.container_id for pod in pods[1:FULL]}
    assert len(truths.pod_routes(node)) == FULL - 1


def test_a_del_overtakes_a_waiting_add(full: Lab, fill: Fill) -> None:
    node = full.nodes[0]
    pods = fill(full, FULL)
    live = truths.allocations(node)
    waiting = Asking(pods[FULL], "ADD")
    eventually_equal(lambda: truths.waiter_count(node), 1)

    assert ask(pods[FULL], "DEL").code == 0

    answer = waiting.answer()
    assert (answer.code, "attachment_superseded" in answer.text) == (SUPERSEDED, True)
    assert truths.waiter_count(node) == 0
    assert truths.allocations(node) == live


def test_a_full_instance(full: Lab, fill: Fill) -> None:
    pods = fill(full, FULL)
    text = _refusal(pods[FULL])
    assert text.startswith("instance_limit: all 3 addresses")
    assert "held=3" in text
    assert "eni_limit=1" in text
    assert "MAX_ENI" in text


def test_a_full_instance_whose_addresses_cool(full: Lab, fill: Fill) -> None:
    """What cools now is free in time: the ADD outlives the cooldown."""
    pods = fill(full, FULL)
    waiting = Asking(pods[FULL], "ADD")
    eventually_equal(lambda: truths.waiter_count(full.nodes[0]), 1)
    address = truths.allocations(full.nodes[0])[pods[0].container_id]
    assert ask(pods[0], "DEL").code == 0
    assert address in truths.cooling(full.nodes[0])
    assert waiting.answer().address == address


@pytest.mark.parametrize(
    ("code", "status", "cause"),
    [
        ("RequestLimitExceeded", 503, "ec2_throttled"),
        ("UnauthorizedOperation", 403, "iam_denied"),
        ("InsufficientFreeAddressesInSubnet", 400, "subnet_exhausted"),
        ("InternalError", 500, "ec2_unavailable"),
    ],
)
def test_what_ec2_refuses_is_named(refused: Lab, fill: Fill, code: str, status: int, cause: str) -> None:
    node, control = refused.nodes[0], VpcControl(refused)
    # The pool leaves EC2 alone for a while after a refusal; a new agent has met none.
    refused.stop_agent(0)
    refused.start_agents([0])
    eventually(lambda: truths.counts(node)["free_count"], lambda count: count > 0)
    with ExitStack() as faults:
        for action in ("AssignPrivateIpAddresses", "CreateNetworkInterface"):
            faults.enter_context(control.fault(action, kind="error", code=code, http_status=status))
        pods = fill(refused, truths.counts(node)["free_count"])
        text = _refusal(pods[-1])
    # Which of the two is asked depends on the room that the growth before left on the ENI.
    assert re.match(rf"{cause}: no address is free, and the pool cannot grow: (Assign|Create)[A-Z]", text), text
    assert f"code={code}" in text, text
    assert "failures=" in text
    assert "next try in" in text
    assert truths.waiter_count(node) == 0


def test_a_subnet_without_addresses(lab: LabFactory, fill: Fill) -> None:
    """A /28 has eleven addresses (Amazon VPC User Guide, "Subnet sizing": five are reserved). The node takes one."""
    vpc = lab(
        agent_environment=_environment(REFUSED_AFTER_S),
        sim_arguments=("--subnet", "10.0.0.0/28"),
        instance_type="m5.xlarge",
    )
    pods = fill(vpc, 10)
    text = _refusal(pods[10])
    assert text.startswith("subnet_exhausted: "), text
    assert "code=InsufficientFreeAddressesInSubnet" in text
    assert "held=10" in text
    assert "next try in" in text
    assert len(truths.allocations(vpc.nodes[0])) == 10


def _refusal(pod: Pod) -> str:
    answer = ask(pod, "ADD")
    assert answer.code == TRY_AGAIN_LATER, answer
    return answer.text


def _became(node: LabNode, state: str) -> list[dict[str, Any]]:
    """The events of addresses that came into a state."""
    return [one for one in truths.address_events(node) if one["fields"]["after"] == state]


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
