"""Every failure of EC2, the kernel and Kubernetes has one name, and it is found in five places: the CNI error, the
answer of `explain`, an event, a line of the log, and a metric.

The matrix of `test_cloud_fault_matrix.py` behind the real service layer, in virtual time. What never fails an ADD (a
give-back that EC2 refuses) is in the other four, and the test says so.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from agent.errors import AgentError, Cause, ClusterFailed, Conflict, InvalidRequest, KernelFailed, TryAgain
from agent.ipam.plan import PoolPolicy, Surroundings
from agent.kube.absent import NoCluster
from agent.ports.cluster import ClusterView, Site
from sim.faults import Fault
from tests.served_node import ServedNode, Told, logged
from tests.unit.test_cloud_fault_matrix import ASSIGN, FAILURES, GROWTH, SHRINK, Failure, refused
from tests.virtual_node import virtual_node
from tests.virtual_time import virtual_time

SMALL = PoolPolicy(warm_ip_target=1, minimum_ip_target=1)
"""So that the first pods empty the pool."""
FRAGMENTED = Failure(
    name="fragmented",
    effect=refused("InsufficientCidrBlocks"),
    cause=Cause.SUBNET_FRAGMENTED,
    actions=("CreateNetworkInterface",),
)
ADD_FAILS = [(failure, action) for failure in FAILURES for action in failure.actions if action in {*GROWTH, ASSIGN}]
ADD_SUCCEEDS = [(failure, action) for failure in FAILURES for action in failure.actions if action in SHRINK]
ANSWER_LOST = {"timeout_after", "reset_after", "5xx_after"}
"""EC2 did what it was asked. What is seen to be gone is no trouble; the request has its line and its count."""


def check_five(told: Told, cause: Cause, *, verb: str = "ADD") -> None:
    """All five places say the cause."""
    assert told.cni.startswith(f"{cause}: "), told.cni
    assert cause in told.explained
    assert any(event["kind"] == "cni_failed" and event["cause"] == cause for event in told.events)
    assert any(line["event"] == "cni_failed" and line["cause"] == cause for line in told.lines)
    assert f'enoki_cni_failures_total{{cause="{cause}",verb="{verb}"}}' in told.metrics


def ids(cells: list[tuple[Failure, str]]) -> list[str]:
    return [f"{failure.name}-{action}" for failure, action in cells]


@pytest.mark.parametrize(("failure", "action"), ADD_FAILS, ids=ids(ADD_FAILS))
@virtual_time
async def test_growth_that_fails(failure: Failure, action: str) -> None:
    # An ADD that finds the pool empty needs an address on an ENI there is (assign), or an ENI more.
    policy = SMALL if action == ASSIGN else replace(SMALL, max_eni=2)
    with logged():
        async with virtual_node(policy) as node:
            await node.start()
            served = ServedNode(node)
            wire_events(node, served)
            if action != ASSIGN:
                slots = node.alive.pool._limits.slots
                assert [await served.add(f"pod-{number}") for number in range(slots)] == [""] * slots
            node.client.faults.add(Fault(action=action, effect=failure.effect, times=None))
            failed, message = await add_until_one_fails(served, failure.cause)
            told = await served.told(failed, message)
            check_five(told, failure.cause)
            assert any(event["kind"] == "pool_degraded" and event["cause"] == failure.cause for event in told.events)
            assert f'enoki_pool_troubles{{cause="{failure.cause}"}}' in told.metrics
            assert any(line["event"] == "ec2_call" and line["outcome"] == failure.cause for line in told.lines)


async def add_until_one_fails(served: ServedNode, cause: Cause) -> tuple[str, str]:
    """A request that hangs as long as an ADD waits has no name yet: then it is on its way, and the next ADD is told."""
    for number in range(100, 140):
        if message := await served.add(f"pod-{number}"):
            if message.startswith(f"{cause}: "):
                return f"pod-{number}", message
            assert message.startswith((f"{Cause.ENI_ATTACHING}: ", f"{Cause.POOL_EMPTY}: ")), message
    raise AssertionError("no ADD failed of it")


def wire_events(node: Any, served: ServedNode) -> None:
    """The pool's events go where the service reads them."""
    node.alive.pool._breakers._publish = served.publish


@pytest.mark.parametrize(("failure", "action"), ADD_SUCCEEDS, ids=ids(ADD_SUCCEEDS))
@virtual_time
async def test_giving_back_that_fails(failure: Failure, action: str) -> None:
    with logged():
        async with virtual_node(PoolPolicy(warm_ip_target=2, minimum_ip_target=4)) as node:
            await node.start()
            served = ServedNode(node)
            wire_events(node, served)
            assert [await served.add(f"pod-{number}") for number in range(14)] == [""] * 14
            await asyncio.sleep(60.0)
            node.client.faults.add(Fault(action=action, effect=failure.effect, times=None))
            for number in range(14):
                await node.delete(f"pod-{number}")
            cell = asyncio.get_running_loop().time() + 3 * 3600.0
            while asyncio.get_running_loop().time() < cell and not node.alive.pool.troubles():
                await asyncio.sleep(10.0)
            assert await served.add("later") == ""
            told = await served.told("later", "")
            assert any(line["event"] == "ec2_call" and line["outcome"] == failure.cause for line in told.lines)
            assert f'enoki_ec2_requests_total{{action="{action}",outcome="{failure.cause}"' in told.metrics
            if failure.name in ANSWER_LOST and not node.alive.pool.troubles():
                return
            assert failure.cause in told.explained
            assert any(event["kind"] == "pool_degraded" and event["cause"] == failure.cause for event in told.events)
            assert any(line["event"] == "pool_degraded" and line["cause"] == failure.cause for line in told.lines)
            assert f'enoki_pool_troubles{{cause="{failure.cause}"}}' in told.metrics


