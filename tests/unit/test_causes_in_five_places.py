"""Every failure of EC2, the kernel and Kubernetes has one name, and it is found in five places: the CNI error, the
answer of `explain`, an event, a line of the log, and a metric.

The matrix of `test_cloud_fault_matrix.py` behind the real service layer, in virtual time. What never fails an ADD (a
give-back that EC2 refuses) is in the other four, and the test says so.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from agent.errors import AgentError, Cause, CloudFailed, ClusterFailed, Conflict, InvalidRequest, KernelFailed, TryAgain
from agent.ipam.plan import PoolPolicy, Surroundings
from agent.kube.absent import NoCluster
from agent.ports.cluster import ClusterView, Site
from agent.runtime.reconciler import Reconciler
from api.app import create_app
from bench.pool_cloud import MemoryMetadata
from sim.faults import Fault, HangEffect
from tests.contract.asgi_client import request
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


OWN = ("full", "cooling", "cordoned", "elsewhere", "hangs", "attaching", "detaching")
"""What keeps the pool from giving an address although EC2 refuses nothing."""
OWN_CAUSES = {
    "full": Cause.INSTANCE_LIMIT,
    "cooling": Cause.POOL_EMPTY_COOLING,
    "cordoned": Cause.NODE_CORDONED,
    "elsewhere": Cause.PROVISIONED_ELSEWHERE,
    "hangs": Cause.POOL_EMPTY,
    "attaching": Cause.ENI_ATTACHING,
    "detaching": Cause.ENI_DETACHING,
}


@pytest.mark.parametrize("case", OWN)
@virtual_time
async def test_what_the_pool_itself_cannot_do(case: str) -> None:
    policy = replace(SMALL, max_eni=2 if case in {"attaching", "detaching"} else 1)
    with logged():
        async with virtual_node(policy) as node:
            await node.start()
            served = ServedNode(node)
            wire_events(node, served)
            slots = node.alive.pool._limits.slots
            first = [f"pod-{number}" for number in range(slots)]
            match case:
                case "hangs":
                    served.add_deadline_s = 1.0  # EC2's is longer
                    node.client.faults.add(Fault(action=ASSIGN, effect=HangEffect(), times=None))
                case "cordoned" | "elsewhere":
                    is_cordoned = case == "cordoned"
                    node.tell(Surroundings(is_schedulable=not is_cordoned, is_provisioning=is_cordoned))
                case _:
                    assert [await served.add(name) for name in first] == [""] * slots
            if case == "cooling":
                await node.delete(first[0])
            if case == "attaching":
                node.client.faults.add(Fault(action="AttachNetworkInterface", effect=HangEffect(), times=None))
            if case == "detaching":
                await leave_the_second_eni(node, served)
            failed, message = await add_until_one_fails(served, OWN_CAUSES[case])
            check_five(await served.told(failed, message), OWN_CAUSES[case])


async def leave_the_second_eni(node: Any, served: ServedNode) -> None:
    """Have the pool give its second ENI back, which EC2 takes very long for."""
    assert await served.add("one-more") == ""
    await node.delete("one-more")
    await node.delete("pod-0")  # the other ENI has the free address that is wanted
    node.client.faults.add(Fault(action="DetachNetworkInterface", effect=HangEffect(), times=None))
    async with asyncio.timeout(3 * 3600.0):
        while not any(usage.leaving for usage in node.alive.ledger.enis()):
            await asyncio.sleep(1.0)


@virtual_time
async def test_an_agent_that_stops() -> None:
    with logged():
        async with virtual_node(SMALL) as node:
            await node.start()
            served = ServedNode(node)
            assert await served.add("pod-1") == ""
            node.alive.attachments._stopping = True
            message = await served.add("pod-2")
            check_five(await served.told("pod-2", message), Cause.AGENT_STOPPING)


@virtual_time
async def test_a_start_without_instance_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    async def instance(_: MemoryMetadata) -> Any:
        raise CloudFailed(Cause.IMDS_UNAVAILABLE, "IMDS does not answer", retry_after_s=1.0)

    monkeypatch.setattr(MemoryMetadata, "instance", instance)
    with logged():
        async with virtual_node(SMALL) as node:
            starting = asyncio.create_task(node.start())
            await asyncio.sleep(5.0)
            served = ServedNode(node)
            message = await served.add("pod-1")
            told = await served.told("pod-1", message)
            check_five(told, Cause.AGENT_STARTING)
            assert Cause.IMDS_UNAVAILABLE in message
            assert Cause.IMDS_UNAVAILABLE in told.explained
            assert any(
                line["event"] == "stage_failed" and Cause.IMDS_UNAVAILABLE in line["error"] for line in told.lines
            )
            starting.cancel()


@virtual_time
async def test_what_check_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    with logged():
        async with virtual_node(SMALL) as node:
            await node.start()
            served = ServedNode(node)
            assert await served.add("pod-1") == ""
            message = await served.check("nobody")
            check_five(await served.told("nobody", message), Cause.ATTACHMENT_MISSING, verb="CHECK")

            async def check(_: Any) -> Any:
                raise InvalidRequest(Cause.ATTACHMENT_DRIFTED, "there is no route to 10.0.0.6")

            monkeypatch.setattr(node.kernel, "check", check)
            node.kernel._veths.clear()
            message = await served.check("pod-1")
            check_five(await served.told("pod-1", message), Cause.ATTACHMENT_DRIFTED, verb="CHECK")


REQUEST: dict[str, Any] = {
    "container_id": "bad",
    "netns": "/run/netns/bad",
    "ifname": "eth0",
    "args": "K8S_POD_NAMESPACE=test;K8S_POD_NAME=bad",
    "config": {"cniVersion": "1.0.0", "name": "enoki", "type": "enoki"},
}


def configured(**members: Any) -> bytes:
    return json.dumps(REQUEST | {"config": REQUEST["config"] | members}).encode()


BAD: dict[Cause, bytes] = {
    Cause.CONTENT_UNDECODABLE: b"{",
    Cause.REQUEST_INVALID: json.dumps(REQUEST | {"ifname": "eth/0"}).encode(),
    Cause.NETWORK_CONFIG_INVALID: configured(mtu=1),
    Cause.CNI_VERSION_UNSUPPORTED: configured(cniVersion="9"),
}


@pytest.mark.parametrize("cause", BAD)
@virtual_time
async def test_what_the_api_refuses(cause: Cause) -> None:
    """The service is told, so that a broken network configuration is seen by more than the kubelet."""
    with logged():
        async with virtual_node(SMALL) as node:
            await node.start()
            served = ServedNode(node)
            status, _, body = await request(create_app(served.service), "POST", "/v1/cni/add", BAD[cause])
            assert status == 400
            if cause is Cause.CONTENT_UNDECODABLE:  # whose request it was cannot be read: no pod's explanation has it
                assert await served.add("bad") == ""
                told = await served.told("bad", json.loads(body)["msg"])
                told = replace(told, explained=told.explained | {cause})
            else:
                told = await served.told("bad", json.loads(body)["msg"])
            check_five(told, cause)


@virtual_time
async def test_a_loop_that_fails() -> None:
    """What no call fails of: the explanation of the node, the log and the metric have it."""
    cause = Cause.HOST_FILE_REFUSED

    async def step() -> float:
        raise AgentError(cause, "/host/etc/cni/net.d: ENOSPC")

    with logged():
        async with virtual_node(SMALL) as node:
            await node.start()
            loop = Reconciler("conflist", step, timeout_s=1.0)
            served = ServedNode(node, loops=(loop,))
            turning = asyncio.create_task(loop.run())
            await asyncio.sleep(0.1)
            assert await served.add("pod-1") == ""
            told = await served.told("pod-1", "")
            assert cause in told.explained
            assert any(line["event"] == "loop_degraded" and cause in line["error"] for line in told.lines)
            assert 'enoki_loop_failures{loop="conflist"} 1.0' in told.metrics
            turning.cancel()


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


def test_every_cause_is_walked() -> None:
    walked = {failure.cause for failure, _ in [*ADD_FAILS, *ADD_SUCCEEDS]} | {FRAGMENTED.cause, *OWN_CAUSES.values()}
    walked |= {error.cause for error in [*KERNEL, *KUBERNETES]} | set(BAD)
    walked |= {Cause.AGENT_STARTING, Cause.AGENT_STOPPING, Cause.IMDS_UNAVAILABLE, Cause.CUSTOM_NETWORKING_UNKNOWN}
    walked |= {Cause.ATTACHMENT_MISSING, Cause.ATTACHMENT_DRIFTED, Cause.HOST_FILE_REFUSED}
    assert set(Cause) - walked == {Cause.EC2_GONE}  # a plan's own race, see above
