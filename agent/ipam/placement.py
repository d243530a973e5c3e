"""Which ENI serves the next pod, and where the next ENI goes. Pure.

Pods are packed: the primary ENI first, because it can never be given back, then the fullest ENI. So the other
ENIs empty out and can be released. Within an ENI the address that has been free the longest comes first, which keeps
an address out of use for longer than its cooldown whenever there is a choice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from agent.ipam.model import EniId, SubnetId


@dataclass(frozen=True, slots=True, kw_only=True)
class EniFill:
    """What placement needs to know of one ENI that has a free, usable address."""

    eni_id: EniId
    device: int
    is_primary: bool
    busy_count: int


def choose_eni(candidates: Iterable[EniFill]) -> EniId | None:
    """The ENI to take the next address from; None when there is no candidate. Ties go to the lower device index."""
    best = min(candidates, key=lambda eni: (not eni.is_primary, -eni.busy_count, eni.device), default=None)
    return None if best is None else best.eni_id


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
    free_counts: Mapping[SubnetId, int], *, blocked: Collection[SubnetId], address_count: int
) -> SubnetId | None:
    """The subnet for a new ENI with `address_count` addresses, its own primary one included.

    free_counts: free addresses by subnet, best subnet first. The first that can take all of it wins, else the one with
    the most. None when every subnet is blocked or has less than two (the primary address alone is of no use to pods).
    """
    usable = {one: free for one, free in free_counts.items() if one not in blocked and free > 1}
    roomy = next((one for one, free in usable.items() if free >= address_count), None)
    return roomy or max(usable, key=lambda one: usable[one], default=None)