def test_what_the_matrix_walks() -> None:
    """The causes that are EC2's to give are all in it."""
    walked = {failure.cause for failure, _ in [*ADD_FAILS, *ADD_SUCCEEDS]} | {FRAGMENTED.cause}
    told_by_ec2 = {one for one in Cause if one.name.startswith(("EC2_", "SUBNET_", "IAM_"))}
    assert told_by_ec2 - walked == {Cause.EC2_GONE}  # a plan's own race: the next look at EC2 plans differently


@virtual_time
async def test_prefixes_in_a_fragmented_subnet() -> None:
    policy = PoolPolicy(prefix_delegation=True, warm_ip_target=1, minimum_ip_target=1)
    with logged():
        async with virtual_node(policy, instance_type="m5.large") as node:
            await node.start()
            served = ServedNode(node)
            wire_events(node, served)
            for action in (ASSIGN, "CreateNetworkInterface"):
                node.client.faults.add(Fault(action=action, effect=FRAGMENTED.effect, times=None))
            failed, message = await add_until_one_fails(served, FRAGMENTED.cause)
            check_five(await served.told(failed, message), FRAGMENTED.cause)


@pytest.mark.parametrize("failure", FAILURES[:8], ids=lambda failure: failure.name)
@virtual_time
async def test_a_start_that_hangs(failure: Failure) -> None:
    """The cause of every request is `agent_starting` then; why it starts is in its message and the explanation."""
    with logged():
        async with virtual_node(SMALL) as node:
            node.client.faults.add(Fault(action="DescribeNetworkInterfaces", effect=failure.effect, times=None))
            starting = asyncio.create_task(node.start())
            await asyncio.sleep(60.0)
            served = ServedNode(node)
            message = await served.add("pod-1")
            told = await served.told("pod-1", message)
            check_five(told, Cause.AGENT_STARTING)
            assert failure.cause in message
            assert failure.cause in told.explained
            assert any(line["event"] == "stage_failed" and failure.cause in line["error"] for line in told.lines)
            node.client.faults.clear()
            await starting


KERNEL = [
    KernelFailed(Cause.KERNEL_REFUSED, "wiring eni0123: no buffer space available", evidence={"errno": "ENOBUFS"}),
    KernelFailed(Cause.NETNS_GONE, "the namespace vanished"),
    KernelFailed(Cause.ENI_LINK_MISSING, "no link with the MAC 0e:00:00:00:00:01"),
    InvalidRequest(Cause.NETNS_INVALID, "/run/netns/x is no network namespace"),
    TryAgain(Cause.HOST_PORT_TAKEN, "tcp port 8080 of the node is default/web-0's"),
    Conflict(Cause.ATTACHMENT_SUPERSEDED, "a DEL overtook this ADD"),
]


@pytest.mark.parametrize("error", KERNEL, ids=lambda error: error.cause)
@virtual_time
async def test_what_the_kernel_refuses(error: AgentError, monkeypatch: pytest.MonkeyPatch) -> None:
    with logged():
        async with virtual_node(SMALL) as node:
            await node.start()
            served = ServedNode(node)

            async def wire(_: Any) -> Any:
                raise error

            monkeypatch.setattr(node.kernel, "wire", wire)
            message = await served.add("pod-1")
            check_five(await served.told("pod-1", message), error.cause)


KUBERNETES = [
    ClusterFailed(cause, "GET /api/v1/pods: it said no", evidence={"status": 500}, remedy="see its log")
    for cause in Cause
    if cause.name.startswith("KUBERNETES_")
]


class FailingCluster(NoCluster):
    """Configured, and of no use."""

    def __init__(self, failure: AgentError | None, site: AgentError | None = None) -> None:
        super().__init__()
        self._failure = failure
        self._site = site

    def view(self) -> ClusterView:
        return ClusterView(configured=True, failure=self._failure)

    def site(self) -> Site | AgentError | None:
        return self._site


@pytest.mark.parametrize("error", KUBERNETES, ids=lambda error: error.cause)
@virtual_time
async def test_kubernetes_fails_no_add_and_is_told_in_the_other_four(error: AgentError) -> None:
    with logged():
        async with virtual_node(SMALL) as node:
            await node.start()
            served = ServedNode(node, FailingCluster(error))
            assert await served.add("pod-1") == ""
            told = await served.told("pod-1", "")
            assert error.cause in told.explained
            assert any(one["kind"] == "kubernetes_failed" and one["cause"] == error.cause for one in told.events)
            assert any(one["event"] == "kubernetes_degraded" and one["cause"] == error.cause for one in told.lines)
            assert f'enoki_kubernetes_failing{{cause="{error.cause}"}} 1.0' in told.metrics


@virtual_time
async def test_nobody_knows_where_enis_go() -> None:
    unknown = ClusterFailed(Cause.CUSTOM_NETWORKING_UNKNOWN, "there is no ENIConfig zone-a", remedy="create it")
    policy = replace(SMALL, custom_networking=True)
    with logged():
        async with virtual_node(policy) as node:
            await node.start()
            node.tell(Surroundings(site_problem=unknown))
            served = ServedNode(node, FailingCluster(None, unknown))
            told = await served.told("pod-1", message := await served.add("pod-1"))
            assert message
            check_five(told, unknown.cause)
