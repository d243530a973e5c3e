"""Each failure of EC2 times each call of the pool: a named cause, a bounded retry, nothing lost, health afterwards.

One node's life in virtual time, with the real pool, recovery and adapter: start, grow to two ENIs, shrink to one.
A fault strikes every call of one action for a while; then it ends, and the node must come to what it would be without.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from agent.cloud import ec2
from agent.errors import Cause
from agent.ipam.plan import PoolPolicy
from agent.runtime.startup import StageState
from sim.faults import DropEffect, Effect, ErrorEffect, Fault, HangEffect, PartialEffect
from sim.model.attachments import cancel_transitions
from sim.model.config import Timings
from sim.model.interfaces import without_eni
from sim.model.records import Step
from tests.virtual_node import VirtualNode, a_vpc, virtual_node
from tests.virtual_time import virtual_time

ADDRESSES = PoolPolicy(warm_ip_target=2, minimum_ip_target=4)
PREFIXES = PoolPolicy(prefix_delegation=True, warm_ip_target=2, minimum_ip_target=4)
FAULT_S = 600.0
"""How long a fault lasts."""
POD_COUNT = 14

READS = ("DescribeNetworkInterfaces", "DescribeSubnets")
GROWTH = ("CreateNetworkInterface", "AttachNetworkInterface", "ModifyNetworkInterfaceAttribute")
ASSIGN = "AssignPrivateIpAddresses"
SHRINK = ("UnassignPrivateIpAddresses", "DetachNetworkInterface", "DeleteNetworkInterface")
ALL = (*READS, *GROWTH, ASSIGN, *SHRINK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What EC2 does, which calls can fail so, the cause that must be told, and the most calls in the faulty time."""

    name: str
    effect: Effect
    cause: Cause
    actions: tuple[str, ...] = ALL
    most_calls: int = 40


def refused(code: str, status: int = 400, *, after: bool = False) -> ErrorEffect:
    return ErrorEffect(code=code, http_status=status, after=after)


FAILURES = [
    Failure(name="throttle", effect=refused("RequestLimitExceeded", 503), cause=Cause.EC2_THROTTLED),
    Failure(name="timeout", effect=HangEffect(), cause=Cause.EC2_UNAVAILABLE),
    Failure(name="timeout_after", effect=HangEffect(after=True), cause=Cause.EC2_UNAVAILABLE),
    Failure(name="reset", effect=DropEffect(), cause=Cause.EC2_UNAVAILABLE),
    Failure(name="reset_after", effect=DropEffect(after=True), cause=Cause.EC2_UNAVAILABLE),
    Failure(name="5xx", effect=refused("InternalError", 500), cause=Cause.EC2_UNAVAILABLE),
    Failure(name="5xx_after", effect=refused("Unavailable", 503, after=True), cause=Cause.EC2_UNAVAILABLE),
    Failure(name="unauthorized", effect=refused("UnauthorizedOperation", 403), cause=Cause.IAM_DENIED),
    Failure(
        name="insufficient_addresses",
        effect=refused("InsufficientFreeAddressesInSubnet"),
        cause=Cause.SUBNET_EXHAUSTED,
        actions=("CreateNetworkInterface", ASSIGN),
        most_calls=8,
    ),
    Failure(
        name="eni_limit",
        effect=refused("NetworkInterfaceLimitExceeded"),
        cause=Cause.EC2_LIMIT,
        actions=("CreateNetworkInterface",),
        most_calls=8,
    ),
    Failure(
        name="eni_full",
        effect=refused("PrivateIpAddressLimitExceeded"),
        cause=Cause.EC2_LIMIT,
        actions=(ASSIGN,),
        most_calls=20,
    ),
    Failure(
        name="attachment_limit",
        effect=refused("AttachmentLimitExceeded"),
        cause=Cause.EC2_LIMIT,
        actions=("AttachNetworkInterface",),
        most_calls=8,
    ),
    Failure(
        name="in_use",
        effect=refused("InvalidNetworkInterface.InUse"),
        cause=Cause.EC2_REFUSED,
        actions=("DeleteNetworkInterface", "AttachNetworkInterface"),
    ),
]
CELLS = [(failure, action) for failure in FAILURES for action in failure.actions]


