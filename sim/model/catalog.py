"""What each instance type allows, as EC2's DescribeInstanceTypes tells it (`sim/data/generate.py` has the source)."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

_TABLE = Path(__file__).parent.parent / "data" / "instance_types.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceType:
    """The network limits of one instance type.

    interfaces_per_card: how many ENIs each network card takes, by card index.
    ipv4_per_interface: primary address, secondary addresses and prefixes together.
    ipv6_per_interface: addresses and prefixes together; 0 for types without IPv6.
    hypervisor: `nitro`, `xen`, or empty for bare metal.
    """

    name: str
    interfaces_per_card: tuple[int, ...]
    ipv4_per_interface: int
    ipv6_per_interface: int
    hypervisor: str
    bare_metal: bool

    @property
    def interface_count(self) -> int:
        return sum(self.interfaces_per_card)


@functools.cache
def load_catalog() -> Mapping[str, InstanceType]:
    """Every known type by name."""
    table = json.loads(_TABLE.read_text(encoding="utf-8"))
    return MappingProxyType(
        {
            name: InstanceType(
                name=name,
                interfaces_per_card=tuple(cards),
                ipv4_per_interface=ipv4,
                ipv6_per_interface=ipv6,
                hypervisor=hypervisor,
                bare_metal=bare_metal,
            )
            for name, (cards, ipv4, ipv6, hypervisor, bare_metal) in table["types"].items()
        }
    )
