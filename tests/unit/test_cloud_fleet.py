"""A thousand nodes on one account's request buckets restart at once: nobody starves, and nobody asks without end."""

from __future__ import annotations

import asyncio
import logging
import statistics
from collections.abc import Iterator
from functools import cache
from ipaddress import IPv4Network

import pytest

from agent.cloud import ec2
from agent.cloud.limits import bundled_limits
from agent.ipam.plan import PoolPolicy
from sim.ec2.budget import Budget
from sim.model.config import SubnetConfig
from tests.virtual_node import VirtualNode, a_vpc
from tests.virtual_time import virtual_time

NODE_COUNT = 1_000
POLICY = PoolPolicy(warm_ip_target=2, minimum_ip_target=4)
FIRST_START = {("DescribeNetworkInterfaces", "start"): 1, ("DescribeSubnets", "subnets"): 1}
FIRST_START |= {("AssignPrivateIpAddresses", "grow"): 1}
RESTART = {("DescribeNetworkInterfaces", "start"): 1}
"""What a node needs, by action and reason: a describe, a look at the subnets, its first addresses."""
REFUSED_COUNT = 6
"""Throttled requests of a node, on average, that a herd of this size may cost. Five requests a second for a thousand
nodes are three minutes and more: who asks every ten seconds is refused twenty times."""


def a_fleet(group: asyncio.TaskGroup, budget: Budget) -> list[VirtualNode]:
    """Nodes in one subnet. They share the account, so its buckets; each has the VPC to itself, which is faster."""
    subnet = SubnetConfig(cidr=IPv4Network("10.0.0.0/24"))
    return [
        VirtualNode(vpc=a_vpc(subnet), policy=POLICY, group=group, seed=seed, budget=budget)
        for seed in range(NODE_COUNT)
    ]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A million lines of log, and a thousand times the table of limits, take longer than the test."""
    monkeypatch.setattr(ec2, "bundled_limits", cache(bundled_limits))
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@virtual_time
async def test_a_thousand_nodes_start_at_once_and_later_restart_at_once() -> None:
    clock = asyncio.get_running_loop().time
    async with asyncio.TaskGroup() as group:
        nodes = a_fleet(group, Budget())
        assert max(await start_all(nodes)) < 240.0
        await asyncio.sleep(600.0)
        assert all(len(node.listed()) == POLICY.minimum_ip_target for node in nodes), "somebody starves"
        check_calls(nodes, FIRST_START, refused_count=REFUSED_COUNT)
        for node in nodes:
            node.kill()
        began_s = clock()
        assert max(await start_all(nodes)) - began_s < 240.0
        check_calls(nodes, RESTART, refused_count=REFUSED_COUNT / 2)
        await asyncio.gather(*(node.add("pod") for node in nodes))
        for node in nodes:
            node.check_nothing_lost()
        for node in nodes:
            await node.close()


def check_calls(nodes: list[VirtualNode], needed: dict[tuple[str, str], int], *, refused_count: float) -> None:
    """Every node got what it needs and no more, and was not refused too often."""
    refused = []
    for node in nodes:
        calls = [(each.action, one) for each in node.alive.cloud.budget() for one in each.calls]
        answered = {(action, one.reason): one.count for action, one in calls if one.outcome == "ok"}
        sweeps = answered.pop(("DescribeNetworkInterfaces", "leaks"), 0)  # some minutes after the start
        assert answered == needed
        assert sweeps <= 1
        refused.append(sum(one.count for _, one in calls if one.outcome == "ec2_throttled"))
    assert statistics.mean(refused) <= refused_count
    assert max(refused) <= 4 * refused_count


async def start_all(nodes: list[VirtualNode]) -> list[float]:
    """Start them at the same moment; when each was ready."""

    async def start(node: VirtualNode) -> float:
        await node.start()
        return asyncio.get_running_loop().time()

    return await asyncio.gather(*(start(node) for node in nodes))
