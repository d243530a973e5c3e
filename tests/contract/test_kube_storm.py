"""Kubernetes adds knowledge and is never a condition: a thousand pods come and go whatever the API server does.

Real are the API server's HTTP, the agent's view of it, the pool with its loop and the ADD and DEL transaction; EC2 and
the kernel are in memory and take no time.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import pytest

from agent.attachments import AttachmentPolicy, Attachments, AttachRequest
from agent.ipam.model import Address, AttachmentKey, Holder, Mac
from agent.ipam.plan import PoolPolicy
from agent.ipam.pool import Pool
from agent.ipam.recovery import recover
from agent.kube.cluster import POD_IPS, KubeCluster
from agent.kube.outbox import MAX_STATES
from agent.kube.policy import KubePolicy
from agent.kube.surroundings import surroundings
from agent.ports.cluster import Notice, NoticeKind
from agent.ports.datapath import PodWiring, Wired
from agent.runtime.reconciler import Backoff, Reconciler
from sim.kube.faults import Fault, Rule
from sim.kube.server import ApiServer, a_node, a_pod
from sim.kube.store import NODES, PODS
from tests.contract.kube_access import access_to
from tests.ipam_builders import M5_LARGE
from tests.pool_world import MemoryEc2, MemoryKernel

NODE = "node-1"
AT_ONCE = 20
"""Pods that come at the same time; m5.large has 27 addresses."""
PER_WEATHER = 200
PATIENCE_S = 60.0
"""Only a failing test waits that long."""
GROWTH_BYTES = 200_000
"""What may be more in memory after 400 further pods than before them: aiohttp's and yarl's bounded caches fill. A pod
that stayed would take half a KiB and more each."""


class Kernel(MemoryKernel):
    """Wires at once, and notes an address that two pods have."""

    def __init__(self) -> None:
        super().__init__()
        self.wired: dict[AttachmentKey, tuple[Address, ...]] = {}

    async def wire(self, wiring: PodWiring) -> Wired:
        taken = {address for addresses in self.wired.values() for address in addresses}
        assert not taken & set(wiring.addresses), "two pods have one address"
        self.wired[wiring.holder.key] = wiring.addresses
        return Wired(host_ifname="eni0", host_mac=Mac("02:00:00:00:00:01"), pod_mac=Mac("02:00:00:00:00:02"))

    async def unwire(self, key: AttachmentKey, _addresses: Sequence[Address], _cooldown_s: float) -> None:
        self.wired.pop(key)


@dataclass(slots=True, kw_only=True)
class World:
    server: ApiServer
    cluster: KubeCluster
    pool: Pool
    attachments: Attachments
    settling: Reconciler
    changed: asyncio.Event

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for something that shows when the API server, what is known of it, or the pool has changed."""
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():
                self.changed.clear()
                await self.changed.wait()

    async def pod_lives(self, number: int) -> None:
        """A pod is bound, attached, detached and deleted."""
        name = f"pod-{number}"
        await self.server.store.create(PODS, "default", a_pod(name, NODE))
        key = AttachmentKey(container_id=f"c-{number}", ifname="eth0")
        request = AttachRequest(
            holder=Holder(key=key, namespace="default", pod=name), netns="/run/netns/x", request_id=name
        )
        await self.attachments.add(request, deadline_s=PATIENCE_S)
        self.cluster.report(Notice(kind=NoticeKind.DRIFT_REPAIRED, subject=name, message="repaired"))
        await self.attachments.delete(key)
        await self.server.store.delete(PODS, "default", name)

    async def pods_live(self, numbers: range, *, weather: Weather | None = None) -> None:
        """Groups of pods, one after the other; each after the weather has changed once more."""
        for first in range(numbers.start, numbers.stop, AT_ONCE):
            if weather is not None:
                await weather.next_change()
            async with asyncio.TaskGroup() as group:
                for number in range(first, first + AT_ONCE):
                    group.create_task(self.pod_lives(number))


class Weather:
    """Something that an API server does again and again, while this is entered."""

    def __init__(self, server: ApiServer, change: Callable[[ApiServer], Awaitable[None]]) -> None:
        self._server = server
        self._change = change
        self._changed = asyncio.Condition()
        self._is_over = False
        self.change_count = 0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True  # not cancelled: half a change is no weather but a broken server
        await self._task

    async def next_change(self) -> None:
        async with self._changed:
            wanted = self.change_count + 1
            await self._changed.wait_for(lambda: self.change_count >= wanted)

    async def _run(self) -> None:
        while not self._is_over:
            await self._change(self._server)
            async with self._changed:
                self.change_count += 1
                self._changed.notify_all()


async def be_absent(server: ApiServer) -> None:
    await server.stop()
    await asyncio.sleep(0.02)


async def hang(server: ApiServer) -> None:
    server.faults.add(Rule(fault=Fault.HANG), count=1_000)
    await come_back(server)
    await asyncio.sleep(0.02)


async def flap(server: ApiServer) -> None:
    await server.stop()
    await asyncio.sleep(0.01)
    await server.start()
    await asyncio.sleep(0.02)


async def lie(server: ApiServer) -> None:
    """Old lists, and watches that have to be listed for again and again."""
    await come_back(server)
    server.faults.add(Rule(fault=Fault.GONE_IN_STREAM, verb="watch"))
    server.faults.add(Rule(fault=Fault.STALE, verb="list"), count=3)
    server.store.compact()
    await asyncio.sleep(0.02)


