"""A node in virtual time that can be killed: the real pool, recovery and EC2 adapter on the simulator's model.

The kernel and EC2 outlive the agent, as on a real node. A killed agent's tasks do nothing more: whatever they ask of
EC2 hangs, and at the end they are cancelled.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network
from typing import cast

from agent.attachments import AttachmentPolicy, Attachments, AttachRequest
from agent.cloud.policy import CloudPolicy
from agent.cloud.sweep import LeakSweep
from agent.errors import AgentError
from agent.ipam.ledger import Ledger
from agent.ipam.model import AttachmentKey, Holder
from agent.ipam.plan import PoolPolicy, Surroundings
from agent.ipam.pool import Pool
from agent.ipam.recovery import recover
from agent.runtime.purpose import purpose
from agent.runtime.reconciler import Reconciler
from agent.runtime.startup import Startup
from bench.pool_cloud import MemoryClient, MemoryCloud, MemoryMetadata
from bench.pool_kernel import MemoryKernel
from sim.ec2.budget import Budget
from sim.model.config import AddressPlacement, SecurityGroupConfig, SubnetConfig, Timings, VpcConfig
from sim.model.records import EniRecord
from sim.model.vpc import Vpc
from tests.faulty_ec2 import FaultyClient

COOLDOWN_S = 30.0
EPOCH_S = 1_772_366_400.0
"""The wall clock at virtual second 0: 2026-03-01T12:00:00Z."""
SUBNET = SubnetConfig(cidr=IPv4Network("10.0.0.0/22"))


@dataclass(slots=True, kw_only=True)
class Agent:
    """What ends with the process. loops: all its tasks but those of the pool's own actions."""

    client: FaultyClient
    cloud: MemoryCloud
    ledger: Ledger
    pool: Pool
    attachments: Attachments
    leaks: LeakSweep
    loops: list[asyncio.Task[None]]


