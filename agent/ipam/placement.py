"""Which block serves the next pod, and where the next ENI goes. Pure.

Pods are packed: the primary ENI first, because it can never be given back, then the fullest ENI, and on it the fullest
block. So the other ENIs and blocks empty out and can be released. Among equals the address that has been free the
longest comes first, which keeps an address out of use for longer than its cooldown whenever there is a choice.
Before all that comes the kind of block the pool holds, so that blocks of the other kind run empty.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from agent.ipam.model import Block, BlockKind, Eni, EniId, SubnetId


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementPolicy:
    """preferred: the kind of block the pool holds. primary_is_open: new pods may be on the primary ENI."""

    preferred: BlockKind = BlockKind.IPV4_ADDRESS
    primary_is_open: bool = True

    def allows(self, eni: Eni) -> bool:
        """Whether new pods may get addresses from an ENI of ours."""
        return not eni.excluded and (self.primary_is_open or not eni.is_primary)


@dataclass(frozen=True, slots=True, kw_only=True)
class EniFill:
    """What placement needs to know of one ENI that has a free, usable address. kinds: of its blocks that have one."""

    eni_id: EniId
    device: int
    is_primary: bool
    busy_count: int
    kinds: Collection[BlockKind]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFill:
    """A block with a free address; free_s: since when the one that has been free the longest is."""

    block: Block
    busy_count: int
    free_s: float


def choose_eni(candidates: Iterable[EniFill], preferred: BlockKind) -> EniId | None:
    """The ENI to take the next address from; None when there is no candidate. Ties go to the lower device index."""
    best = min(
        candidates,
        key=lambda eni: (preferred not in eni.kinds, not eni.is_primary, -eni.busy_count, eni.device),
        default=None,
    )
    return None if best is None else best.eni_id


def choose_block(candidates: Iterable[BlockFill], preferred: BlockKind) -> Block:
    """The block of the chosen ENI to take the next address from. There is at least one candidate."""
    return min(candidates, key=lambda one: (one.block.kind is not preferred, -one.busy_count, one.free_s)).block


def lowest_free_devices(taken: Collection[int], count: int) -> tuple[int, ...]:
    """The `count` lowest device indices above 0 that are not taken. Index 0 is the primary ENI's."""
    found: list[int] = []
    device = 1
    while len(found) < count:
        if device not in taken:
            found.append(device)
        device += 1
    return tuple(found)


def choose_subnet(
    free_counts: Mapping[SubnetId, int],
    *,
    blocked: Collection[SubnetId],
    avoided: Collection[SubnetId] = (),
    address_count: int,
) -> SubnetId | None:
    """The subnet for a new ENI with `address_count` addresses, its own primary one included.

    free_counts: free addresses by subnet, best subnet first. The first that can take all of it wins, else the one with
    the most. None when every subnet is blocked or has less than two (the primary address alone is of no use to pods).
    avoided: subnets to take only when there is no other (they have no prefixes).
    """
    for excluded in ({*blocked, *avoided}, blocked):
        chosen = _roomiest(free_counts, excluded, address_count)
        if chosen is not None:
            return chosen
    return None


def _roomiest(
    free_counts: Mapping[SubnetId, int], blocked: Collection[SubnetId], address_count: int
) -> SubnetId | None:
    usable = {one: free for one, free in free_counts.items() if one not in blocked and free > 1}
    roomy = next((one for one, free in usable.items() if free >= address_count), None)
    return roomy or max(usable, key=lambda one: usable[one], default=None)
