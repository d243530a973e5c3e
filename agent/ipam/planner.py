"""How many addresses and ENIs to hold: `plan`, a pure function.

Demand is what is busy (held, cooling, quarantined), waiting, or announced. What is needed for a demand:

- with an IP target: demand + WARM_IP_TARGET, and at least MINIMUM_IP_TARGET;
- without: whole ENIs, as many as leave WARM_ENI_TARGET ENIs' worth of addresses free (and at least one address).

Growth happens as soon as less than that is there, on all ENIs at once. Under an IP target it comes in quanta of
`growth_quantum` instead of single addresses; on an m5.4xlarge (29 slots per ENI, quantum 10) with targets 5 and 10,
50 pods that come one by one cost four AssignPrivateIpAddresses and one new ENI: 7 calls.

Nothing shrinks before it has been idle for the settle time, nor within that time of the agent's start. Two numbers say
so: the peak of demand during that time, which the pool keeps enough for, and whether demand rose during it; while it
did, the pool may hold one quantum more.
So growth never undoes shrinking: it ends at most one quantum above what is needed, which shrinking leaves alone, and
shrinking ends at what the peak needs, which is never less than what demand needs. The settled state is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from agent.ipam.model import BlockKind, EniId, EniUsage, InstanceLimits, SubnetId
from agent.ipam.placement import choose_subnet, lowest_free_devices
from agent.ipam.plan import (
    Action,
    AssignBlocks,
    CreateEni,
    Observation,
    Plan,
    PoolPolicy,
    ReleaseEni,
    UnassignBlocks,
)

READY_GRACE_S = 60.0
"""How long an ENI's link may take to appear and be set up before its addresses no longer count. Attaching takes EC2
a few seconds; an ENI without a link for a minute is broken, and pods must get addresses elsewhere."""

_SUBNET_MAX_COUNT = 65_536
"""Addresses of the largest subnet there is, a /16 (VPC user guide, "Subnet CIDR blocks"): no shortage is known."""

_RECHECK_SURPLUS_S = 30.0
_RECHECK_SETTLED_S = 300.0


def growth_quantum(limits: InstanceLimits) -> int:
    """The least to ask EC2 for at once under an IP target: a third of an ENI, at most 16.

    A third, so that filling an ENI takes three calls; 16, because that is the size of a /28 prefix, EC2's own quantum.
    """
    return min(16, -(-limits.slots // 3))


def eni_limit(limits: InstanceLimits, policy: PoolPolicy) -> int:
    """ENIs the instance may have on network card 0, other people's included."""
    return limits.eni_count if policy.max_eni is None else min(limits.eni_count, policy.max_eni)