async def babble(server: ApiServer) -> None:
    await come_back(server)
    for fault in (Fault.GARBAGE, Fault.DISCONNECT, Fault.UNAVAILABLE, Fault.END_AT_ONCE):
        server.faults.add(Rule(fault=fault))
    await asyncio.sleep(0.02)


async def come_back(server: ApiServer) -> None:
    """Up, and with no watch left from better times."""
    await server.stop()
    await server.start()


@asynccontextmanager
async def world() -> AsyncIterator[World]:
    server = ApiServer(bookmark_s=0.05)
    await server.start()
    await server.store.create(NODES, "", a_node(NODE))
    policy = PoolPolicy(warm_ip_target=2, minimum_ip_target=4)
    cluster = KubeCluster(
        KubePolicy(node_name=NODE, annotate_pod_ip=True),
        version="test",
        find=lambda _: access_to(server.url),
        draw=lambda: 0.0003,  # waits of at most 18 ms: the weather is met again and again
    )
    kernel = Kernel()
    ec2 = MemoryEc2(M5_LARGE, kernel)
    ec2.delays_s = dict.fromkeys(ec2.delays_s, 0.0)
    ec2.link_delay_s = 0.0
    clock = asyncio.get_running_loop().time
    ledger = recover(await kernel.observe(), tuple(ec2.enis.values()), clock(), policy.placement).ledger
    ec2.held = lambda: {address for held in ledger.attachments() for address in held.addresses}

    changed = asyncio.Event()

    async def step() -> float:
        rest_s = await pool.step()
        changed.set()
        return rest_s

    async def note_writes() -> None:
        async with server.store.changed:
            while True:
                await server.store.changed.wait()
                changed.set()

    async def settle() -> float:
        await cluster.settle(ledger.attachments())
        return 0.05

    pool_loop, settling = (
        Reconciler("pool", step, timeout_s=30.0),
        Reconciler("settle", settle, timeout_s=30.0, backoff=Backoff(first_s=0.01, max_s=0.05)),
    )
    pool = Pool(
        cloud=ec2,
        datapath=kernel,
        ledger=ledger,
        limits=M5_LARGE,
        policy=policy,
        clock=clock,
        wake=pool_loop.wake,
    )
    cluster.subscribe(lambda: pool.tell(surroundings(cluster)))
    cluster.subscribe(changed.set)
    attachments = Attachments(
        pool=pool, ledger=ledger, datapath=kernel, policy=AttachmentPolicy(cooldown_s=0.0, mtu=9001), clock=clock
    )
    await pool.start()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run()) for run in (cluster.run, pool_loop.run, settling.run, note_writes)]
        yield World(
            server=server, cluster=cluster, pool=pool, attachments=attachments, settling=settling, changed=changed
        )
        for task in tasks:
            task.cancel()
    await pool.close()
    await server.stop()


async def test_a_thousand_pods_come_and_go_in_any_weather() -> None:
    async with world() as it:
        first = 0
        for change in (be_absent, hang, flap, lie, babble):
            await it.until(lambda: it.cluster.view().failure is None and it.cluster.view().synced)
            async with Weather(it.server, change) as weather:
                await it.pods_live(range(first, first + PER_WEATHER), weather=weather)
                await it.until(lambda: it.cluster.view().failure is not None)
            first += PER_WEATHER
            it.server.faults.clear()
            await come_back(it.server)
        assert first == 1000

        # The weather clears: what is so is known again, and told.
        await it.server.store.create(PODS, "default", a_pod("last", NODE))
        await it.until(lambda: it.cluster.view().pod_count == 1 and it.cluster.max_pods == 110)
        assert len(it.cluster.announced()) == 1
        key = AttachmentKey(container_id="c-last", ifname="eth0")
        holder = Holder(key=key, namespace="default", pod="last")
        attached = await it.attachments.add(
            AttachRequest(holder=holder, netns="/run/netns/x", request_id="last"), deadline_s=PATIENCE_S
        )
        await it.until(lambda: "annotations" in it.server.store.get(PODS, "default", "last")["metadata"])
        annotations = it.server.store.get(PODS, "default", "last")["metadata"]["annotations"]
        assert annotations == {POD_IPS: str(attached.addresses[0])}


async def test_memory_stays_flat_while_the_api_server_flaps(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # whoever captures the log keeps it
    async with world() as it, Weather(it.server, flap) as weather:
        await it.pods_live(range(PER_WEATHER), weather=weather)
        tracemalloc.start()
        try:
            await it.pods_live(range(PER_WEATHER, 2 * PER_WEATHER), weather=weather)
            before = traced_bytes(it.server)
            await it.pods_live(range(2 * PER_WEATHER, 4 * PER_WEATHER), weather=weather)
            growth = traced_bytes(it.server) - before
        finally:
            tracemalloc.stop()

        assert growth < GROWTH_BYTES, f"{growth} bytes"
        assert len(it.cluster._outbox) <= MAX_STATES
        assert len(it.cluster._annotated) <= AT_ONCE


def traced_bytes(server: ApiServer) -> int:
    """What is in use, but for the history that the server keeps of itself."""
    server.store.compact()
    server.queries.clear()
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def test_bound_pods_have_addresses_before_they_ask() -> None:
    """Announced demand: the pool grows for pods that the kubelet has not started yet, and no pod waits for EC2."""
    async with world() as it:
        for number in range(15):
            await it.server.store.create(PODS, "default", a_pod(f"pod-{number}", NODE))
        await it.until(lambda: sum(len(one.free) for one in it.pool.view().enis) >= 15)
