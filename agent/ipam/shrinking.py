"""What to give back to EC2 when the pool has more than it needs. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from agent.ipam.account import Account, bounded_need, is_open, is_stock, stock_count, strays
from agent.ipam.growing import fill, growth_quantum
from agent.ipam.model import BlockKind, EniUsage
from agent.ipam.plan import Action, Observation, PoolPolicy, ReleaseEni, UnassignBlocks, touched


def shrink(seen: Observation, policy: PoolPolicy, sums: Account, numbers: str) -> tuple[tuple[Action, ...], str]:
    """Idle ENIs, strays, and surplus blocks; or, first, room elsewhere for what is warm on an idle ENI."""
    keep = _keep_count(seen, policy, sums, seen.peak_eni_demand_count, is_quiet=seen.quiet_s >= policy.settle_enis_s)
    total = sums.total_count
    released: list[ReleaseEni] = []
    for eni in _idle_enis(seen, policy) if seen.watched_s >= policy.settle_enis_s else ():
        usable = stock_count(seen, policy, eni) if eni in sums.enis else 0
        missing = keep - (total - usable)
        if missing <= 0:
            released.append(ReleaseEni(eni_id=eni.eni.eni_id, reason=f"{numbers}: the ENI is idle"))
            total -= usable
        elif not released and seen.quiet_s >= policy.settle_enis_s and not seen.growth_held:
            others = [other for other in sums.enis if other is not eni]
            why = f"{numbers}: room for the free addresses of idle {eni.eni.eni_id}"
            fills = fill(seen, policy, others, missing, 0, dict(seen.short_subnets), why)
            if sum(action.count * action.kind.address_count for action in fills) >= missing:
                return fills, why
    staying = [eni for eni in seen.enis if not any(action.eni_id == eni.eni.eni_id for action in released)]
    swaps = _give_back_strays(seen, policy, staying, numbers)
    trims: tuple[UnassignBlocks, ...] = ()
    # Only when the longer of the two windows has a surplus too: so what demand lets go bit by bit goes in one request.
    if policy.counts_addresses and total > keep and seen.watched_s >= policy.settle_addresses_s:
        quiet = seen.quiet_s >= policy.settle_addresses_s
        surplus = total - _keep_count(seen, policy, sums, seen.peak_demand_count, is_quiet=quiet)
        swapped = {action.eni_id for action in swaps}
        left = [eni for eni in sums.enis if eni in staying and eni.eni.eni_id not in swapped]
        trims = _trim(seen, policy, left, surplus, f"{numbers}: {max(0, surplus)} idle")
    actions: tuple[Action, ...] = (*released, *swaps, *trims)
    return actions, actions[0].reason if actions else numbers


def _keep_count(seen: Observation, policy: PoolPolicy, sums: Account, peak: int, *, is_quiet: bool) -> int:
    """Addresses that shrinking leaves alone."""
    needed = bounded_need(seen, policy, max(peak, sums.demand_count), sums.capacity_count)
    return needed if is_quiet or not policy.counts_addresses else needed + growth_quantum(seen.limits)


def _idle_enis(seen: Observation, policy: PoolPolicy) -> list[EniUsage]:
    """ENIs that could be given back, the newest first."""
    busy = touched(seen) | seen.setting_up
    idle = [
        eni
        for eni in seen.enis
        if eni.serves_pods
        and eni.eni.may_be_released
        and not eni.leaving
        and eni.busy_count + eni.retiring_count == 0
        and seen.now_s - eni.since_s >= policy.settle_enis_s
        and eni.eni.eni_id not in busy
    ]
    return sorted(idle, key=lambda eni: (-eni.since_s, -eni.eni.device))


def _give_back_strays(
    seen: Observation, policy: PoolPolicy, enis: Iterable[EniUsage], numbers: str
) -> tuple[UnassignBlocks, ...]:
    """Free blocks of the kind the pool does not want, idle for the settle time; at once where new pods may not be."""
    busy = touched(seen)
    actions: list[UnassignBlocks] = []
    for eni in enis:
        if eni.eni.eni_id in busy or eni.leaving or not eni.serves_pods:
            continue
        is_closed = not is_open(eni, policy)
        found = [
            usage.block
            for usage in strays(seen, policy, eni)
            if is_closed or seen.now_s - usage.changed_s >= policy.settle_addresses_s
        ]
        blocks = tuple(block for block in found if block.kind is found[0].kind)
        if blocks:
            why = "no new pod may be on this ENI" if is_closed else f"{blocks[0].kind} is not what the pool holds"
            actions.append(UnassignBlocks(eni_id=eni.eni.eni_id, blocks=blocks, reason=f"{numbers}: {why}"))
    return tuple(actions)


def _trim(
    seen: Observation, policy: PoolPolicy, enis: Iterable[EniUsage], surplus: int, why: str
) -> tuple[UnassignBlocks, ...]:
    """Give back free blocks that are surplus as a whole, from the emptiest and newest ENIs, the longest free first.

    The kind that the pool holds only for want of the other goes first. One kind per ENI and turn.
    """
    busy = touched(seen)
    order = sorted(enis, key=lambda eni: (eni.eni.is_primary, eni.busy_count, -eni.since_s, -eni.eni.device))
    actions: list[UnassignBlocks] = []
    for kind in sorted(BlockKind, key=lambda kind: kind is policy.kind):
        for eni in order:
            if eni.eni.eni_id in busy or not is_stock(seen, policy, eni, kind):
                continue
            idle = [usage for usage in eni.blocks if usage.block.kind is kind and usage.is_free]
            idle = sorted(idle, key=lambda usage: usage.changed_s)[: max(0, surplus) // kind.address_count]
            if idle:
                blocks = tuple(usage.block for usage in idle)
                actions.append(UnassignBlocks(eni_id=eni.eni.eni_id, blocks=blocks, reason=why))
                busy = busy | {eni.eni.eni_id}
                surplus -= len(blocks) * kind.address_count
    return tuple(actions)
