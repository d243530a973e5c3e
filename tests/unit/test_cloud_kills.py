"""SIGKILL before and after every EC2 call of growth and shrinkage: the next start loses no ENI and no address.

In virtual time, with the real pool, recovery, adapter and leak sweep. A kill before a call means that EC2 never got it;
after, that EC2 carried it out and nobody heard. The kernel and EC2 are what survives.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Literal

import pytest

from agent.errors import AgentError
from agent.ipam.plan import PoolPolicy
from tests.virtual_node import VirtualNode, virtual_node
from tests.virtual_time import virtual_time

POLICY = PoolPolicy(warm_ip_target=2, minimum_ip_target=4)
POD_COUNT = 14
GROWTH = [
    ("AssignPrivateIpAddresses", 1),
    ("AssignPrivateIpAddresses", 2),
    ("DescribeSubnets", 1),
    ("CreateNetworkInterface", 1),
    ("AttachNetworkInterface", 1),
    ("ModifyNetworkInterfaceAttribute", 1),
]
SHRINKAGE = [
    ("UnassignPrivateIpAddresses", 1),
    ("DetachNetworkInterface", 1),
    ("DeleteNetworkInterface", 1),
]
When = Literal["before", "after"]


class Assassin:
    """Kills the node's agent at the `number`-th call of `action`, and starts another."""

    def __init__(self, node: VirtualNode, action: str, number: int, when: When) -> None:
        self._node = node
        self._action = action
        self._left = number
        self.killed = asyncio.Event()
        setattr(node.client, when, self._strike)

    def _strike(self, action: str) -> None:
        if action == self._action:
            self._left -= 1
            if self._left == 0:
                self._node.kill()
                self.killed.set()


async def ask_for_pods(node: VirtualNode) -> None:
    """As kubelet: whoever got no answer asks again, of whichever agent there is."""

    async def start(number: int) -> None:
        for attempt in range(20):
            if node.agent is not None:
                with suppress(AgentError, TimeoutError):
                    async with asyncio.timeout(25.0):
                        await node.add(f"pod-{number}-{attempt}")
                        return
            await asyncio.sleep(10.0)
        raise AssertionError(f"pod {number} never came")

    await asyncio.gather(*(start(number) for number in range(POD_COUNT)))


async def forget_torn_pods(node: VirtualNode) -> None:
    """Runtimes delete what failed: containers whose ADD the killed agent never answered, but may have wired."""
    names = sorted(one.holder.key.container_id for one in node.alive.ledger.attachments())
    newest = {name.rsplit("-", 1)[0]: name for name in names}
    for name in set(names) - set(newest.values()):
        await node.delete(name)


async def check_settled(node: VirtualNode, pod_count: int) -> None:
    """After the first sweep and the pool's settle time, everything that EC2 has is accounted for."""
    await asyncio.sleep(2 * 3600.0)
    node.check_nothing_lost()
    view = node.alive.pool.view()
    assert view.failure is None
    assert len(node.alive.ledger.attachments()) == pod_count
    assert len(view.addresses) - pod_count == 2 if pod_count else len(view.addresses) == 4


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("action", "number"), GROWTH)
@virtual_time
async def test_killed_while_growing(action: str, number: int, when: When) -> None:
    async with virtual_node(POLICY) as node:
        assassin = Assassin(node, action, number, when)
        await node.start()
        asking = asyncio.create_task(ask_for_pods(node))
        async with asyncio.timeout(600.0):
            await assassin.killed.wait()
        await asyncio.sleep(3.0)
        await node.start()
        await asking
        await forget_torn_pods(node)
        await check_settled(node, POD_COUNT)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("action", "number"), SHRINKAGE)
@virtual_time
async def test_killed_while_shrinking(action: str, number: int, when: When) -> None:
    async with virtual_node(POLICY) as node:
        await node.start()
        await ask_for_pods(node)
        assassin = Assassin(node, action, number, when)
        for attachment in node.alive.ledger.attachments():
            await node.delete(attachment.holder.key.container_id)
        async with asyncio.timeout(4 * 3600.0):
            await assassin.killed.wait()
        await asyncio.sleep(3.0)
        await node.start()
        await check_settled(node, 0)


@pytest.mark.parametrize("when", ["before", "after"])
@virtual_time
async def test_killed_at_every_start(when: When) -> None:
    async with virtual_node(POLICY) as node:
        for _ in range(5):
            assassin = Assassin(node, "AssignPrivateIpAddresses", 1, when)
            starting = asyncio.create_task(node.start())
            async with asyncio.timeout(60.0):
                await starting
            with suppress(TimeoutError):
                async with asyncio.timeout(60.0):
                    await assassin.killed.wait()
            if node.agent is not None:
                node.kill()
        await node.start()
        await check_settled(node, 0)