def needed_count(demand_count: int, limits: InstanceLimits, policy: PoolPolicy) -> int:
    """Addresses to hold for a demand, busy and free together; not bounded by what the instance can have."""
    if policy.has_ip_targets:
        return max(demand_count + policy.warm_ip_target, policy.minimum_ip_target)
    # One address is kept free even with a target of 0, as in the AWS plugin: else each pod would wait for an ENI.
    free_count = max(1, policy.warm_eni_target * limits.slots)
    return limits.slots * -(-(demand_count + free_count) // limits.slots)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The numbers behind a plan.

    enis: those that serve pods and count: they stay, and are set up or may still become so.
    demand_count: busy on `enis`, waiting and announced.
    total_count: busy and free on `enis`, and what is in flight.
    capacity_count: what the instance can have at most.
    new_eni_count: how many more ENIs the limit allows.
    """

    enis: tuple[EniUsage, ...]
    demand_count: int
    total_count: int
    coming_count: int
    capacity_count: int
    new_eni_count: int


def account(seen: Observation, policy: PoolPolicy) -> Account:
    """Add up an observation."""
    enis = tuple(eni for eni in seen.enis if eni.serves_pods and not eni.leaving and _counts(eni, seen.now_s))
    coming = sum(_asked_count(action) for action in seen.in_flight)
    creating = sum(isinstance(action, CreateEni) for action in seen.in_flight)
    on_card = sum(eni.eni.card == 0 for eni in seen.enis)
    new_enis = max(0, eni_limit(seen.limits, policy) - on_card - creating)
    slots = seen.limits.slots
    return Account(
        enis=enis,
        demand_count=sum(eni.busy_count for eni in enis) + seen.waiter_count + seen.announced_count,
        total_count=sum(eni.busy_count + len(eni.free) for eni in enis) + coming,
        coming_count=coming,
        capacity_count=sum(_capacity(eni, slots) for eni in enis) + (creating + new_enis) * slots,
        new_eni_count=new_enis,
    )


def plan(seen: Observation, policy: PoolPolicy) -> Plan:
    """Decide what to ask EC2 for, or to give back to it, now."""
    sums = account(seen, policy)
    needed = min(needed_count(sums.demand_count, seen.limits, policy), sums.capacity_count)
    short = max(0, needed - sums.total_count)
    numbers = f"demand {sums.demand_count}, need {needed}, have {sums.total_count - sums.coming_count}"
    if sums.coming_count:
        numbers += f" and {sums.coming_count} coming"
    settled = sums.total_count == needed and not seen.in_flight and all(eni.ready for eni in sums.enis)
    actions: tuple[Action, ...] = ()
    if short:
        why = f"{numbers}: {short} short"
        actions = () if seen.growth_held else _grow(seen, policy, sums, short, why)
        if not actions:
            why += "; EC2 refused a moment ago" if seen.growth_held else "; nothing can be asked for now"
    elif seen.waiter_count or sums.coming_count or seen.shrink_held:
        why = numbers
    else:
        actions, why = _shrink(seen, policy, sums, numbers)
    return Plan(
        actions=actions,
        reason=why,
        short_count=short,
        recheck_after_s=_RECHECK_SETTLED_S if settled else _RECHECK_SURPLUS_S,
    )


# ---- growing


def _grow(seen: Observation, policy: PoolPolicy, sums: Account, short: int, why: str) -> tuple[Action, ...]:
    # Without a settle time, what is not needed would be given back at once.
    quantum = growth_quantum(seen.limits) if policy.has_ip_targets and policy.settle_addresses_s else 1
    left = dict(seen.short_subnets)
    fills = _fill(seen, sums.enis, short, quantum, left, why)
    missing = short - sum(action.count for action in fills) - _room_soon_count(seen, sums)
    return (*fills, *_create(seen, sums, missing, quantum, left, why))


def _room_soon_count(seen: Observation, sums: Account) -> int:
    """Room on ENIs that are getting addresses at the moment.

    They are asked for more when that is done, in one request for everything that is missing then: a new ENI would take
    longer, and cost three calls.
    """
    asked = {action.eni_id: action.count for action in seen.in_flight if isinstance(action, AssignBlocks)}
    return sum(
        max(0, seen.limits.slots - eni.used_slot_count - asked[eni.eni.eni_id])
        for eni in sums.enis
        if eni.eni.eni_id in asked and eni.eni.subnet_id not in seen.blocked_subnets | seen.short_subnets.keys()
    )


def _fill(
    seen: Observation, enis: Iterable[EniUsage], missing: int, quantum: int, left: dict[SubnetId, int], why: str
) -> tuple[AssignBlocks, ...]:
    """Assign `missing` addresses, the primary and the fullest ENIs first; the last one gets at least a quantum.

    left: addresses in subnets that are short; what is taken from them is taken off.
    """
    busy = _touched(seen)
    actions: list[AssignBlocks] = []
    for eni in sorted(enis, key=_densest_first):
        subnet_id = eni.eni.subnet_id
        if missing <= 0:
            break
        if eni.eni.eni_id in busy or subnet_id in seen.blocked_subnets:
            continue
        room = seen.limits.slots - eni.used_slot_count
        count = min(missing, room, left[subnet_id]) if subnet_id in left else min(max(missing, quantum), room)
        if count > 0:
            actions.append(AssignBlocks(eni_id=eni.eni.eni_id, kind=BlockKind.IPV4_ADDRESS, count=count, reason=why))
            missing -= count
            if subnet_id in left:
                left[subnet_id] -= count
    return tuple(actions)


def _create(
    seen: Observation, sums: Account, missing: int, quantum: int, left: dict[SubnetId, int], why: str
) -> tuple[CreateEni, ...]:
    """Make ENIs for `missing` addresses, each with at least a quantum. An ENI takes one address more for itself."""
    primary = next((eni.eni for eni in seen.enis if eni.eni.is_primary), None)
    if primary is None:
        return ()
    taken = {eni.eni.device for eni in seen.enis if eni.eni.card == 0}
    taken |= {action.device for action in seen.in_flight if isinstance(action, CreateEni)}
    free = {
        one.subnet_id: min(one.free_address_count, left.get(one.subnet_id, _SUBNET_MAX_COUNT)) for one in seen.subnets
    }
    if not free:
        free = {primary.subnet_id: left.get(primary.subnet_id, _SUBNET_MAX_COUNT)}
    actions: list[CreateEni] = []
    for device in lowest_free_devices(taken, sums.new_eni_count):
        if missing <= 0:
            break
        subnet_id = choose_subnet(free, blocked=seen.blocked_subnets, address_count=min(missing, seen.limits.slots) + 1)
        if subnet_id is None:
            break
        wanted = missing if subnet_id in left else max(missing, quantum)
        count = min(wanted, seen.limits.slots, free[subnet_id] - 1)
        free[subnet_id] -= count + 1
        actions.append(
            CreateEni(device=device, subnet_id=subnet_id, kind=BlockKind.IPV4_ADDRESS, count=count, reason=why)
        )
        missing -= count
    return tuple(actions)


# ---- shrinking


def _shrink(seen: Observation, policy: PoolPolicy, sums: Account, numbers: str) -> tuple[tuple[Action, ...], str]:
    keep_enis = _keep_count(
        seen, policy, sums, seen.peak_eni_demand_count, is_quiet=seen.quiet_s >= policy.settle_enis_s
    )
    total = sums.total_count
    released: list[ReleaseEni] = []
    for eni in _idle_enis(seen, policy) if seen.watched_s >= policy.settle_enis_s else ():
        usable = len(eni.free) if eni in sums.enis else 0
        others = [other for other in sums.enis if other is not eni and not _is_released(other, released)]
        missing = keep_enis - (total - usable)
        if missing <= 0:
            released.append(ReleaseEni(eni_id=eni.eni.eni_id, reason=f"{numbers}: the ENI is idle"))
            total -= usable
        elif not released and seen.quiet_s >= policy.settle_enis_s and not seen.growth_held:
            why = f"{numbers}: room for the free addresses of idle {eni.eni.eni_id}"
            fills = _fill(seen, others, missing, 0, dict(seen.short_subnets), why)
            if sum(action.count for action in fills) >= missing:
                return fills, why
    trims: tuple[UnassignBlocks, ...] = ()
    if policy.has_ip_targets and seen.watched_s >= policy.settle_addresses_s:
        quiet = seen.quiet_s >= policy.settle_addresses_s
        surplus = total - _keep_count(seen, policy, sums, seen.peak_demand_count, is_quiet=quiet)
        left = [eni for eni in sums.enis if not _is_released(eni, released)]
        trims = _trim(seen, left, surplus, f"{numbers}: {max(0, surplus)} idle")
    actions: tuple[Action, ...] = (*released, *trims)
    return actions, actions[0].reason if actions else numbers


def _keep_count(seen: Observation, policy: PoolPolicy, sums: Account, peak: int, *, is_quiet: bool) -> int:
    """Addresses that shrinking leaves alone."""
    demand = max(peak, sums.demand_count)
    needed = min(needed_count(demand, seen.limits, policy), sums.capacity_count)
    return needed if is_quiet or not policy.has_ip_targets else needed + growth_quantum(seen.limits)


def _idle_enis(seen: Observation, policy: PoolPolicy) -> list[EniUsage]:
    """ENIs that could be given back, the newest first."""
    busy = _touched(seen) | seen.setting_up
    idle = [
        eni
        for eni in seen.enis
        if eni.serves_pods
        and not eni.eni.is_primary
        and not eni.leaving
        and eni.busy_count + eni.retiring_count == 0
        and seen.now_s - eni.since_s >= policy.settle_enis_s
        and eni.eni.eni_id not in busy
    ]
    return sorted(idle, key=lambda eni: (-eni.since_s, -eni.eni.device))


def _trim(seen: Observation, enis: Iterable[EniUsage], surplus: int, why: str) -> tuple[UnassignBlocks, ...]:
    """Give `surplus` free addresses back, from the emptiest and newest ENIs, those free the longest first."""
    busy = _touched(seen)
    order = sorted(enis, key=lambda eni: (eni.eni.is_primary, eni.busy_count, -eni.since_s, -eni.eni.device))
    actions: list[UnassignBlocks] = []
    for eni in order:
        if surplus <= 0:
            break
        if eni.eni.eni_id in busy:
            continue
        blocks = {usage.block.network.network_address: usage.block for usage in eni.blocks if not usage.block.is_prefix}
        free = tuple(blocks[address] for address in eni.free if address in blocks)[:surplus]
        if free:
            actions.append(UnassignBlocks(eni_id=eni.eni.eni_id, blocks=free, reason=why))
            surplus -= len(free)
    return tuple(actions)


# ---- adding up


def _counts(eni: EniUsage, now_s: float) -> bool:
    return eni.ready or now_s - eni.since_s < READY_GRACE_S


def _capacity(eni: EniUsage, slots: int) -> int:
    return sum(usage.block.kind.address_count for usage in eni.blocks) + slots - len(eni.blocks)


def _asked_count(action: Action) -> int:
    match action:
        case CreateEni():
            return action.count * action.kind.address_count
        case AssignBlocks():
            return action.count
        case UnassignBlocks() | ReleaseEni():
            return 0


def _touched(seen: Observation) -> set[EniId]:
    """ENIs that an action in flight works on."""
    return {action.eni_id for action in seen.in_flight if not isinstance(action, CreateEni)}


def _is_released(eni: EniUsage, released: Iterable[ReleaseEni]) -> bool:
    return any(action.eni_id == eni.eni.eni_id for action in released)


def _densest_first(eni: EniUsage) -> tuple[bool, int, int]:
    return not eni.eni.is_primary, -eni.busy_count, eni.eni.device
