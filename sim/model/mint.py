"""New identifiers, MAC addresses and positions: the one source of chance, seeded when a run must repeat."""

from __future__ import annotations

import random
from collections.abc import Callable

from sim.model.config import AddressPlacement


class Mint:
    """Makes what must be unique within one VPC. Values are drawn from 48 bits and more and never repeat."""

    def __init__(self, seed: int | None) -> None:
        self._random = random.Random(seed)
        self._given: set[str] = set()

    def identifier(self, prefix: str) -> str:
        """`prefix`, a hyphen and 17 hex digits, the long form of EC2's resource identifiers."""
        return self._fresh(lambda: f"{prefix}-{self._random.getrandbits(68):017x}")

    def mac(self) -> str:
        """A locally administered unicast address that begins with 02, as many of EC2's do."""
        return self._fresh(lambda: ":".join(f"{b:02x}" for b in (2, *self._random.randbytes(5))))

    def position(self, size: int, placement: AddressPlacement) -> int:
        """From where to look for a free address among `size`."""
        return 0 if placement is AddressPlacement.LOWEST else self._random.randrange(size)

    def bits(self, count: int) -> int:
        """A random number of `count` bits."""
        return self._random.getrandbits(count)

    def _fresh(self, draw: Callable[[], str]) -> str:
        while (value := draw()) in self._given:
            pass
        self._given.add(value)
        return value
