"""A node's parts, how they come to be, and the loops that keep them going.

The parts that need to know which instance this is (cloud, ledger, pool, attachments) are made by the start's stages;
what a request may need before that (the datapath) exists from the beginning.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial

from agent.attachments import AttachmentPolicy, Attachments, TimeSpent
from agent.cloud.budget import ActionBudget
from agent.cloud.ec2 import Ec2Cloud
from agent.cloud.imds import ImdsMetadata
from agent.cloud.imds_only import ImdsOnlyCloud
from agent.cloud.policy import CloudPolicy
from agent.cloud.sweep import LeakSweep
from agent.datapath.desired import host_veth_name
from agent.datapath.kernel import KernelDatapath
from agent.datapath.policy import DatapathPolicy
from agent.errors import AgentError, Cause, TryAgain
from agent.events.model import Kind, Publish
from agent.installation import publisher
from agent.installation.publisher import InstallationPolicy, Publisher
from agent.ipam.ledger import Ledger
from agent.ipam.model import AttachmentKey, Holder, Instance, InstanceLimits
from agent.ipam.plan import PoolPolicy, Surroundings
from agent.ipam.pool import Pool
from agent.ipam.recovery import recover
from agent.kube.surroundings import surroundings
from agent.news import News
from agent.ports.cluster import Cluster
from agent.recorder import Recorder
from agent.runtime.log import event_logger
from agent.runtime.purpose import purpose
from agent.runtime.reconciler import Reconciler
from agent.runtime.startup import Startup
from agent.surveyed import CloudFacts
from agent.vpc_cidrs import VpcCidrs

log = event_logger(__name__)

POOL_TURN_S = 60.0
"""The longest turn of the pool. It waits for nothing outside, so only a bug takes that long."""
SWEEP_TURN_S = 60.0
"""The longest look for vanished attachments: one dump of the kernel and its consequences."""
LEAK_TURN_S = 300.0
"""The longest sweep for leaked ENIs: two describes and twenty deletes, which may wait for tokens."""
VPC_CIDRS_TURN_S = 60.0
"""A look at the kernel (10 s), one item of IMDS with its retries (10 s) and one change of the table (30 s)."""
CLUSTER_TURN_S = 120.0
"""The longest turn of telling Kubernetes: a request per pod at most, each with a deadline of its own."""
ENIS_READY_S = 3.0
"""How long the start waits for the links of the ENIs there are. They normally exist; one whose link is missing must not
keep pods from the addresses of the others, and the pool goes on with it."""
DRAIN_S = 5.0
"""How long changes of the kernel may take to end when the agent stops; they take milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policies:
    """Everything an operator may choose, split by who reads it.

    add_deadline_s: how long an ADD may take, the wait for the agent's start included.
    metadata_endpoint: scheme and authority of IMDS.
    """

    cloud: CloudPolicy
    datapath: DatapathPolicy
    pool: PoolPolicy
    attachments: AttachmentPolicy
    installation: InstallationPolicy
    add_deadline_s: float
    metadata_endpoint: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What exists once the agent has recovered."""

    limits: InstanceLimits
    ledger: Ledger
    pool: Pool
    attachments: Attachments
    leaks: LeakSweep | None


class Node:
    """One agent: start it with `run`, as a task among others; `close` when all requests have been answered."""

    def __init__(
        self,
        policies: Policies,
        *,
        clock: Callable[[], float],
        ready: Callable[[], None],
        stop: asyncio.Event,
        cluster: Cluster,
        publish: Publish,
        spent: TimeSpent,
    ) -> None:
        """clock: monotonic seconds. ready: called once, when ADD can be served. stop: set when the agent is to end.
        cluster: what Kubernetes knows; the node works without. publish: told what happens. spent: told how long each
        step of an ADD took.
        """
        self._policies = policies
        self.clock = clock
        self.publish = publish
        self._spent = spent
        self._ready = ready
        self.stop = stop
        self._resources = AsyncExitStack()
        self._metadata: ImdsMetadata
        self._instance: Instance
        self._cloud: Ec2Cloud | ImdsOnlyCloud
        self._vpc_cidrs: VpcCidrs
        self.cluster = cluster
        self._told = surroundings(cluster)
        self._budget: Callable[[], tuple[ActionBudget, ...]] = tuple
        self.datapath = KernelDatapath(policies.datapath)
        self.parts: Parts | None = None
        self.startup = Startup({"identity": self._identify, "kernel": self._prepare, "addresses": self._recover})
        self._pool_loop = Reconciler("pool", self._pool_step, timeout_s=POOL_TURN_S)
        self._sweep_loop = Reconciler("vanished", self._sweep_step, timeout_s=SWEEP_TURN_S)
        self._leak_loop = Reconciler("leaks", self._leak_step, timeout_s=LEAK_TURN_S)
        self._vpc_cidrs_loop = Reconciler("vpc_cidrs", self._vpc_cidrs_step, timeout_s=VPC_CIDRS_TURN_S)
        self.datapath.subscribe(self._sweep_loop.wake)
        self._publisher = Publisher(
            policies.installation,
            started=self.startup.ready.is_set,
            has_addresses=lambda: self.parts is not None and bool(self.parts.ledger.addresses()),
            unavailable=self.unavailable,
            pod_count=self._count_pods,
            clock=clock,
        )
        self._publisher_loop = Reconciler("conflist", self._publisher.step, timeout_s=publisher.TURN_S)
        self._cluster_loop = Reconciler("kubernetes", self._cluster_step, timeout_s=CLUSTER_TURN_S)
        self.news = News(cluster, publish=publish, clock=clock)
        cluster.subscribe(self._cluster_changed)
        self.datapath.subscribe_repairs(self.news.repaired)

    @property
    def add_deadline_s(self) -> float:
        return self._policies.add_deadline_s

    def loops(self) -> tuple[Reconciler, ...]:
        """Every loop: first the one that turns from the beginning, then those that turn once the start is done."""
        always = self._publisher_loop, self._pool_loop, self._sweep_loop, self._vpc_cidrs_loop, self._cluster_loop
        return (*always, self._leak_loop) if self._policies.cloud.leak_cleanup else always

    def unavailable(self) -> AgentError | None:
        """Why this node cannot serve any pod (docs/decisions/0009); None when it can."""
        if self.parts is None or not self.startup.ready.is_set():
            return TryAgain(Cause.AGENT_STARTING, self.startup.waits_for())
        return None if self.parts.ledger.addresses() else self.parts.pool.view().failure

    def budget(self) -> tuple[ActionBudget, ...]:
        """Requests to EC2, and what the node allows itself; none until the node knows who it is."""
        return self._budget()

    @property
    def pool_policy(self) -> PoolPolicy:
        return self._policies.pool

    def identified(self) -> tuple[DatapathPolicy, Instance]:
        """What the datapath goes by. Raises: TryAgain while nobody knows yet who this node is."""
        if self.parts is None:
            raise TryAgain(Cause.AGENT_STARTING, self.startup.waits_for(), retry_after_s=1.0)
        return self._policies.datapath, self._instance

    async def rehearse(self) -> CloudFacts | None:
        """Ask EC2 what it would allow; None when it may not be asked, or nobody knows yet who this node is."""
        if self.parts is None or not isinstance(self._cloud, Ec2Cloud):
            return None
        primary = next((one.eni for one in self.parts.ledger.enis() if one.eni.is_primary), None)
        return None if primary is None else await self._cloud.rehearse(primary)

    async def imds_failure(self) -> str:
        """Why IMDS does not answer; empty when it does."""
        try:
            async with ImdsMetadata(endpoint=self._policies.metadata_endpoint) as metadata:
                await metadata.item("meta-data/instance-id")
        except AgentError as exc:
            return str(exc)
        return ""

    def host_ifname(self, holder: Holder) -> str:
        """The name of an attachment's host veth."""
        return host_veth_name(holder, self._policies.datapath.veth_prefix)

    async def run(self) -> None:
        """Start, then turn the loops until cancelled. Raises whatever is a bug in any of them."""
        async with asyncio.TaskGroup() as group:
            # Before the first look at the kernel, so that whatever vanishes after it is noticed.
            group.create_task(self.datapath.run(), name="kernel monitor")
            group.create_task(self._turn_away(), name="farewell")
            group.create_task(self._publisher_loop.run(), name=self._publisher_loop.name)
            group.create_task(self.cluster.run(), name="kubernetes watches")
            await self.startup.run()
            self._publisher_loop.wake()
            self._ready()
            for loop in self.loops()[1:]:
                group.create_task(loop.run(), name=loop.name)

    async def detach_by_kernel(self, key: AttachmentKey) -> None:
        """DEL while the agent starts: the kernel alone says what the attachment has.

        The ledger that is being made may count it in all the same; its link goes soon, and the sweep finds that.
        Raises: KernelFailed.
        """
        seen = await self.datapath.observe()
        for attachment in seen.attachments:
            if attachment.holder.key == key:
                cooldown_s = self._policies.attachments.cooldown_s
                await self.datapath.unwire(key, attachment.addresses, cooldown_s)

    def tell(self, surroundings: Surroundings) -> None:
        """What Kubernetes says of this node; for whoever watches it, at any time."""
        self._told = surroundings
        if self.parts is not None:
            self.parts.pool.tell(self._surroundings())

    async def close(self) -> None:
        """Let changes in flight end, then give everything back. The next start finds EC2 changes that were cut."""
        if self.parts is not None:
            self.parts.attachments.turn_away()
            await self.parts.attachments.drain(DRAIN_S)
            await self.parts.pool.close()
        await self._resources.aclose()
        self.datapath.close()

    async def _turn_away(self) -> None:
        """Nobody who waits for an address keeps the door from closing."""
        await self.stop.wait()
        self.tell(self._told)
        if self.parts is not None:
            self.parts.attachments.turn_away()

    async def _identify(self) -> None:
        await self._resources.aclose()  # of a try that failed half way
        self._metadata = await self._resources.enter_async_context(
            ImdsMetadata(endpoint=self._policies.metadata_endpoint)
        )
        self._instance = await self._metadata.instance()
        self._cloud = await self._reach_cloud()
        log.info("identified", instance=self._instance.instance_id, type=self._instance.instance_type)

    async def _reach_cloud(self) -> Ec2Cloud | ImdsOnlyCloud:
        if self._policies.cloud.imds_only:
            return ImdsOnlyCloud(instance=self._instance, metadata=self._metadata)
        cloud = await self._resources.enter_async_context(
            Ec2Cloud(
                instance=self._instance,
                metadata=self._metadata,
                policy=self._policies.cloud,
                version=self._policies.version,
            )
        )
        self._budget = cloud.budget
        return cloud

    async def _prepare(self) -> None:
        await self.datapath.prepare_node(self._instance)
        self._vpc_cidrs = VpcCidrs(
            read=partial(self._metadata.vpc_cidrs, self._instance.primary_mac),
            write=self.datapath.set_vpc_cidrs,
            count_leaving=self.datapath.count_leaving,
            known=self._instance.vpc_cidrs,
            clock=self.clock,
        )

    async def _recover(self) -> None:
        with purpose("start"):
            limits = await self._cloud.limits(self._instance.instance_type)
            enis = await self._cloud.describe_enis()
        # The kernel after EC2: an attachment made between the two looks would otherwise have an unlisted address.
        policy = self._policies.pool.on(limits)
        if policy != self._policies.pool:
            log.warning("prefix_delegation_unavailable", type=limits.instance_type, remedy="use a Nitro instance type")
        recovered = recover(await self.datapath.observe(), enis, self.clock(), policy.placement)
        for finding in recovered.findings:
            log.warning("finding", kind=finding.kind, message=finding.message, **finding.evidence)
            self.publish(Kind.FINDING, **{**finding.evidence, "finding": str(finding.kind), "message": finding.message})
        for repair in recovered.repairs:
            log.info("link_discarded", host_ifname=repair.host_ifname, reason=repair.reason)
            await self.datapath.discard_link(repair.host_ifname)
            self.publish(Kind.REPAIR, object=repair.host_ifname, reason=repair.reason)
        Recorder(self.publish).recovered(recovered.ledger)
        pool = Pool(
            cloud=self._cloud,
            datapath=self.datapath,
            ledger=recovered.ledger,
            limits=limits,
            policy=policy,
            clock=self.clock,
            wake=self._wake_loops,
            publish=self.publish,
        )
        pool.tell(self._surroundings())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ENIS_READY_S):
                await pool.start()
        attachments = Attachments(
            pool=pool,
            ledger=recovered.ledger,
            datapath=self.datapath,
            policy=self._policies.attachments,
            clock=self.clock,
            spent=self._spent,
        )
        self.parts = Parts(
            limits=limits,
            ledger=recovered.ledger,
            pool=pool,
            attachments=attachments,
            leaks=self._cloud.leak_sweep() if isinstance(self._cloud, Ec2Cloud) else None,
        )
        log.info("recovered", attachments=len(recovered.ledger.attachments()), enis=len(enis))

    async def _count_pods(self) -> int:
        return len((await self.datapath.observe()).attachments)

    async def _pool_step(self) -> float:
        return await self._made().pool.step()

    def _wake_loops(self) -> None:
        self._pool_loop.wake()
        self._cluster_loop.wake()

    def _cluster_changed(self) -> None:
        self.tell(surroundings(self.cluster))
        self.news.cluster_changed()
        self._cluster_loop.wake()

    async def _cluster_step(self) -> float:
        parts = self._made()
        return await self.news.tell(parts.pool, parts.ledger, parts.limits, self._policies.pool.on(parts.limits))

    async def _sweep_step(self) -> float:
        return await self._made().attachments.release_vanished()

    async def _leak_step(self) -> float:
        leaks = self._made().leaks
        return float("inf") if leaks is None else await leaks.step()

    def _surroundings(self) -> Surroundings:
        """What Kubernetes says, under the settings; an agent that is to end attaches and detaches nothing more."""
        policy = self._policies.cloud
        is_schedulable = self._told.is_schedulable or policy.manage_non_schedulable
        return replace(
            self._told,
            is_schedulable=is_schedulable and not self.stop.is_set(),
            is_provisioning=policy.provisioning,
        )

    async def _vpc_cidrs_step(self) -> float:
        return await self._vpc_cidrs.step()

    def _made(self) -> Parts:
        if self.parts is None:
            raise RuntimeError("the loops turn before the start is done")
        return self.parts
