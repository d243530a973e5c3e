"""One node of ours in memory: the agent's own parts between the simulator's model and a kernel in memory.

Real are the planner, the pool with its loop, the ledger, recovery, the ADD and DEL transaction and the EC2 adapter; put
together as `agent.node.Node` does it. Time is the running event loop's.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Network
from itertools import count

from agent.attachments import AttachmentPolicy, Attachments, AttachRequest
from agent.errors import AgentError
from agent.ipam.model import AttachmentKey, Holder, SubnetId
from agent.ipam.plan import EniSite, PoolPolicy, Surroundings
from agent.ipam.pool import Pool
from agent.ipam.recovery import recover
from agent.runtime.reconciler import Reconciler
from agent.vpc_cidrs import VpcCidrs
from bench.pool_cloud import MemoryClient, MemoryCloud, MemoryMetadata
from bench.pool_kernel import MemoryKernel
from sim.model.config import REALISTIC_TIMINGS, SubnetConfig, VpcConfig
from sim.model.records import Step
from sim.model.space import free_prefixes, take
from sim.model.vpc import Vpc

COOLDOWN_S = 30.0
ADD_DEADLINE_S = 20.0
"""Both as the settings' defaults."""
_TURN_S = 60.0
"""The longest turn of the pool's loop, as in `agent.node`."""
_LAUNCH_S = 60.0
"""From the launch of a machine until its agent starts."""
_SUBNET = IPv4Network("10.0.0.0/20")
_POD_SUBNET = IPv4Network("10.0.16.0/20")
"""Of the ENIConfig, with custom networking."""


@dataclass(slots=True, kw_only=True)
class _Agent:
    """What exists between two restarts."""

    cloud: MemoryCloud
    pool: Pool
    attachments: Attachments
    loops: tuple[asyncio.Task[None], ...]


@dataclass(slots=True, kw_only=True)
class _Pod:
    """starting: its ADDs, until one succeeds. key: of the last one."""

    starting: asyncio.Task[None]
    key: AttachmentKey | None = None


