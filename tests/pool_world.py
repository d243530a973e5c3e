"""A node's pool in virtual time: the real pool and reconciler between an EC2 and a kernel in memory.

Both keep the rules of what they stand for, and every breach is an AssertionError: an ENI takes no more addresses than
its type allows, one that is in use cannot be deleted, an ENI without a link cannot be set up, and so on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Network

import pytest

from agent.errors import AgentError, Cause, CloudDenied, CloudFailed, CloudLimit, CloudThrottled, KernelFailed, TryAgain
from agent.ipam.model import (
    Address,
    AddressState,
    AttachmentKey,
    Block,
    BlockKind,
    Eni,
    EniId,
    Instance,
    InstanceLimits,
    Mac,
    Reservation,
    Subnet,
    SubnetId,
)
from agent.ipam.plan import PoolPolicy
from agent.ipam.pool import Pool
from agent.ipam.recovery import recover
from agent.ports.datapath import KernelSeen, PodWiring, Wired
from agent.runtime.reconciler import Reconciler
from tests.ipam_builders import CIDR, M5_4XLARGE, SUBNET, a_holder, an_eni, ip, prefix, single

COOLDOWN_S = 30.0


class MemoryKernel:
    """The part of the kernel the pool uses. Links come `link_delay_s` after their ENI is attached."""

    def __init__(self) -> None:
        self.links: dict[Mac, asyncio.Event] = {}
        self.tables: dict[EniId, int] = {}
        self.failures: deque[AgentError] = deque()
        self.ensured: list[EniId] = []

    def plug(self, mac: Mac) -> None:
        self.links.setdefault(mac, asyncio.Event()).set()

    async def wait_for_eni_link(self, mac: Mac, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self.links.setdefault(mac, asyncio.Event()).wait()
        except TimeoutError:
            raise KernelFailed(Cause.ENI_LINK_MISSING, f"no link {mac} after {timeout_s} s") from None

    async def ensure_eni(self, eni: Eni) -> int:
        assert self.links[eni.mac].is_set(), "set up without a link"
        if self.failures:
            raise self.failures.popleft()
        self.ensured.append(eni.eni_id)
        self.tables[eni.eni_id] = 254 if eni.is_primary else eni.device + 1
        return self.tables[eni.eni_id]

    async def forget_eni(self, eni: Eni) -> None:
        self.tables.pop(eni.eni_id, None)

    async def prepare_node(self, _instance: Instance) -> None:
        raise _not_the_pools_business()

    async def set_vpc_cidrs(self, _cidrs: Sequence[IPv4Network]) -> None:
        raise _not_the_pools_business()

    async def count_leaving(self) -> int:
        raise _not_the_pools_business()

    async def wire(self, _wiring: PodWiring) -> Wired:
        raise _not_the_pools_business()

    async def unwire(self, _key: AttachmentKey, _addresses: Sequence[Address], _cooldown_s: float) -> None:
        raise _not_the_pools_business()

    async def check(self, _wiring: PodWiring) -> None:
        raise _not_the_pools_business()

    async def observe(self) -> KernelSeen:
        return KernelSeen(attachments=(), cooling=())

    async def discard_link(self, _host_ifname: str) -> None:
        raise _not_the_pools_business()

    def subscribe(self, _wake: Callable[[], None]) -> None:
        raise _not_the_pools_business()

    async def run(self) -> None:
        raise _not_the_pools_business()


def _not_the_pools_business() -> AssertionError:
    return AssertionError("the pool has no business with this")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One EC2 request, when it began, and whether EC2 refused it."""

    action: str
    at_s: float
    refused: bool = False


