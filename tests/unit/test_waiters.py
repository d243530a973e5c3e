"""The queue of those who wait for an address: order, deadlines, and nothing held for whoever has gone."""

from __future__ import annotations

import asyncio

import pytest

from agent.errors import Cause, TryAgain
from agent.ipam.model import AddressState
from agent.ipam.plan import PoolPolicy
from agent.ipam.waiters import Waiter, Waiters
from sim.faults import DelayEffect, ErrorEffect, Fault, HangEffect
from tests.ipam_builders import a_holder, a_ledger, an_eni, ip
from tests.virtual_node import VirtualNode, virtual_node
from tests.virtual_time import virtual_time

LEAN = PoolPolicy(warm_ip_target=0, minimum_ip_target=1)


@virtual_time
async def test_nothing_is_reserved_for_a_waiter_that_has_gone_but_not_left_yet() -> None:
    ledger = a_ledger(an_eni(0, [ip(1)]))
    ledger.inventory.eni_ready(an_eni(0).eni_id, 254)
    queue = Waiters()
    gone, patient = (Waiter(holder=a_holder(name), request_id=name) for name in ("gone", "patient"))
    queue.join(gone)
    queue.join(patient)
    gone.answer.cancel()
    queue.serve(ledger, 0.0)
    assert ledger.attachment(gone.holder.key) is None
    assert patient.is_served
    assert patient.answer.result().addresses == (ip(1),)


@virtual_time
async def test_whoever_gives_up_in_any_order_leaves_nothing_behind() -> None:
    """Deadlines, dying clients and grants in the same instants: EC2 answers when the deadlines come."""
    async with virtual_node(LEAN) as node:
        await node.start()
        await asyncio.sleep(5.0)
        slow = DelayEffect(delay_s=19.5)
        node.client.faults.add(Fault(action="AssignPrivateIpAddresses", effect=slow, times=None))
        requests = [asyncio.create_task(node.add(f"pod-{n}", deadline_s=19.0 + n * 0.1)) for n in range(8)]
        await asyncio.sleep(19.4)
        requests[6].cancel()
        answers = await asyncio.gather(*requests, return_exceptions=True)
        node.client.faults.clear()
        served = {f"pod-{n}" for n, answer in enumerate(answers) if answer is None}
        assert {type(answer) for answer in answers} <= {type(None), TryAgain, asyncio.CancelledError}
        assert {one.holder.key.container_id for one in node.alive.ledger.attachments()} == served
        await asyncio.sleep(120.0)
        held = [view for view in node.alive.pool.view().addresses if view.state is AddressState.HELD]
        assert len(held) == len(served)
        assert node.alive.pool.view().waiter_count == 0


@virtual_time
async def test_first_come_first_served_and_waiters_are_demand() -> None:
    async with virtual_node(LEAN) as node:
        await node.start()
        await asyncio.sleep(5.0)
        order: list[int] = []

        async def ask(number: int) -> None:
            await node.add(f"pod-{number}")
            order.append(number)

        await asyncio.gather(*(ask(number) for number in range(20)))
        assert order == list(range(20))
        assigned = node.client.count("AssignPrivateIpAddresses") + node.client.count("CreateNetworkInterface")
        assert assigned <= 5, "the pool grows by the whole queue, not by one"


@pytest.mark.parametrize(
    ("code", "status", "cause", "evidence"),
    [
        ("RequestLimitExceeded", 503, Cause.EC2_THROTTLED, "action"),
        ("UnauthorizedOperation", 403, Cause.IAM_DENIED, "action"),
        ("InternalError", 500, Cause.EC2_UNAVAILABLE, "action"),
        ("InsufficientFreeAddressesInSubnet", 400, Cause.SUBNET_EXHAUSTED, "subnet"),
    ],
)
def test_past_the_deadline_the_error_names_cause_evidence_and_the_next_try(
    code: str, status: int, cause: Cause, evidence: str
) -> None:
    @virtual_time
    async def test() -> None:
        async with virtual_node(LEAN) as node:
            await full_start(node)
            effect = ErrorEffect(code=code, http_status=status)
            for action in ("AssignPrivateIpAddresses", "CreateNetworkInterface"):
                node.client.faults.add(Fault(action=action, effect=effect, times=None))
            began_s = asyncio.get_running_loop().time()
            with pytest.raises(TryAgain) as raised:
                await node.add("late", deadline_s=20.0)
            assert asyncio.get_running_loop().time() - began_s == pytest.approx(20.0)
            assert raised.value.cause is cause
            assert raised.value.evidence[evidence]
            assert raised.value.evidence["waiting"] == 1
            assert raised.value.retry_after_s
            if cause is Cause.IAM_DENIED:
                assert "ec2:" in raised.value.remedy

    test()


@pytest.mark.parametrize("action", ["DescribeNetworkInterfaces", "DescribeSubnets"])
def test_a_look_at_ec2_that_hangs_keeps_nobody_from_an_address(action: str) -> None:
    @virtual_time
    async def test() -> None:
        async with virtual_node(LEAN) as node:
            await node.start()
            node.client.faults.add(Fault(action=action, effect=HangEffect(), times=None))
            if action == "DescribeNetworkInterfaces":
                while not node.client.faults.listed()[0].hit_count:
                    await asyncio.sleep(1.0)
            began_s = asyncio.get_running_loop().time()
            await asyncio.gather(*(node.add(f"pod-{number}") for number in range(5)))
            assert asyncio.get_running_loop().time() - began_s < 2.0
            assert node.client.faults.listed()[0].hit_count == 1

    test()


async def full_start(node: VirtualNode) -> None:
    """Every address there is has a pod."""
    await node.start()
    await asyncio.sleep(5.0)
    for number in range(30):
        free = [view for view in node.alive.pool.view().addresses if view.state is AddressState.FREE]
        if not free:
            return
        await node.add(f"first-{number}")