class EnokiNode:
    """Make it inside a running event loop, then `boot`. Whatever breaks in a task of it, breaks `group`."""

    def __init__(self, instance_type: str, targets: PoolPolicy, *, seed: int, group: asyncio.TaskGroup) -> None:
        self._targets = targets
        self._random = random.Random(seed)
        self._group = group
        self._clock = asyncio.get_running_loop().time
        subnets = (SubnetConfig(cidr=_SUBNET), *([SubnetConfig(cidr=_POD_SUBNET)] if targets.custom_networking else []))
        self._vpc = Vpc(VpcConfig(seed=seed, subnets=subnets), timings=REALISTIC_TIMINGS)
        self._subnet_id, *pod_subnets = self._vpc.state.subnets
        self._site = EniSite(subnet_id=SubnetId(pod_subnets[0])) if pod_subnets else None
        launched_s = self._clock() - _LAUNCH_S
        instance = self._vpc.run_instance(instance_type, self._subnet_id, now_s=launched_s)
        self._instance_id = instance.instance_id
        self._kernel = MemoryKernel(self._vpc, self._instance_id, clock=self._clock)
        self.client = MemoryClient(self._vpc, clock=self._clock)
        self.metadata = MemoryMetadata(self._vpc, self._instance_id, clock=self._clock)
        self.failed_add_count = 0
        self.wait_s: dict[str, float] = {}
        self._is_schedulable = True
        self._agent: _Agent | None = None
        self._pods: dict[str, _Pod] = {}

    @property
    def cloud(self) -> MemoryCloud:
        """The running agent's EC2 adapter."""
        return self._running().cloud

    @property
    def address_count(self) -> int:
        """Addresses EC2 has given to this node's ENIs for pods."""
        enis = self._vpc.state.enis_of(self._instance_id)
        return sum(len(eni.secondary_addresses) + 16 * len(eni.ipv4_prefixes) for eni in enis)

    @property
    def eni_count(self) -> int:
        return len(self._vpc.state.enis_of(self._instance_id))

    async def boot(self) -> None:
        """Start the agent: returns when ADDs are served."""
        instance = await self.metadata.instance()
        cloud = await MemoryCloud(self.client, instance=instance, metadata=self.metadata).__aenter__()
        limits = await cloud.limits(instance.instance_type)
        enis = await cloud.describe_enis()
        recovered = recover(await self._kernel.observe(), enis, self._clock(), self._targets.placement)
        assert not recovered.findings, recovered.findings

        async def step() -> float:
            return await pool.step()

        loop = Reconciler("pool", step, timeout_s=_TURN_S, draw=self._random.random)
        pool = Pool(
            cloud=cloud,
            datapath=self._kernel,
            ledger=recovered.ledger,
            limits=limits,
            policy=self._targets,
            clock=self._clock,
            wake=loop.wake,
            draw=self._random.random,
        )
        self._tell(pool)
        await pool.start()
        attachments = Attachments(
            pool=pool,
            ledger=recovered.ledger,
            datapath=self._kernel,
            policy=AttachmentPolicy(cooldown_s=COOLDOWN_S, mtu=9001),
            clock=self._clock,
        )
        vpc_cidrs = VpcCidrs(
            read=partial(self.metadata.vpc_cidrs, instance.primary_mac),
            write=self._kernel.set_vpc_cidrs,
            count_leaving=self._kernel.count_leaving,
            known=instance.vpc_cidrs,
            clock=self._clock,
        )
        loops = loop, Reconciler("vpc_cidrs", vpc_cidrs.step, timeout_s=_TURN_S, draw=self._random.random)
        running = tuple(self._group.create_task(each.run(), name=each.name) for each in loops)
        self._agent = _Agent(cloud=cloud, pool=pool, attachments=attachments, loops=running)

    async def restart(self) -> None:
        """End the agent and start another; the kernel and EC2 stay as they are."""
        await self._end()
        await self.boot()

    async def close(self) -> None:
        """End everything."""
        for pod in self._pods.values():
            pod.starting.cancel()
        await self._end()

    async def _end(self) -> None:
        agent, self._agent = self._running(), None
        for loop in agent.loops:
            loop.cancel()
        agent.attachments.turn_away()
        await agent.attachments.drain(1.0)
        await agent.pool.close()
        await agent.cloud.__aexit__(None, None, None)

    def _running(self) -> _Agent:
        assert self._agent is not None, "the agent does not run"
        return self._agent

    # ---- pods

    def add_pod(self, name: str) -> None:
        """ADD; repeated by kubelet until it succeeds or the pod is gone."""
        self._pods[name] = _Pod(starting=self._group.create_task(self._start(name), name=f"start {name}"))

    def delete_pod(self, name: str) -> None:
        """DEL; also of a pod that never got an address."""
        pod = self._pods.pop(name)
        pod.starting.cancel()
        self._group.create_task(self._stop(pod), name=f"stop {name}")

    async def _start(self, name: str) -> None:
        asked_s = self._clock()
        for attempt in count():
            key = AttachmentKey(container_id=f"{name}-{attempt}", ifname="eth0")
            self._pods[name].key = key
            request = AttachRequest(
                holder=Holder(key=key, namespace="bench", pod=name), netns=f"/run/netns/{name}", request_id=name
            )
            try:
                await self._running().attachments.add(request, deadline_s=ADD_DEADLINE_S)
            except AgentError:
                self.failed_add_count += 1
                await asyncio.sleep(self._random.uniform(10, 15))
            else:
                self.wait_s[name] = self._clock() - asked_s
                return

    async def _stop(self, pod: _Pod) -> None:
        await asyncio.wait({pod.starting})
        if pod.key is not None:
            await self._running().attachments.delete(pod.key)

    # ---- the world around

    def cordon(self, *, is_schedulable: bool) -> None:
        """Kubernetes says whether new pods may come."""
        self._is_schedulable = is_schedulable
        self._tell(self._running().pool)

    def _tell(self, pool: Pool) -> None:
        pool.tell(Surroundings(is_schedulable=self._is_schedulable, site=self._site))

    def fragment_subnet(self) -> None:
        """Others take one address of every /28 that is free as a whole, and keep it."""
        subnet = self._vpc.state.subnets[self._subnet_id]
        broken = take(subnet, (prefix[0] for prefix in tuple(free_prefixes(subnet))))
        self._vpc.apply(lambda state, _: Step(state=state.with_subnet(broken), result=None), now_s=self._clock())

    def fill_subnet(self) -> None:
        """Others take every address the subnet has left, and keep them."""
        subnet = self._vpc.state.subnets[self._subnet_id]
        full = replace(subnet, used_bits=(1 << subnet.cidr.num_addresses) - 1)
        self._vpc.apply(lambda state, _: Step(state=state.with_subnet(full), result=None), now_s=self._clock())
