"""When IMDS is asked for the VPC's CIDRs: soon where connections leave the VPC, hardly ever where none does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Network

import pytest

from agent.errors import Cause, CloudFailed, KernelFailed
from agent.runtime.reconciler import Backoff, Reconciler
from agent.vpc_cidrs import VpcCidrs
from tests.virtual_time import virtual_time

VPC = IPv4Network("10.0.0.0/16")
ADDED = IPv4Network("100.64.0.0/16")


class Node:
    """A kernel that counts, and an IMDS that may fail."""

    def __init__(self) -> None:
        self.leaving_count = 0
        self.cidrs: tuple[IPv4Network, ...] = (VPC,)
        self.written: list[tuple[float, frozenset[IPv4Network]]] = []
        self.reads_s: list[float] = []
        self.imds_failure: CloudFailed | None = None
        self.write_failure: KernelFailed | None = None

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def read(self) -> tuple[IPv4Network, ...]:
        self.reads_s.append(self.now_s())
        if self.imds_failure is not None:
            raise self.imds_failure
        return self.cidrs

    async def write(self, cidrs: Sequence[IPv4Network]) -> None:
        if self.write_failure is not None:
            failure, self.write_failure = self.write_failure, None
            raise failure
        self.written.append((self.now_s(), frozenset(cidrs)))

    async def count_leaving(self) -> int:
        return self.leaving_count

    async def open_connections(self, every_s: float) -> None:
        while True:
            self.leaving_count += 1
            await asyncio.sleep(every_s)


@asynccontextmanager
async def watched() -> AsyncIterator[Node]:
    node = Node()
    step = VpcCidrs(
        read=node.read, write=node.write, count_leaving=node.count_leaving, known=node.cidrs, clock=node.now_s
    ).step
    async with asyncio.TaskGroup() as group:
        turning = group.create_task(Reconciler("vpc_cidrs", step, timeout_s=60.0).run())
        yield node
        turning.cancel()


@virtual_time
async def test_an_idle_hour_costs_forty_reads() -> None:
    async with watched() as node:
        await asyncio.sleep(3_600.0)
        assert 39 <= len(node.reads_s) <= 40
        assert node.written == []


@pytest.mark.parametrize("every_s", [0.1, 3.0, 20.0])
@virtual_time
async def test_a_change_is_in_force_within_half_a_minute_while_connections_leave(every_s: float) -> None:
    async with watched() as node:
        opening = asyncio.create_task(node.open_connections(every_s))
        for number in range(20):
            await asyncio.sleep(100.0 + number)
            node.cidrs = (VPC, ADDED) if number % 2 == 0 else (VPC,)
            changed_s = node.now_s()
            await asyncio.sleep(30.0)
            written_s, written = node.written[-1]
            assert (written, written_s >= changed_s) == (frozenset(node.cidrs), True)
        assert len(node.written) == 20
        assert len(node.reads_s) <= node.now_s() / 20
        opening.cancel()


@pytest.mark.parametrize("first_s", [0.0, 10.0, 31.0, 60.0])
@virtual_time
async def test_on_an_idle_node_a_change_is_in_force_soon_after_the_first_connection(first_s: float) -> None:
    """Within 30 s of the change, or, when the first connection comes later, within the pause between two looks."""
    async with watched() as node:
        for number in range(20):
            await asyncio.sleep(400.0 + 7 * number)
            node.cidrs = (VPC, ADDED) if number % 2 == 0 else (VPC,)
            await asyncio.sleep(first_s)
            node.leaving_count += 1
            await asyncio.sleep(max(5.0, 25.0 - first_s))
            assert node.written[-1][1] == frozenset(node.cidrs)


@virtual_time
async def test_a_table_made_anew_counts_from_zero_and_is_a_hint_too() -> None:
    async with watched() as node:
        node.leaving_count = 7
        await asyncio.sleep(200.0)
        node.leaving_count = 0
        read_count = len(node.reads_s)
        await asyncio.sleep(26.0)
        assert len(node.reads_s) == read_count + 1


@virtual_time
async def test_what_fails_is_found_again() -> None:
    async with watched() as node:
        node.cidrs = (VPC, ADDED)
        node.imds_failure = CloudFailed(Cause.IMDS_UNAVAILABLE, "no answer")
        await asyncio.sleep(200.0)
        assert node.written == []
        node.imds_failure = None
        node.write_failure = KernelFailed(Cause.KERNEL_REFUSED, "busy")
        await asyncio.sleep(2 * Backoff().max_s * 2)  # two pauses at the most, each with its jitter
        assert [written for _, written in node.written] == [frozenset((VPC, ADDED))]
        assert node.write_failure is None
