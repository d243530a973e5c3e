"""What the inventory keeps of one ENI: its listed addresses, by state and by block."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

from agent.ipam.model import Address, AddressState, Block, BlockKind, BlockUsage, Eni, EniUsage

BUSY = (AddressState.HELD, AddressState.COOLING, AddressState.QUARANTINED)
"""States in which an address must not go back to EC2, nor its ENI."""


@dataclass(slots=True, kw_only=True)
class _Tally:
    """A block's listed addresses: how many there are, how many are busy, and which are free, in order of arrival."""

    listed_count: int = 0
    busy_count: int = 0
    free: dict[Address, None] = field(default_factory=dict)
    changed_s: float = -math.inf


@dataclass(slots=True, kw_only=True)
class Record:
    """One ENI and its listed addresses by state, each bucket in order of arrival (a dict as an ordered set)."""

    eni: Eni
    since_s: float
    granted_s: float = -math.inf
    table_id: int | None = None
    leaving: bool = False
    buckets: dict[AddressState, dict[Address, None]] = field(
        default_factory=lambda: {state: {} for state in AddressState}
    )
    tallies: dict[Block, _Tally] = field(default_factory=dict)
    free_by_kind: Counter[BlockKind] = field(default_factory=Counter)
    _blocks: tuple[BlockUsage, ...] | None = None
    """Of the last `usage`, for as long as it is true: most turns of the pool change one ENI."""

    @property
    def usable(self) -> bool:
        return self.table_id is not None and not self.leaving

    def file(self, address: Address, state: AddressState, block: Block, since_s: float) -> None:
        """Count a listed address in."""
        self._blocks = None
        self.buckets[state][address] = None
        tally = self.tallies.setdefault(block, _Tally())
        tally.listed_count += 1
        tally.busy_count += state in BUSY
        tally.changed_s = max(tally.changed_s, since_s)
        if state is AddressState.FREE:
            tally.free[address] = None
            self.free_by_kind[block.kind] += 1

    def unfile(self, address: Address, state: AddressState, block: Block) -> None:
        """Count it out again. A block without listed addresses is none of this ENI's."""
        self._blocks = None
        del self.buckets[state][address]
        tally = self.tallies[block]
        tally.listed_count -= 1
        tally.busy_count -= state in BUSY
        if state is AddressState.FREE:
            del tally.free[address]
            self.free_by_kind[block.kind] -= 1
        if not tally.listed_count:
            del self.tallies[block]

    def usage(self) -> EniUsage:
        """The ENI as the planner and the API see it."""
        if self._blocks is None:
            self._blocks = tuple(
                BlockUsage(
                    block=block,
                    listed_count=tally.listed_count,
                    busy_count=tally.busy_count,
                    free_count=len(tally.free),
                    changed_s=tally.changed_s,
                )
                for block, tally in self.tallies.items()
            )
        return EniUsage(
            eni=self.eni,
            ready=self.table_id is not None,
            leaving=self.leaving,
            since_s=self.since_s,
            held_count=len(self.buckets[AddressState.HELD]),
            cooling_count=len(self.buckets[AddressState.COOLING]),
            quarantined_count=len(self.buckets[AddressState.QUARANTINED]),
            retiring_count=len(self.buckets[AddressState.RETIRING]),
            free=tuple(self.buckets[AddressState.FREE]),
            blocks=self._blocks,
        )
