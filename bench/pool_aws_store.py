"""What the AWS plugin's pool holds: ENIs, their addresses or /28 prefixes, and which pod has which.

The plugin keeps all of this in Go maps, whose order is random: so every choice among ENIs and blocks is drawn here.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

_T = TypeVar("_T")

PREFIX_SIZE = 16
COOLDOWN_S = 30.0
LONG_AGO_S = -1e9


@dataclass(slots=True, kw_only=True)
class Place:
    """An address somebody has, or had a moment ago."""

    pod: str | None
    freed_s: float = LONG_AGO_S


@dataclass(slots=True, kw_only=True)
class AwsBlock:
    """One address or one /28. places: held and cooling ones, by position."""

    name: int
    size: int
    places: dict[int, Place] = field(default_factory=dict)
    held_count: int = 0


@dataclass(slots=True, kw_only=True)
class AwsEni:
    """An ENI and its blocks by name. born_s: when the plugin first saw it."""

    name: int
    primary: bool
    born_s: float
    blocks: dict[int, AwsBlock] = field(default_factory=dict)

    @property
    def held_count(self) -> int:
        return sum(block.held_count for block in self.blocks.values())

    def is_cooling(self, now_s: float) -> bool:
        """Whether a pod gave one of its addresses back less than the cooldown ago."""
        return any(
            now_s - place.freed_s <= COOLDOWN_S for block in self.blocks.values() for place in block.places.values()
        )


class AwsStore:
    """The pool of one network card. block_size: addresses in a block, 1 or 16."""

    def __init__(self, block_size: int, draw: random.Random) -> None:
        self.enis: dict[int, AwsEni] = {}
        self._block_size = block_size
        self._random = draw
        self._made_count = 0
        self._held: dict[str, tuple[AwsBlock, int]] = {}

    @property
    def address_count(self) -> int:
        """Addresses pods have or could have; cooling ones too."""
        return sum(block.size for eni in self.enis.values() for block in eni.blocks.values())

    @property
    def held_count(self) -> int:
        return sum(eni.held_count for eni in self.enis.values())

    @property
    def block_count(self) -> int:
        return sum(len(eni.blocks) for eni in self.enis.values())

    @property
    def empty_block_count(self) -> int:
        """Blocks no pod has an address of."""
        return sum(not block.held_count for eni in self.enis.values() for block in eni.blocks.values())

    def add_eni(self, *, primary: bool, now_s: float) -> AwsEni:
        """Enter an ENI without addresses."""
        self._made_count += 1
        eni = self.enis[self._made_count] = AwsEni(name=self._made_count, primary=primary, born_s=now_s)
        return eni

    def grant(self, eni: AwsEni, count: int) -> None:
        """Enter so many new blocks."""
        for _ in range(count):
            self._made_count += 1
            eni.blocks[self._made_count] = AwsBlock(name=self._made_count, size=self._block_size)

    def assign(self, pod: str, now_s: float) -> bool:
        """Give a pod an address that is free and not cooling; False when there is none."""
        for eni in self.shuffled(self.enis):
            for block in self.shuffled(eni.blocks):
                for position, place in list(block.places.items()):
                    if place.pod is None and now_s - place.freed_s > COOLDOWN_S:
                        del block.places[position]
                if len(block.places) < block.size:
                    position = next(i for i in range(block.size) if i not in block.places)
                    block.places[position] = Place(pod=pod)
                    block.held_count += 1
                    self._held[pod] = (block, position)
                    return True
        return False

    def unassign(self, pod: str, now_s: float) -> bool:
        """Take a pod's address, which cools from now on; False when it has none."""
        found = self._held.pop(pod, None)
        if found is None:
            return False
        block, position = found
        block.places[position] = Place(pod=None, freed_s=now_s)
        block.held_count -= 1
        return True

    def shuffled(self, items: Mapping[int, _T]) -> list[_T]:
        """The values in an order of Go's."""
        values = list(items.values())
        self._random.shuffle(values)
        return values
