"""Adding up an observation: demand, what there is for it, what there could be. Pure.

A pool has one kind of block it wants. Blocks of the other kind come from before a switch of ENABLE_PREFIX_DELEGATION,
or from a subnet without a free /28. What pods have of them counts as everything else does. What is free of them is
handed out when nothing else is, but is no stock: it is given back. Only where EC2 has just refused prefixes, or the
subnet is short or empty, single addresses are as good.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.ipam.model import BlockKind, BlockUsage, EniUsage, InstanceLimits, SubnetId
from agent.ipam.plan import Action, AssignBlocks, CreateEni, Observation, PoolPolicy, ReleaseEni, UnassignBlocks

READY_GRACE_S = 60.0
"""How long an ENI's link may take to appear and be set up before its addresses no longer count. Attaching takes EC2
a few seconds; an ENI without a link for a minute is broken, and pods must get addresses elsewhere."""


def eni_limit(limits: InstanceLimits, policy: PoolPolicy) -> int:
    """ENIs the instance may have on network card 0, other people's included."""
    return limits.eni_count if policy.max_eni is None else min(limits.eni_count, policy.max_eni)


def needed_count(demand_count: int, limits: InstanceLimits, policy: PoolPolicy) -> int:
    """Addresses to hold for a demand, busy and free together; not bounded by what the instance can have."""
    if policy.has_ip_targets:
        return max(demand_count + policy.warm_ip_target, policy.minimum_ip_target)
    # One address is kept free even with a target of 0, as in the AWS plugin: else each pod would wait for EC2.
    if policy.prefix_delegation:
        return demand_count + max(1, policy.warm_prefix_target * BlockKind.IPV4_PREFIX.address_count)
    free_count = max(1, policy.warm_eni_target * limits.slots)
    return limits.slots * -(-(demand_count + free_count) // limits.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The numbers behind a plan.

    enis: those new pods get addresses from: they stay, and are set up or may still become so.
    demand_count: busy on `enis`, waiting and announced.
    total_count: busy and free on `enis`, and what is in flight.
    capacity_count: what the instance can have at most.
    needed_count: to hold for the demand; at most `capacity_count`.
    new_eni_count: how many more ENIs the limit allows.
    """

    enis: tuple[EniUsage, ...]
    demand_count: int
    total_count: int
    coming_count: int
    capacity_count: int
    needed_count: int
    new_eni_count: int

    @property
    def short_count(self) -> int:
        return max(0, self.needed_count - self.total_count)


def account(seen: Observation, policy: PoolPolicy) -> Account:
    """Add up an observation."""
    enis = _serving(seen, policy)
    coming = sum(asked_count(action) for action in seen.in_flight)
    creating = sum(isinstance(action, CreateEni) for action in seen.in_flight)
    new_enis = max(0, eni_limit(seen.limits, policy) - _taken_count(seen, policy) - creating)
    demand = demand_count(seen, policy)
    capacity = sum(_capacity(seen, policy, eni) for eni in enis)
    capacity += (creating + new_enis) * seen.limits.slots * _new_block_size(seen, policy)
    return Account(
        enis=enis,
        demand_count=demand,
        total_count=sum(eni.busy_count + stock_count(seen, policy, eni) for eni in enis) + coming,
        coming_count=coming,
        capacity_count=capacity,
        needed_count=bounded_need(seen, policy, demand, capacity),
        new_eni_count=new_enis,
    )


def demand_count(seen: Observation, policy: PoolPolicy) -> int:
    """Addresses that are busy, waited for, or announced."""
    return sum(eni.busy_count for eni in _serving(seen, policy)) + seen.waiter_count + seen.announced_count


def _serving(seen: Observation, policy: PoolPolicy) -> tuple[EniUsage, ...]:
    return tuple(eni for eni in seen.enis if is_open(eni, policy) and not eni.leaving and _counts(eni, seen.now_s))


def bounded_need(seen: Observation, policy: PoolPolicy, demand_count: int, capacity_count: int) -> int:
    """Addresses to hold for a demand on this instance. Beyond `max_pods` nobody can ask for a warm one."""
    needed = needed_count(demand_count, seen.limits, policy)
    if seen.max_pods is not None:
        needed = min(needed, max(seen.max_pods, demand_count))
    return min(needed, capacity_count)


def is_open(eni: EniUsage, policy: PoolPolicy) -> bool:
    """Whether new pods may get addresses from an ENI. With custom networking the primary ENI's subnet is not theirs."""
    return eni.serves_pods and policy.placement.allows(eni.eni)


def is_stock(seen: Observation, policy: PoolPolicy, eni: EniUsage, kind: BlockKind) -> bool:
    """Whether free addresses in a block of that kind on that ENI are what the pool wants to hold."""
    return kind in _stock_kinds(seen, policy, eni)


def _stock_kinds(seen: Observation, policy: PoolPolicy, eni: EniUsage) -> frozenset[BlockKind]:
    subnet_id = eni.eni.subnet_id
    is_poor = any(
        subnet_id in poor for poor in (seen.fragmented_subnets, seen.short_subnets.keys(), seen.blocked_subnets)
    )
    return frozenset(BlockKind) if policy.prefix_delegation and is_poor else frozenset((policy.kind,))


def stock_count(seen: Observation, policy: PoolPolicy, eni: EniUsage) -> int:
    """Free addresses of an ENI that count as warm."""
    wanted = _stock_kinds(seen, policy, eni)
    return sum(usage.free_count for usage in eni.blocks if usage.free_count and usage.block.kind in wanted)


def strays(seen: Observation, policy: PoolPolicy, eni: EniUsage) -> list[BlockUsage]:
    """Wholly free blocks of an ENI which the pool does not want to hold, the longest free first.

    On an ENI that is not open (any more) that is every free block; they may be of both kinds there.
    """
    wanted = _stock_kinds(seen, policy, eni) if is_open(eni, policy) else frozenset()
    found = [usage for usage in eni.blocks if usage.free_count and usage.block.kind not in wanted and usage.is_free]
    return sorted(found, key=lambda usage: usage.changed_s)


def asked_count(action: Action) -> int:
    """Addresses an action asks EC2 for."""
    match action:
        case CreateEni() | AssignBlocks():
            return action.count * action.kind.address_count
        case UnassignBlocks() | ReleaseEni():
            return 0


def _counts(eni: EniUsage, now_s: float) -> bool:
    return eni.ready or now_s - eni.since_s < READY_GRACE_S


def _taken_count(seen: Observation, policy: PoolPolicy) -> int:
    """ENIs that count against the limit, the one kept for a trunk included."""
    on_card = [eni.eni for eni in seen.enis if eni.eni.card == 0]
    reserved = policy.reserves_trunk and seen.limits.has_trunk and not any(eni.is_trunk for eni in on_card)
    return len(on_card) + reserved


def _capacity(seen: Observation, policy: PoolPolicy, eni: EniUsage) -> int:
    """What an ENI can have when what is free of the other kind has been given back."""
    wanted = _stock_kinds(seen, policy, eni)
    leaving = strays(seen, policy, eni)
    have = sum(
        usage.block.kind.address_count if usage.block.kind in wanted else usage.busy_count for usage in eni.blocks
    )
    have -= sum(usage.block.kind.address_count if usage.block.kind in wanted else 0 for usage in leaving)
    slots = seen.limits.slots - len(eni.blocks) + len(leaving)
    return have + slots * block_size(seen, policy, eni.eni.subnet_id)


def block_size(seen: Observation, policy: PoolPolicy, subnet_id: SubnetId) -> int:
    """Addresses that a slot gives in a subnet."""
    return 1 if subnet_id in seen.fragmented_subnets else policy.kind.address_count


def _new_block_size(seen: Observation, policy: PoolPolicy) -> int:
    places = {seen.site.subnet_id} if seen.site else {one.subnet_id for one in seen.subnets}
    places = places or {eni.eni.subnet_id for eni in seen.enis if eni.eni.is_primary}
    return max((block_size(seen, policy, one) for one in places - seen.blocked_subnets), default=1)