class MemoryEc2:
    """EC2 for one instance. Requests take time; `failures` are raised, one per request of that action."""

    def __init__(self, limits: InstanceLimits, kernel: MemoryKernel) -> None:
        self.type_limits = limits
        self.kernel = kernel
        self.enis: dict[EniId, Eni] = {}
        self.subnet_free: dict[SubnetId, int] = {SUBNET: 10_000}
        self.prefixes_left = 500
        self.held: Callable[[], set[Address]] = set
        self.calls: list[Call] = []
        self.failures: dict[str, deque[AgentError]] = {}
        self.always: dict[str, AgentError] = {}
        self.delays_s = {"assign": 0.3, "create": 2.0, "delete": 12.0, "unassign": 0.3, "describe": 0.2, "subnets": 0.2}
        self.delays_s |= {"groups": 0.3, "modify": 0.3}
        self.link_delay_s = 1.5
        self.lost_replies: deque[AgentError] = deque()
        self._next_address = 10
        self._next_prefix = 2_000
        self._next_eni = 1_000
        self.attach(an_eni(0))

    def attach(self, eni: Eni) -> None:
        """Have an ENI from the start, its link present."""
        self.enis[eni.eni_id] = eni
        self.kernel.plug(eni.mac)

    def count(self, *actions: str) -> int:
        return sum(not actions or call.action in actions for call in self.calls)

    async def limits(self, instance_type: str) -> InstanceLimits:
        raise AssertionError(f"limits of {instance_type} are known")

    async def describe_enis(self) -> tuple[Eni, ...]:
        await self._request("describe")
        return tuple(self.enis.values())

    async def describe_subnets(self) -> tuple[Subnet, ...]:
        await self._request("subnets")
        free = sorted(self.subnet_free.items(), key=lambda one: -one[1])
        return tuple(Subnet(subnet_id=one, cidr=CIDR, free_address_count=count) for one, count in free)

    async def create_eni(
        self, *, device: int, subnet_id: SubnetId, security_groups: Sequence[str], kind: BlockKind, count: int
    ) -> Eni:
        assert security_groups
        await self._request("create")
        self._take_prefixes(subnet_id, kind, count)
        self._take(subnet_id, count * kind.address_count + 1, "create")
        assert 1 <= count <= self.type_limits.slots
        assert len(self.enis) < self.type_limits.eni_count, "more ENIs than the type allows"
        assert device not in {eni.device for eni in self.enis.values()}, "device index is taken"
        self._next_eni += 1
        eni = an_eni(device, subnet_id=subnet_id, name=self._next_eni)
        eni = replace(eni, blocks=self._new(kind, count))
        self.enis[eni.eni_id] = eni
        if self.link_delay_s < 3_600.0:
            asyncio.get_running_loop().call_later(self.link_delay_s, self.kernel.plug, eni.mac)
        return eni

    async def delete_eni(self, eni: Eni) -> None:
        await self._request("delete")
        gone = self.enis.pop(eni.eni_id)
        assert not self.held() & _addresses(gone), "an ENI that pods use was deleted"
        self.subnet_free[gone.subnet_id] += len(_addresses(gone)) + 1

    async def set_security_groups(self, eni_id: EniId, security_groups: Sequence[str]) -> None:
        await self._request("groups")
        self.enis[eni_id] = replace(self.enis[eni_id], security_groups=tuple(security_groups))

    async def delete_with_instance(self, eni: Eni) -> None:
        await self._request("modify")
        self.enis[eni.eni_id] = replace(self.enis[eni.eni_id], delete_on_termination=True)

    async def assign_blocks(self, eni_id: EniId, kind: BlockKind, count: int) -> tuple[Block, ...]:
        await self._request("assign")
        eni = self.enis[eni_id]
        assert 1 <= count <= self.type_limits.slots - len(eni.blocks), "more addresses than the ENI takes"
        self._take_prefixes(eni.subnet_id, kind, count)
        self._take(eni.subnet_id, count * kind.address_count, "assign")
        blocks = self._new(kind, count)
        self.enis[eni_id] = replace(eni, blocks=eni.blocks + blocks)
        if self.lost_replies:
            raise self.lost_replies.popleft()
        return blocks

    async def unassign_blocks(self, eni_id: EniId, blocks: Sequence[Block]) -> None:
        await self._request("unassign")
        assert not self.held() & {address for block in blocks for address in block.addresses()}, (
            "an address that a pod uses was taken away"
        )
        eni = self.enis[eni_id]
        left = tuple(block for block in eni.blocks if block not in blocks)
        self.subnet_free[eni.subnet_id] += sum(block.kind.address_count for block in eni.blocks if block in blocks)
        self.enis[eni_id] = replace(eni, blocks=left)
        if self.lost_replies:
            raise self.lost_replies.popleft()

    async def _request(self, action: str) -> None:
        at_s = asyncio.get_running_loop().time()
        await asyncio.sleep(self.delays_s[action])
        failures = self.failures.get(action)
        error = failures.popleft() if failures else self.always.get(action)
        self.calls.append(Call(action=action, at_s=at_s, refused=error is not None))
        if error is not None:
            raise error

    def _take(self, subnet_id: SubnetId, count: int, action: str) -> None:
        if self.subnet_free[subnet_id] < count:
            self.calls[-1] = replace(self.calls[-1], refused=True)
            raise CloudLimit(Cause.SUBNET_EXHAUSTED, f"{action}: subnet {subnet_id} is full", remedy="a larger subnet")
        self.subnet_free[subnet_id] -= count

    def _take_prefixes(self, subnet_id: SubnetId, kind: BlockKind, count: int) -> None:
        if kind is BlockKind.IPV4_PREFIX:
            if self.prefixes_left < count:
                self.calls[-1] = replace(self.calls[-1], refused=True)
                raise CloudLimit(Cause.SUBNET_FRAGMENTED, f"subnet {subnet_id} has no {count} whole /28")
            self.prefixes_left -= count

    def _new(self, kind: BlockKind, count: int) -> tuple[Block, ...]:
        if kind is BlockKind.IPV4_PREFIX:
            self._next_prefix += count
            return tuple(prefix(self._next_prefix - n) for n in range(count))
        self._next_address += count
        return tuple(single(ip(self._next_address - n)) for n in range(count))


