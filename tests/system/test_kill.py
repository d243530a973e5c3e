"""SIGKILL of the agent between every two steps of ADD and of DEL, while other pods keep their connections.

Each test walks two nodes at once, step by step: the agent is armed, the request kills it, a new agent starts, the
runtime does what runtimes do after a failure, and then all three truths must agree again. A walk ends with the first
request that outlives its own last step; every step seen in that last one must have been a crash before.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count

import pytest

from lab import echo
from lab.lab import Lab, LabNode
from lab.pods import Pod, delete_namespace, make_namespace
from tests.system import three_truths as truths
from tests.system.conftest import LabFactory
from tests.system.crashing_agent import FUNCTIONS, Crash, restart
from tests.system.eventually import eventually_equal
from tests.system.plugin_process import ask

TRY_AGAIN_LATER = 11

SETTINGS = {"IP_COOLDOWN_PERIOD": "30", "WARM_IP_TARGET": "3"}
"""A cooldown that is still running when a test looks, however slow the machine is, on a node with room for what cools
meanwhile (m5.4xlarge: eight ENIs with 29 pod addresses each; EC2 User Guide, "IP addresses per network interface per
instance type")."""


@dataclass(slots=True, kw_only=True)
class Walk:
    """What happens on one node: an innocent pod with an open connection, and victims.

    used: every address a victim was given.
    """

    vpc: Lab
    node: LabNode
    ec2: truths.Ec2
    innocent: Pod
    address: str
    connection: echo.Running
    used: set[str]

    def victim(self, label: str, step: int) -> Pod:
        name = f"{label}-{step}"
        container_id = f"{self.vpc.plan.name}-pod-{self.node.index}-{name}"
        return Pod(container_id=container_id, name=name, socket=self.node.socket)

    def restart(self, crash: Crash, *, kill: bool) -> list[str]:
        return restart(self.node.socket, crash, kill=kill)

    def assert_whole(self, victim: Pod) -> None:
        """After a restart the victim is attached, completely, or nothing of it is: no link, no route."""
        routes, allocations = truths.pod_routes(self.node), truths.allocations(self.node)
        assert set(allocations.values()) == set(routes)
        assert truths.attached_links(self.node) == set(routes.values())
        if victim.container_id in allocations:
            assert ask(victim, "CHECK").code == 0

    def assert_only(self, **others: str) -> None:
        """The innocent and `others` (pod name to address) hold addresses and nobody else; the connection is open."""
        prefix = f"{self.vpc.plan.name}-pod-{self.node.index}-"
        live = {f"{prefix}{name}": address for name, address in others.items()}
        truths.assert_agreed(self.node, self.ec2, {self.innocent.container_id: self.address, **live})
        assert self.connection.ask("still there?") == "still there?"


@pytest.fixture(scope="module")
def walks(lab: LabFactory) -> Iterator[list[Walk]]:
    """Two nodes; the innocent of each holds a connection to the innocent of the other."""
    vpc = lab(
        node_count=2,
        instance_type="m5.4xlarge",
        agent_environment=SETTINGS,
        agent_module="tests.system.crashing_agent",
    )
    ec2 = truths.Ec2(vpc)
    innocents = [
        Pod(container_id=f"{vpc.plan.name}-pod-innocent-{node.index}", name="innocent", socket=node.socket)
        for node in vpc.nodes
    ]
    addresses = [innocent.start() for innocent in innocents]
    with ExitStack() as connections:
        for innocent in innocents:
            connections.enter_context(echo.Running(innocent.netns, "serve", str(echo.PORT)))
        yield [
            Walk(
                vpc=vpc,
                node=node,
                ec2=ec2,
                innocent=innocents[node.index],
                address=addresses[node.index],
                connection=connections.enter_context(
                    echo.Running(innocents[node.index].netns, "hold", addresses[1 - node.index], str(echo.PORT))
                ),
                used=set(),
            )
            for node in vpc.nodes
        ]


def test_add(walks: list[Walk]) -> None:
    """After a failed ADD a runtime deletes the sandbox (containerd), or asks again with the same one."""
    steps = _side_by_side(
        lambda: _walk_add(walks[0], "add-del", _delete_twice),
        lambda: _walk_add(walks[1], "add-add", _add_again_then_delete),
    )
    _assert_covers(steps, "add")
    _assert_nothing_left(walks)


def test_del(walks: list[Walk]) -> None:
    """After a failed DEL a runtime repeats it, or has removed the namespace already."""
    steps = _side_by_side(
        lambda: _walk_del(walks[0], "del-del", _delete_twice),
        lambda: _walk_del(walks[1], "del-gone", _namespace_goes_first),
    )
    _assert_covers(steps, "delete")
    _assert_nothing_left(walks)


def _walk_add(walk: Walk, label: str, replay: Callable[[Walk, Pod], None]) -> list[str]:
    """Kill ADD at every step; the steps, in order."""
    crashed_at: list[str] = []
    walk.restart(_crash("add", walk.victim(label, 1), 1), kill=True)
    for step in count(1):
        victim = walk.victim(label, step)
        make_namespace(victim.container_id)
        outlived = _outlives(victim, "ADD")
        steps = walk.restart(_crash("add", walk.victim(label, step + 1), step + 1), kill=outlived)
        walk.assert_whole(victim)
        replay(walk, victim)
        walk.assert_only()
        if outlived:
            assert set(steps) == set(crashed_at)
            return crashed_at
        crashed_at.append(steps[-1])
    raise AssertionError("unreachable")


def _walk_del(walk: Walk, label: str, replay: Callable[[Walk, Pod], None]) -> list[str]:
    """Kill DEL at every step; the steps, in order."""
    crashed_at: list[str] = []
    walk.restart(_crash("delete", walk.victim(label, 1), 1), kill=True)
    for step in count(1):
        victim = walk.victim(label, step)
        make_namespace(victim.container_id)
        address = _add(walk, victim)
        outlived = _outlives(victim, "DEL")
        steps = walk.restart(_crash("delete", walk.victim(label, step + 1), step + 1), kill=outlived)
        walk.assert_whole(victim)
        replay(walk, victim)
        assert address in truths.cooling(walk.node)
        walk.assert_only()
        if outlived:
            assert set(steps) == set(crashed_at)
            return crashed_at
        crashed_at.append(steps[-1])
    raise AssertionError("unreachable")


def _crash(verb: str, victim: Pod, step: int) -> Crash:
    return Crash(verb=verb, container_id=victim.container_id, step=step)


def _outlives(victim: Pod, command: str) -> bool:
    """Whether the agent is still there; when it died, the runtime must read that asking again is right.

    A DEL whose agent died asks again by itself, finds nobody, and is done: the kernel knows the rest.
    """
    answer = ask(victim, command)
    assert answer.code in {0, TRY_AGAIN_LATER}, answer
    with socket.socket(socket.AF_UNIX) as knocking:
        alive = knocking.connect_ex(str(victim.socket)) == 0
    assert answer.code == 0 or not alive, answer
    return alive


def _add(walk: Walk, victim: Pod) -> str:
    resting = truths.cooling(walk.node) - set(truths.pod_routes(walk.node))
    address = ask(victim, "ADD").address
    assert address not in resting, "a restart must not end a cooldown"
    walk.used.add(address)
    return address


def _delete_twice(walk: Walk, victim: Pod) -> None:
    assert [ask(victim, "DEL").code for _ in range(2)] == [0, 0]
    walk.assert_only()
    delete_namespace(victim.container_id)


def _add_again_then_delete(walk: Walk, victim: Pod) -> None:
    address = _add(walk, victim)
    assert _add(walk, victim) == address
    walk.assert_only(**{victim.name: address})
    truths.run_in(truths.netns(walk.node), "ping", "-q", "-c", "1", "-W", "5", address)
    assert ask(victim, "DEL").code == 0
    assert address in truths.cooling(walk.node)
    delete_namespace(victim.container_id)


def _namespace_goes_first(walk: Walk, victim: Pod) -> None:
    delete_namespace(victim.container_id)
    eventually_equal(lambda: set(truths.allocations(walk.node)), {walk.innocent.container_id})
    assert ask(victim, "DEL").code == 0


def _side_by_side(first: Callable[[], list[str]], second: Callable[[], list[str]]) -> list[str]:
    """Both at once; their steps, which must be the same."""
    with ThreadPoolExecutor(2) as threads:
        one, other = [each.result() for each in [threads.submit(first), threads.submit(second)]]
    assert set(one) == set(other)
    return one


def _assert_covers(steps: list[str], verb: str) -> None:
    """Renamed code must not silently shorten the walk."""
    for file, functions in FUNCTIONS[verb].items():
        for function in functions:
            assert f"after {file} {function}" in steps
    assert any(step.startswith("after message 1 of 2 of ") for step in steps)


def _assert_nothing_left(walks: list[Walk]) -> None:
    for walk in walks:
        eventually_equal(partial(truths.owners, walk.node), {walk.innocent.container_id})
        assert truths.addresses_outside_cooling(walk.node, walk.used) == {}
        assert not any(walk.vpc.source_check_drops().values())