async def live(node: VirtualNode) -> None:
    """Grow to two ENIs, shrink to one, and settle. Pods are asked for until they come, as kubelet does."""
    if node.agent is None:
        await node.start()
    await asyncio.gather(*(node.add_until_it_succeeds(f"pod-{number}") for number in range(POD_COUNT)))
    await asyncio.sleep(60.0)


async def die_down(node: VirtualNode) -> None:
    """Delete every pod there is, and wait until the pool has settled and a sweep has passed."""
    for attachment in node.alive.ledger.attachments():
        await node.delete(attachment.holder.key.container_id)
    await asyncio.sleep(4 * 3600.0)


def check_health(node: VirtualNode) -> None:
    """As if nothing had ever happened."""
    view = node.alive.pool.view()
    assert view.failure is None, str(view.failure)
    assert view.waiter_count == 0
    assert view.in_flight == ()
    assert len(node.enis()) == 1
    node.check_nothing_lost()


def faulty_calls(node: VirtualNode, action: str, until_s: float) -> int:
    return sum(one.action == action and one.at_s <= until_s and one.outcome != "ok" for one in node.client.sent)


@pytest.mark.parametrize(("failure", "action"), CELLS, ids=[f"{f.name}-{a}" for f, a in CELLS])
@virtual_time
async def test_a_fault_while_growing(failure: Failure, action: str) -> None:
    async with virtual_node(ADDRESSES) as node:
        if action != "DescribeNetworkInterfaces":
            await node.start()
        node.client.faults.add(Fault(action=action, effect=failure.effect, times=None))
        living = asyncio.create_task(live(node))
        await asyncio.sleep(FAULT_S)
        struck = node.client.faults.listed()[0].hit_count
        check_cause(node, failure, action, struck)
        assert struck <= failure.most_calls
        node.client.faults.clear()
        await living
        await die_down(node)
        check_health(node)


@pytest.mark.parametrize(("failure", "action"), CELLS, ids=[f"{f.name}-{a}" for f, a in CELLS])
@virtual_time
async def test_a_fault_while_shrinking(failure: Failure, action: str) -> None:
    async with virtual_node(ADDRESSES) as node:
        await live(node)
        node.check_nothing_lost()
        before = node.client.count(action)
        for attachment in node.alive.ledger.attachments():
            await node.delete(attachment.holder.key.container_id)
        node.client.faults.add(Fault(action=action, effect=failure.effect, times=None))
        await asyncio.sleep(3 * FAULT_S)
        struck = node.client.faults.listed()[0].hit_count
        check_cause(node, failure, action, struck)
        assert struck <= failure.most_calls + before
        node.client.faults.clear()
        await asyncio.sleep(4 * 3600.0)
        check_health(node)
        assert await node.add_until_it_succeeds("later") == 0


def check_cause(node: VirtualNode, failure: Failure, action: str, struck: int) -> None:
    """Whoever asks is told the cause: while the agent starts by its stage, then by the pool or the count of calls."""
    if not struck:
        return
    if node.agent is None:
        assert node.startup is not None
        [_, stage] = node.startup.status()
        assert stage.state is StageState.FAILED
        assert failure.cause in stage.reason
        return
    told = {one.outcome for each in node.alive.cloud.budget() if each.action == action for one in each.calls}
    assert failure.cause in told or "cancelled" in told
    assert not told & {"malformed"}


def test_the_faults_of_growth_strike_in_growth_and_those_of_shrinking_in_shrinking() -> None:
    """The matrix would be empty if the actions never came."""

    @virtual_time
    async def test() -> None:
        async with virtual_node(ADDRESSES) as node:
            await live(node)
            assert {one.action for one in node.client.sent} == {*READS, *GROWTH, ASSIGN}
            await die_down(node)
            assert {one.action for one in node.client.sent} == set(ALL)
            check_health(node)

    test()


