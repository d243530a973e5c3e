"""Requests for one container, or one pod, that meet: repeated, racing, overtaking, superseding; and what vanishes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from lab import agent_api, echo
from lab.lab import Lab, LabNode
from lab.pods import Pod, delete_namespace, make_namespace
from tests.system import three_truths as truths
from tests.system.conftest import LabFactory
from tests.system.eventually import eventually_equal
from tests.system.plugin_process import Answer, ask, in_parallel

SUPERSEDED = 101
DRIFTED = 102
COUNT_OF_ADDS = 20
ROUNDS = 50
NETWORK = {"cniVersion": "1.1.0", "name": "enoki", "type": "enoki"}

MakePod = Callable[[str], Pod]


@pytest.fixture(scope="module")
def vpc(lab: LabFactory) -> Lab:
    """What cools is seen to cool, however slow the machine is; so there is room for all that was ever released here: an
    m5.4xlarge's eight ENIs have 29 pod addresses each (EC2 User Guide, "IP addresses per network interface per instance
    type")."""
    return lab(instance_type="m5.4xlarge", agent_environment={"WARM_IP_TARGET": "10", "IP_COOLDOWN_PERIOD": "600"})


@pytest.fixture(scope="module")
def ec2(vpc: Lab) -> truths.Ec2:
    return truths.Ec2(vpc)


@pytest.fixture
def pod(vpc: Lab, node: LabNode) -> Iterator[MakePod]:
    """Makes pods with namespaces; all gone at the end, by DEL and by the namespace's end."""
    numbers = itertools.count()
    with ExitStack() as ends:

        def make(name: str) -> Pod:
            container_id = f"{vpc.plan.name}-pod-{next(numbers)}"
            made = Pod(container_id=container_id, name=name, socket=node.socket, network=NETWORK)
            make_namespace(made.container_id)
            ends.callback(delete_namespace, made.container_id)
            ends.callback(ask, made, "DEL")
            return made

        yield make
    eventually_equal(lambda: (truths.allocations(node), truths.host_links(node)), ({}, {}))


def test_twenty_parallel_adds_make_one_attachment(node: LabNode, ec2: truths.Ec2, pod: MakePod) -> None:
    one = pod("web")

    answers = in_parallel(lambda _: ask(one, "ADD"), range(COUNT_OF_ADDS))

    assert {answer.code for answer in answers} == {0}
    assert len({str(answer.body) for answer in answers}) == 1, "every answer is the same, MAC addresses included"
    truths.assert_agreed(node, ec2, {one.container_id: answers[0].address})
    assert truths.owners(node) == {one.container_id}
    truths.run_in(truths.netns(node), "ping", "-q", "-c", "1", "-W", "5", answers[0].address)


def test_add_and_del_race(node: LabNode, pod: MakePod) -> None:
    one = pod("web")
    seen: set[tuple[int, int]] = set()
    for _ in range(ROUNDS):
        add, delete = in_parallel(lambda command: ask(one, command), ["ADD", "DEL"])
        seen.add((add.code, delete.code))
        # Whoever came last decides; either is right, but the three truths agree.
        assert set(truths.allocations(node).values()) == set(truths.pod_routes(node))
        assert ask(one, "DEL").code == 0
        assert (truths.allocations(node), truths.pod_routes(node)) == ({}, {})
    assert seen <= {(0, 0), (SUPERSEDED, 0)}, seen


def test_the_newer_sandbox_of_a_pod_wins(node: LabNode, ec2: truths.Ec2, pod: MakePod) -> None:
    """A StatefulSet's pod comes back under its name while its old sandbox still lives."""
    old, new = pod("db-0"), pod("db-0")
    old_address = ask(old, "ADD").address

    new_address = ask(new, "ADD").address

    truths.assert_agreed(node, ec2, {new.container_id: new_address})
    assert new_address != old_address
    assert old_address in truths.cooling(node)
    assert truths.owners(node) == {new.container_id}
    with (
        echo.Running(new.netns, "serve", str(echo.PORT)),
        echo.Running(str(truths.netns(node)), "hold", new_address, str(echo.PORT)) as connection,
    ):
        assert ask(old, "DEL").code == 0, "late, and harms nobody"
        assert connection.ask("still there?") == "still there?"
    truths.assert_agreed(node, ec2, {new.container_id: new_address})


def test_a_namespace_that_vanishes_frees_its_address(node: LabNode, pod: MakePod) -> None:
    one = pod("web")
    address = ask(one, "ADD").address

    delete_namespace(one.container_id)

    eventually_equal(lambda: (truths.allocations(node), truths.counts(node)["held_count"]), ({}, 0))
    assert address in truths.cooling(node)


def test_gc_keeps_what_the_runtime_lists(node: LabNode, ec2: truths.Ec2, pod: MakePod) -> None:
    kept, stale = pod("kept"), pod("stale")
    addresses = {each.container_id: ask(each, "ADD").address for each in (kept, stale)}
    valid = [{"containerID": kept.container_id, "ifname": kept.ifname}]
    runtime = replace(kept, network={**NETWORK, "cni.dev/valid-attachments": valid})

    assert ask(runtime, "GC").code == 0

    truths.assert_agreed(node, ec2, {kept.container_id: addresses[kept.container_id]})
    assert addresses[stale.container_id] in truths.cooling(node)
    assert ask(runtime, "GC").code == 0
    assert set(truths.allocations(node)) == {kept.container_id}


@pytest.mark.parametrize(
    ("breakage", "named"),
    [
        ("ip route del {address}/32 table 20512", "table pods"),
        ("ip link set {host} group 0", "group"),
        ("ip neigh del {address} dev {host}", "neighbour"),
        ("in the pod: ip route del default", "default route"),
        ("in the pod: ip addr del {address}/32 dev eth0", "lacks"),
        ("in the pod: ip link set eth0 down", "down"),
    ],
)
def test_check_names_the_difference(node: LabNode, pod: MakePod, breakage: str, named: str) -> None:
    one = pod("web")
    added = ask(one, "ADD")
    host = str(added.body["interfaces"][0]["name"])
    asked = _with_result(one, added)
    assert ask(asked, "CHECK").code == 0
    where, _, command = breakage.rpartition(": ")
    namespace = Path(one.netns) if where else truths.netns(node)

    repaired = len(truths.log_events(node, "repaired"))
    truths.run_in(namespace, *command.format(address=added.address, host=host).split())

    answer = ask(asked, "CHECK")
    if answer.code == 0 and not where:
        # On the node the agent may have put it right before the plugin has even asked.
        assert len(truths.log_events(node, "repaired")) > repaired
    else:
        assert (answer.code, named in answer.text) == (DRIFTED, True), answer


def test_check_of_what_was_never_added(pod: MakePod) -> None:
    one = pod("web")
    answer = ask(one, "CHECK")
    assert (answer.code, "attachment_missing" in answer.text) == (3, True)


def test_the_api_finds_a_pod_by_name_and_by_address(node: LabNode, pod: MakePod) -> None:
    one, other = pod("web"), pod("other")
    address = ask(one, "ADD").address
    ask(other, "ADD")
    by_name = agent_api.get(node.socket, "/v1/allocations?namespace=default&pod=web")
    assert [item["container_id"] for item in by_name] == [one.container_id]
    assert agent_api.get(node.socket, f"/v1/allocations?address={address}") == by_name


def _with_result(pod: Pod, added: Answer) -> Pod:
    """CHECK gets ADD's result back."""
    return replace(pod, network={**pod.network, "prevResult": added.body})
