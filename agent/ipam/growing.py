"""What to ask EC2 for when the pool is short. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.ipam.account import Account, asked_count, block_size, strays
from agent.ipam.model import BlockKind, EniUsage, InstanceLimits, SubnetId
from agent.ipam.placement import choose_subnet, lowest_free_devices
from agent.ipam.plan import Action, AssignBlocks, CreateEni, Observation, PoolPolicy, UnassignBlocks, touched

_SUBNET_MAX_COUNT = 65_536
"""Addresses of the largest subnet there is, a /16 (VPC user guide, "Subnet CIDR blocks"): no shortage is known."""


def growth_quantum(limits: InstanceLimits) -> int:
    """The least to ask EC2 for at once under a target in addresses: a third of an ENI, at most 16.

    A third, so that filling an ENI takes three calls; 16, because that is the size of a /28 prefix, EC2's own quantum.
    """
    return min(16, -(-limits.slots // 3))


def grow(seen: Observation, policy: PoolPolicy, sums: Account, why: str) -> tuple[Action, ...]:
    """Fill the ENIs there are, make room on them, and make new ones, all in the same turn."""
    # Without a settle time, what is not needed would be given back at once.
    quantum = growth_quantum(seen.limits) if policy.counts_addresses and policy.settle_addresses_s else 1
    left = dict(seen.short_subnets)
    missing = sums.short_count
    fills = fill(seen, policy, sums.enis, missing, quantum, left, why)
    missing -= sum(asked_count(action) for action in fills)
    missing -= _room_soon_count(seen, policy, sums, fills)
    swaps = _make_room(seen, policy, sums, {action.eni_id for action in fills}, missing, why)
    missing -= sum(len(action.blocks) for action in swaps) * policy.kind.address_count
    return (*fills, *swaps, *_create(seen, policy, sums, missing, quantum, left, why))


def fill(
    seen: Observation,
    policy: PoolPolicy,
    enis: Iterable[EniUsage],
    missing: int,
    quantum: int,
    left: dict[SubnetId, int],
    why: str,
) -> tuple[AssignBlocks, ...]:
    """Ask for `missing` addresses, for the primary and the fullest ENIs first; the last one gets at least a quantum.

    left: addresses in subnets that are short; what is taken from them is taken off.
    """
    busy = touched(seen)
    actions: list[AssignBlocks] = []
    for eni in sorted(enis, key=_densest_first):
        subnet_id = eni.eni.subnet_id
        if missing <= 0:
            break
        if eni.eni.eni_id in busy or subnet_id in seen.blocked_subnets:
            continue
        wish = _wish(seen, policy, subnet_id, missing, quantum, left)
        count = min(wish.count, seen.limits.slots - eni.used_slot_count)
        if count > 0:
            action = AssignBlocks(eni_id=eni.eni.eni_id, kind=wish.kind, count=count, reason=why)
            actions.append(action)
            missing -= asked_count(action)
            if subnet_id in left:
                left[subnet_id] -= asked_count(action)
    return tuple(actions)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    kind: BlockKind
    count: int


def _wish(
    seen: Observation,
    policy: PoolPolicy,
    subnet_id: SubnetId,
    missing: int,
    quantum: int,
    left: Mapping[SubnetId, int],
) -> _Wish:
    """What to ask of a subnet for `missing` addresses, however many slots there are.

    At least a quantum, but in a subnet that is short no address more than is missing, nor than it has.
    """
    is_short = subnet_id in seen.short_subnets
    room = left.get(subnet_id, _SUBNET_MAX_COUNT)
    wanted = missing if is_short else max(missing, quantum)
    if policy.kind is BlockKind.IPV4_PREFIX and subnet_id not in seen.fragmented_subnets:
        size = BlockKind.IPV4_PREFIX.address_count
        count = min(wanted // size if is_short else -(-wanted // size), room // size)
        if subnet_id in seen.scarce_subnets:
            count = min(count, 1)
        if count > 0:
            return _Wish(kind=BlockKind.IPV4_PREFIX, count=count)
    return _Wish(kind=BlockKind.IPV4_ADDRESS, count=min(wanted, room))


def _room_soon_count(seen: Observation, policy: PoolPolicy, sums: Account, fills: Iterable[AssignBlocks]) -> int:
    """Room on ENIs that an action works on at the moment, or will from now on.

    They are asked for more when that is done, in one request for everything that is missing then: one more ENI would
    take longer, and cost three calls.
    """
    working = (*seen.in_flight, *fills)
    elsewhere = seen.blocked_subnets | seen.short_subnets.keys()
    room = sum(
        (seen.limits.slots - action.count) * block_size(seen, policy, action.subnet_id)
        for action in working
        if isinstance(action, CreateEni) and action.subnet_id not in elsewhere
    )
    touched_enis = {action.eni_id for action in working if isinstance(action, AssignBlocks | UnassignBlocks)}
    for eni in sums.enis:
        eni_id, subnet_id = eni.eni.eni_id, eni.eni.subnet_id
        if eni_id in touched_enis and subnet_id not in elsewhere:
            asked = sum(one.count for one in working if isinstance(one, AssignBlocks) and one.eni_id == eni_id)
            slots = seen.limits.slots - eni.used_slot_count - asked
            slots += _making_room_count(seen, eni) + len(strays(seen, policy, eni))
            room += max(0, slots) * block_size(seen, policy, subnet_id)
    return room


def _making_room_count(seen: Observation, eni: EniUsage) -> int:
    """Slots of an ENI that become free when what is being given back has gone."""
    return sum(
        len(action.blocks)
        for action in seen.in_flight
        if isinstance(action, UnassignBlocks) and action.eni_id == eni.eni.eni_id
    )


def _make_room(
    seen: Observation, policy: PoolPolicy, sums: Account, filled: set[str], missing: int, why: str
) -> tuple[UnassignBlocks, ...]:
    """Give back free blocks of the kind the pool does not want, as many as slots are missing and no more.

    What stays of them goes on serving pods until the pool has what it wants (`shrinking`).
    """
    busy = touched(seen) | filled
    actions: list[UnassignBlocks] = []
    for eni in sorted(sums.enis, key=_densest_first):
        if missing <= 0:
            break
        subnet_id = eni.eni.subnet_id
        if eni.eni.eni_id in busy or subnet_id in seen.blocked_subnets | seen.short_subnets.keys():
            continue
        blocks = tuple(usage.block for usage in strays(seen, policy, eni))
        blocks = blocks[: -(-missing // policy.kind.address_count)]
        if blocks:
            actions.append(UnassignBlocks(eni_id=eni.eni.eni_id, blocks=blocks, reason=f"{why}: slots for prefixes"))
            missing -= len(blocks) * policy.kind.address_count
    return tuple(actions)


def _create(
    seen: Observation,
    policy: PoolPolicy,
    sums: Account,
    missing: int,
    quantum: int,
    left: Mapping[SubnetId, int],
    why: str,
) -> tuple[CreateEni, ...]:
    """Make ENIs for `missing` addresses, each with at least a quantum. An ENI takes one address more for itself."""
    free = _places(seen, policy, left)
    taken = {eni.eni.device for eni in seen.enis if eni.eni.card == 0}
    taken |= {action.device for action in seen.in_flight if isinstance(action, CreateEni)}
    groups = (seen.site.security_groups or None) if seen.site else None
    actions: list[CreateEni] = []
    for device in lowest_free_devices(taken, sums.new_eni_count):
        if missing <= 0:
            break
        wanted = min(missing, seen.limits.slots * policy.kind.address_count) + 1
        subnet_id = choose_subnet(
            free, blocked=seen.blocked_subnets, avoided=seen.fragmented_subnets, address_count=wanted
        )
        if subnet_id is None:
            break
        room = {subnet_id: free[subnet_id] - 1}
        wish = _wish(seen, policy, subnet_id, missing, quantum, room)
        action = CreateEni(
            device=device,
            subnet_id=subnet_id,
            kind=wish.kind,
            count=min(wish.count, seen.limits.slots),
            reason=why,
            security_groups=groups,
        )
        actions.append(action)
        free[subnet_id] -= asked_count(action) + 1
        missing -= asked_count(action)
    return tuple(actions)


def _places(seen: Observation, policy: PoolPolicy, left: Mapping[SubnetId, int]) -> dict[SubnetId, int]:
    """Free addresses of the subnets a new ENI may be in, best first; empty when there is no place for one."""
    known = {one.subnet_id: one.free_address_count for one in seen.subnets}
    primary = next((eni.eni for eni in seen.enis if eni.eni.is_primary), None)
    if seen.site is not None:
        places = [seen.site.subnet_id]
    elif policy.custom_networking or primary is None:
        places = []
    else:
        places = list(known) or [primary.subnet_id]
    return {one: min(known.get(one, _SUBNET_MAX_COUNT), left.get(one, _SUBNET_MAX_COUNT)) for one in places}


def _densest_first(eni: EniUsage) -> tuple[bool, int, int]:
    return not eni.eni.is_primary, -eni.busy_count, eni.eni.device
