"""What EC2 shows is followed: security groups, DeleteOnTermination, and what others change behind the agent's back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from agent.ipam.model import AddressState
from agent.ipam.plan import PoolPolicy, Surroundings
from sim.faults import ErrorEffect, Fault, HangEffect
from sim.model.interfaces import InterfaceAttributes, modify_interface
from sim.model.ipv4 import Ipv4Wish, assign_ipv4, unassign_ipv4
from sim.model.records import Step
from tests.virtual_node import VirtualNode, virtual_node
from tests.virtual_time import virtual_time

POLICY = PoolPolicy(warm_ip_target=3, minimum_ip_target=4)
EPOCH_S = 900.0


async def grown(node: VirtualNode, pod_count: int = 12) -> None:
    """Two ENIs with pods on both (an m5.large has nine slots on each)."""
    await node.start()
    await asyncio.gather(*(node.add(f"pod-{number}") for number in range(pod_count)))
    await asyncio.sleep(60.0)
    assert len(node.enis()) >= 2


def set_groups(node: VirtualNode, eni_id: str, *groups: str) -> None:
    wanted = InterfaceAttributes(security_group_ids=groups)
    node.vpc.apply(lambda state, _: modify_interface(state, eni_id, wanted), now_s=node._clock())


@virtual_time
async def test_the_primary_enis_security_groups_are_followed_by_one_write_per_eni_and_no_read() -> None:
    async with virtual_node(POLICY) as node:
        await grown(node)
        first, second = node.vpc.state.security_groups
        primary, *others = node.enis()
        assert {eni.security_group_ids for eni in others} == {(first,)}
        before = node.client.outcomes()
        set_groups(node, primary.eni_id, second, first)
        await asyncio.sleep(EPOCH_S + 60.0)
        assert {frozenset(eni.security_group_ids) for eni in node.enis()} == {frozenset({first, second})}
        await asyncio.sleep(3600.0)
        made = node.client.outcomes() - before
        assert made["ModifyNetworkInterfaceAttribute", "ok"] == len(others)
        assert made["DescribeNetworkInterfaces", "ok"] == 7  # in 76 minutes: five looks, two sweeps, as ever
        node.check_nothing_lost()


@virtual_time
async def test_security_groups_that_cannot_be_written_are_tried_again_and_harm_nobody() -> None:
    async with virtual_node(POLICY) as node:
        await grown(node)
        _, second = node.vpc.state.security_groups
        denied = ErrorEffect(code="UnauthorizedOperation", http_status=403)
        node.client.faults.add(Fault(action="ModifyNetworkInterfaceAttribute", effect=denied, times=3))
        set_groups(node, node.enis()[0].eni_id, second)
        await asyncio.sleep(2 * EPOCH_S)
        await node.add("late")
        await asyncio.sleep(3600.0)
        assert {eni.security_group_ids for eni in node.enis()} == {(second,)}
        assert node.client.outcomes()["ModifyNetworkInterfaceAttribute", "UnauthorizedOperation"] == 3


@virtual_time
async def test_an_eni_that_would_outlive_its_instance_is_put_right() -> None:
    async with virtual_node(POLICY) as node:
        await grown(node)
        other = node.enis()[1]
        assert other.attachment is not None
        outliving = replace(other, attachment=replace(other.attachment, delete_on_termination=False))
        node.vpc.apply(lambda state, _: Step(state=state.with_eni(outliving), result=None), now_s=node._clock())
        await asyncio.sleep(EPOCH_S + 60.0)
        node.check_nothing_lost()


@virtual_time
async def test_addresses_added_and_free_ones_removed_by_others_are_noticed() -> None:
    async with virtual_node(POLICY) as node:
        await grown(node, 7)
        now_s = node._clock()
        free = tuple(
            view.address
            for view in node.alive.pool.view().addresses
            if view.state is AddressState.FREE and isinstance(view.address, IPv4Address)
        )
        held_on = next(eni for eni in node.enis() if free[0] in eni.secondary_addresses)
        await asyncio.sleep(EPOCH_S)
        node.vpc.apply(lambda state, _: unassign_ipv4(state, held_on.eni_id, free[:1], ()), now_s=now_s)
        other = node.enis()[-1]
        node.vpc.apply(lambda state, rules: assign_ipv4(state, rules, other.eni_id, Ipv4Wish(count=1)), now_s=now_s)
        await asyncio.sleep(EPOCH_S + 120.0)
        node.check_nothing_lost()


@virtual_time
async def test_a_held_address_that_others_remove_is_quarantined_and_its_pod_left_alone() -> None:
    async with virtual_node(POLICY) as node:
        await grown(node, 7)
        held = node.alive.ledger.attachments()[0]
        [address] = held.addresses
        assert isinstance(address, IPv4Address)
        eni = next(one for one in node.enis() if address in one.secondary_addresses)
        node.kernel._check_addresses = lambda: None  # type: ignore[method-assign]  # the breach is what is tested
        await asyncio.sleep(EPOCH_S)
        node.vpc.apply(lambda state, _: unassign_ipv4(state, eni.eni_id, (address,), ()), now_s=node._clock())
        await asyncio.sleep(EPOCH_S + 60.0)
        view = node.alive.pool.view()
        [quarantined] = [one for one in view.addresses if one.state is AddressState.QUARANTINED]
        assert quarantined.address == address
        assert node.alive.ledger.attachment(held.holder.key) is not None
        assert [finding.kind.value for finding in view.findings] == ["address_vanished"]


@pytest.mark.parametrize("around", [Surroundings(is_schedulable=False), Surroundings(is_provisioning=False)])
def test_a_cordoned_node_and_one_provided_for_by_others_change_nothing(around: Surroundings) -> None:
    @virtual_time
    async def test() -> None:
        async with virtual_node(POLICY) as node:
            await grown(node)
            node.tell(around)
            for number in range(12):
                await node.delete(f"pod-{number}")
            set_groups(node, node.enis()[0].eni_id, list(node.vpc.state.security_groups)[1])
            before = node.client.outcomes()
            await asyncio.sleep(3 * 3600.0)
            written = {action for action, _ in node.client.outcomes() - before if not action.startswith("Describe")}
            # Security groups are neither attached nor detached: a cordoned node follows them.
            assert written == (set() if around.is_schedulable else {"ModifyNetworkInterfaceAttribute"})
            await asyncio.gather(*(node.add(f"again-{number}") for number in range(12)))
            node.tell(Surroundings())
            for number in range(12):
                await node.delete(f"again-{number}")
            await asyncio.sleep(3 * 3600.0)
            assert len(node.enis()) == 1
            node.check_nothing_lost()

    test()


@virtual_time
async def test_an_eni_that_does_not_let_go_keeps_no_pod_waiting() -> None:
    async with virtual_node(POLICY, instance_type="m5.4xlarge") as node:
        await grown(node, 60)
        node.client.faults.add(Fault(action="DetachNetworkInterface", effect=HangEffect(), times=None))
        for number in range(60):
            await node.delete(f"pod-{number}")
        while not node.client.faults.listed()[0].hit_count:
            await asyncio.sleep(1.0)
        began_s = node._clock()
        await asyncio.gather(*(node.add(f"more-{number}") for number in range(70)))
        assert node._clock() - began_s < 6.0  # subnets, create, attach, two seconds for the link
        assert node.client.count("DetachNetworkInterface") == 0, "one has ended"
        node.client.faults.clear()
        await asyncio.sleep(3600.0)
        node.check_nothing_lost()


@virtual_time
async def test_an_idle_hour_costs_at_most_six_reads_and_no_write() -> None:
    async with virtual_node(POLICY) as node:
        await grown(node)
        await asyncio.sleep(3600.0)
        for _ in range(5):
            before = node.client.outcomes()
            await asyncio.sleep(3600.0)
            made = node.client.outcomes() - before
            assert made.total() <= 6
            assert all(action.startswith("Describe") for action, _ in made)
        reasons = {one.reason for action in node.alive.cloud.budget() for one in action.calls}
        assert reasons == {"start", "grow", "grow_eni", "subnets", "observe", "leaks"}