@pytest.mark.parametrize("cause", ["SUBNET_FRAGMENTED", "EC2_THROTTLED", "IAM_DENIED"])
@pytest.mark.parametrize("action", ["CreateNetworkInterface", ASSIGN])
@virtual_time
async def test_prefixes_that_are_refused(action: str, cause: str) -> None:
    codes = {
        "SUBNET_FRAGMENTED": refused("InsufficientCidrBlocks"),
        "EC2_THROTTLED": refused("RequestLimitExceeded", 503),
        "IAM_DENIED": refused("UnauthorizedOperation", 403),
    }
    async with virtual_node(PREFIXES, instance_type="m5.large") as node:
        await node.start()
        fragmented = cause == "SUBNET_FRAGMENTED"
        node.client.faults.add(Fault(action=action, effect=codes[cause], times=2 if fragmented else None))
        living = asyncio.create_task(live(node))
        await asyncio.sleep(FAULT_S)
        assert node.client.faults.listed()[0].hit_count <= 40
        node.client.faults.clear()
        await living
        await die_down(node)
        check_health(node)


@pytest.mark.parametrize("action", [ASSIGN, "CreateNetworkInterface"])
@virtual_time
async def test_a_partial_grant_is_counted_as_it_is(action: str) -> None:
    async with virtual_node(ADDRESSES) as node:
        await node.start()
        node.client.faults.add(Fault(action=action, effect=PartialEffect(grant_count=1), times=3))
        await live(node)
        await die_down(node)
        check_health(node)


@pytest.mark.parametrize("action", [*GROWTH, ASSIGN, *SHRINK])
@virtual_time
async def test_an_eni_that_vanishes_in_the_middle_of_a_call(action: str) -> None:
    """Somebody deletes the newest ENI the moment EC2 gets the request. Its pods have lost their network."""
    async with virtual_node(ADDRESSES) as node:
        struck: list[str] = []

        def vanish(asked: str) -> None:
            newest = list(node.vpc.state.enis.values())[-1]
            if asked == action and not struck and newest.eni_id != node.enis()[0].eni_id:
                struck.append(newest.eni_id)
                node.kernel._check_addresses = lambda: None  # type: ignore[method-assign]
                left = cancel_transitions(node.vpc.state, frozenset({newest.eni_id}))
                node.vpc.apply(lambda *_: Step(state=without_eni(left, newest), result=None), now_s=node._clock())

        await node.start()
        node.client.before = vanish
        await live(node)
        await node.add_until_it_succeeds("more")
        await die_down(node)
        assert struck or action in {"CreateNetworkInterface", ASSIGN}
        check_health(node)


@pytest.mark.parametrize(
    "timings",
    [
        Timings(attach_s=2.0, detach_s=5.0, describe_lag_s=20.0),
        Timings(attach_s=2.0, detach_s=5.0, imds_lag_s=120.0),
        Timings(attach_s=45.0, detach_s=90.0, describe_lag_s=20.0, imds_lag_s=120.0),
    ],
    ids=["lagging_describe", "ghost_eni_in_imds", "slow_and_lagging"],
)
@virtual_time
async def test_what_ec2_and_imds_show_lags(timings: Timings) -> None:
    async with virtual_node(ADDRESSES, vpc=a_vpc(timings=timings)) as node:
        for _ in range(2):
            await live(node)
            await die_down(node)
            check_health(node)


@pytest.mark.parametrize("failure", FAILURES[:8], ids=lambda failure: failure.name)
def test_an_unknown_instance_type_that_ec2_does_not_tell_either(
    failure: Failure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ec2, "bundled_limits", lambda _: None)

    @virtual_time
    async def test() -> None:
        async with virtual_node(ADDRESSES) as node:
            node.client.faults.add(Fault(action="DescribeInstanceTypes", effect=failure.effect, times=None))
            starting = asyncio.create_task(node.start())
            await asyncio.sleep(FAULT_S)
            assert node.startup is not None
            [_, stage] = node.startup.status()
            assert failure.cause in stage.reason
            assert 2 <= node.client.faults.listed()[0].hit_count <= failure.most_calls * 2
            node.client.faults.clear()
            await starting
            await live(node)
            await die_down(node)
            check_health(node)

    test()