class VirtualNode:
    """Make it inside a running virtual loop. `agent` is the living one."""

    def __init__(
        self,
        *,
        vpc: Vpc,
        instance_type: str = "m5.large",
        policy: PoolPolicy,
        group: asyncio.TaskGroup,
        seed: int = 1,
        budget: Budget | None = None,
    ) -> None:
        self.vpc = vpc
        self.policy = policy
        self._told = Surroundings()
        self._budget = budget
        self._group = group
        self._random = random.Random(seed)
        self._clock = asyncio.get_running_loop().time
        self._subnet_id = next(iter(vpc.state.subnets))
        instance = vpc.run_instance(instance_type, self._subnet_id, now_s=self._clock() - 60.0)
        self.instance_id = instance.instance_id
        self.kernel = MemoryKernel(vpc, self.instance_id, clock=self._clock)
        self.client = self._new_client()
        self.agent: Agent | None = None
        self.graveyard: list[Agent] = []
        self.startup: Startup | None = None
        self._cloud: MemoryCloud

    # ---- the agent's life

    async def start(self) -> None:
        """Start the agent as `agent.node.Node` does: its stages are repeated until they are done."""
        stages = {"identity": self._identify, "addresses": self._recover}
        self.startup = Startup(stages, draw=self._random.random)
        await self.startup.run()

    async def _identify(self) -> None:
        metadata = MemoryMetadata(self.vpc, self.instance_id, clock=self._clock)
        instance = await metadata.instance()
        cloud = MemoryCloud(cast("MemoryClient", self.client), instance=instance, metadata=metadata)
        cloud._changes._now = self._now
        cloud._calls.budget._draw = self._random.random
        self._cloud = await cloud.__aenter__()

    async def _recover(self) -> None:
        client, cloud = self.client, self._cloud
        instance = cloud._instance
        with purpose("start"):
            limits = await cloud.limits(instance.instance_type)
            enis = await cloud.describe_enis()
        ledger = recover(await self.kernel.observe(), enis, self._clock()).ledger

        async def step() -> float:
            return await pool.step()

        loop = Reconciler("pool", step, timeout_s=60.0, draw=self._random.random)
        pool = Pool(
            cloud=cloud,
            datapath=self.kernel,
            ledger=ledger,
            limits=limits,
            policy=self.policy,
            clock=self._clock,
            wake=loop.wake,
            draw=self._random.random,
        )
        pool.tell(self._told)
        await pool.start()
        attachments = Attachments(
            pool=pool,
            ledger=ledger,
            datapath=self.kernel,
            policy=AttachmentPolicy(cooldown_s=COOLDOWN_S, mtu=9001),
            clock=self._clock,
        )
        leaks = LeakSweep(
            client=cloud._client,
            calls=cloud._calls,
            instance=instance,
            policy=CloudPolicy(),
            clock=self._clock,
            now=self._now,
            draw=self._random.random,
        )
        sweeping = Reconciler("leaks", leaks.step, timeout_s=300.0, draw=self._random.random)
        self.agent = Agent(
            client=client,
            cloud=cloud,
            ledger=ledger,
            pool=pool,
            attachments=attachments,
            leaks=leaks,
            loops=[self._group.create_task(one.run(), name=one.name) for one in (loop, sweeping)],
        )

    def tell(self, surroundings: Surroundings) -> None:
        """What Kubernetes says of the node; a restarted agent hears it, too."""
        self._told = surroundings
        self.alive.pool.tell(surroundings)

    def kill(self) -> None:
        """SIGKILL: from now on nothing the agent's tasks do reaches EC2 or the kernel."""
        agent, self.agent = self.alive, None
        agent.client.is_dead = True
        for task in agent.loops:
            task.cancel()
        self.graveyard.append(agent)
        self.client = self._new_client()

    async def close(self) -> None:
        """End the agent, and bury the killed ones."""
        if self.agent is not None:
            self.kill()
        for agent in self.graveyard:
            await agent.pool.close()
            for task in tuple(agent.cloud._transactions._tasks):
                task.cancel()
            await agent.cloud.__aexit__(None, None, None)

    @property
    def alive(self) -> Agent:
        assert self.agent is not None, "the agent does not run"
        return self.agent

    def _new_client(self) -> FaultyClient:
        return FaultyClient(self.vpc, clock=self._clock, budget=self._budget)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(EPOCH_S + self._clock(), UTC)

    # ---- pods

    async def add(self, name: str, *, deadline_s: float = 20.0) -> None:
        key = AttachmentKey(container_id=name, ifname="eth0")
        request = AttachRequest(
            holder=Holder(key=key, namespace="test", pod=name), netns=f"/run/netns/{name}", request_id=name
        )
        await self.alive.attachments.add(request, deadline_s=deadline_s)

    async def add_until_it_succeeds(self, name: str) -> int:
        """As kubelet does; how often it failed."""
        failed_count = 0
        while True:
            try:
                await self.add(f"{name}-{failed_count}")
            except AgentError:
                failed_count += 1
                await asyncio.sleep(10.0)
            else:
                return failed_count

    async def delete(self, name: str) -> None:
        await self.alive.attachments.delete(AttachmentKey(container_id=name, ifname="eth0"))

    # ---- what there is

    def enis(self) -> tuple[EniRecord, ...]:
        return self.vpc.state.enis_of(self.instance_id)

    def strays(self) -> list[str]:
        """ENIs attached to nothing."""
        return [eni.eni_id for eni in self.vpc.state.enis.values() if eni.attachment is None]

    def listed(self) -> set[IPv4Address]:
        """Every pod address EC2 has given to this node's ENIs."""
        single = {address for eni in self.enis() for address in eni.secondary_addresses}
        return single | {address for eni in self.enis() for prefix in eni.ipv4_prefixes for address in prefix}

    def check_nothing_lost(self) -> None:
        """EC2 and the agent agree, no ENI is astray, and each goes with its instance."""
        known = {view.address for view in self.alive.pool.view().addresses}
        assert known == self.listed(), (known ^ self.listed(), "known to one of the two only")
        assert self.strays() == []
        assert {usage.eni.eni_id for usage in self.alive.ledger.enis()} == {eni.eni_id for eni in self.enis()}
        assert all(usage.ready for usage in self.alive.ledger.enis())
        assert all(eni.attachment is not None and eni.attachment.delete_on_termination for eni in self.enis())


def a_vpc(*subnets: SubnetConfig, timings: Timings | None = None, groups: int = 2) -> Vpc:
    config = VpcConfig(
        subnets=subnets or (SUBNET,),
        security_groups=tuple(SecurityGroupConfig(name=f"group-{number}") for number in range(groups)),
        placement=AddressPlacement.LOWEST,
        seed=1,
    )
    return Vpc(config, timings=timings or Timings(attach_s=2.0, detach_s=5.0))


@asynccontextmanager
async def virtual_node(
    policy: PoolPolicy, *, vpc: Vpc | None = None, instance_type: str = "m5.large"
) -> AsyncIterator[VirtualNode]:
    """A node whose agent has not been started yet."""
    async with asyncio.TaskGroup() as group:
        node = VirtualNode(vpc=vpc or a_vpc(), policy=policy, group=group, instance_type=instance_type)
        try:
            yield node
        finally:
            await node.close()