class PoolWorld:
    """A started pool with its loop running. Use `pool_world`."""

    def __init__(
        self, ec2: MemoryEc2, kernel: MemoryKernel, pool: Pool, loop: Reconciler, limits: InstanceLimits
    ) -> None:
        self.ec2 = ec2
        self.kernel = kernel
        self.pool = pool
        self.loop = loop
        self.limits = limits

    async def start_pod(self, name: str, *, deadline_s: float = 20.0) -> Reservation:
        return await self.pool.reserve(a_holder(name), deadline_s=deadline_s, request_id=f"req-{name}")

    def stop_pod(self, name: str) -> None:
        self.pool.release(a_holder(name).key, cooldown_s=COOLDOWN_S)

    def count(self, state: AddressState) -> int:
        return sum(view.state is state for view in self.pool.view().addresses)

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()


@asynccontextmanager
async def pool_world(
    policy: PoolPolicy,
    *,
    limits: InstanceLimits = M5_4XLARGE,
    ec2: Callable[[MemoryEc2], None] = lambda _: None,
    draw: Callable[[], float] = lambda: 0.5,
) -> AsyncIterator[PoolWorld]:
    """A world whose pool has started; `ec2` may change what EC2 has before that.

    On leaving, whatever the pool was doing is cancelled, and what pods hold is checked against EC2.
    """
    kernel = MemoryKernel()
    cloud = MemoryEc2(limits, kernel)
    ec2(cloud)
    clock = asyncio.get_running_loop().time
    recovered = recover(await kernel.observe(), tuple(cloud.enis.values()), clock(), policy.placement)
    ledger = recovered.ledger
    cloud.held = lambda: {address for held in ledger.attachments() for address in held.addresses}

    async def step() -> float:
        return await pool.step()

    loop = Reconciler("pool", step, timeout_s=30.0)
    pool = Pool(
        cloud=cloud,
        datapath=kernel,
        ledger=ledger,
        limits=limits,
        policy=policy,
        clock=clock,
        wake=loop.wake,
        draw=draw,
    )
    await pool.start()
    async with asyncio.TaskGroup() as group:
        running = group.create_task(loop.run())
        yield PoolWorld(cloud, kernel, pool, loop, limits)
        running.cancel()
    await pool.close()
    listed = {address for eni in cloud.enis.values() for address in _addresses(eni)}
    assert cloud.held() <= listed, "a pod holds an address that is not this node's"


def _addresses(eni: Eni) -> set[Address]:
    return {address for block in eni.blocks for address in block.addresses()}


def throttled(retry_after_s: float | None = None) -> CloudThrottled:
    return CloudThrottled(Cause.EC2_THROTTLED, "RequestLimitExceeded", retry_after_s=retry_after_s)


def unavailable() -> CloudFailed:
    return CloudFailed(Cause.EC2_UNAVAILABLE, "no answer from EC2")


def denied() -> CloudDenied:
    return CloudDenied(Cause.IAM_DENIED, "ec2:AssignPrivateIpAddresses is denied", remedy="allow it")


async def reason_of(request: asyncio.Task[object]) -> TryAgain:
    with pytest.raises(TryAgain) as caught:
        await request
    return caught.value
