"""A thousand nodes on one account's request buckets restart at once: nobody starves, and nobody asks without end."""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter
from ipaddress import IPv4Network

import pytest

from agent.ipam.plan import PoolPolicy
from sim.ec2.budget import Budget
from sim.model.config import SubnetConfig
from tests.virtual_node import VirtualNode, a_vpc
from tests.virtual_time import virtual_time

NODE_COUNT = 1_000
POLICY = PoolPolicy(warm_ip_target=2, minimum_ip_target=4)
RESTART_CALLS = 4
"""Requests a node may send for a restart, those that were throttled included: four times the one it needs."""
START_CALLS = 8
"""For a first start, which needs two: a describe and the first addresses (four with a new ENI)."""


def a_fleet(group: asyncio.TaskGroup, budget: Budget) -> list[VirtualNode]:
    """Nodes in one subnet. They share the account, so its buckets; each has the VPC to itself, which is faster."""
    subnet = SubnetConfig(cidr=IPv4Network("10.0.0.0/24"))
    return [
        VirtualNode(vpc=a_vpc(subnet), policy=POLICY, group=group, seed=seed, budget=budget)
        for seed in range(NODE_COUNT)
    ]


@pytest.mark.timeout(120)
@virtual_time
async def test_a_thousand_nodes_start_at_once_and_later_restart_at_once() -> None:
    clock = asyncio.get_running_loop().time
    async with asyncio.TaskGroup() as group:
        nodes = a_fleet(group, Budget())
        ready = await start_all(nodes)
        assert max(ready) < 240.0
        await asyncio.sleep(600.0)
        first = [Counter(one.action for one in node.client.sent) for node in nodes]
        assert statistics.mean(calls.total() for calls in first) <= START_CALLS
        assert all(len(node.listed()) == POLICY.minimum_ip_target for node in nodes)
        for node in nodes:
            node.kill()
        began_s = clock()
        again = await start_all(nodes)
        assert max(again) - began_s < 240.0
        sent = [len(node.client.sent) for node in nodes]
        assert statistics.mean(sent) <= RESTART_CALLS
        assert max(sent) <= 3 * RESTART_CALLS
        await asyncio.gather(*(node.add("pod") for node in nodes))
        for node in nodes:
            node.check_nothing_lost()
        for node in nodes:
            await node.close()


async def start_all(nodes: list[VirtualNode]) -> list[float]:
    """Start them at the same moment; when each was ready."""

    async def start(node: VirtualNode) -> float:
        await node.start()
        return asyncio.get_running_loop().time()

    return await asyncio.gather(*(start(node) for node in nodes))
