"""What operations need besides the state and their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sim.model.catalog import InstanceType
from sim.model.config import AddressPlacement, Timings
from sim.model.errors import Ec2Error
from sim.model.mint import Mint


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The instance types, where chance comes from, and how long things take."""

    catalog: Mapping[str, InstanceType]
    mint: Mint
    placement: AddressPlacement
    timings: Timings

    def choose(self, size: int) -> int:
        """From where to look for a free address among `size` (`sim.model.space.Choose`)."""
        return self.mint.position(size, self.placement)

    def instance_type(self, name: str) -> InstanceType:
        """Raises: Ec2Error(InvalidInstanceType)."""
        try:
            return self.catalog[name]
        except KeyError:
            raise Ec2Error(
                "InvalidInstanceType", f"The following supplied instance types do not exist: [{name}]"
            ) from None

    @property
    def most_ipv4_per_interface(self) -> int:
        """What an ENI may hold while it is attached to nothing: as much as the largest type allows."""
        return max(each.ipv4_per_interface for each in self.catalog.values())

    @property
    def most_ipv6_per_interface(self) -> int:
        """As `most_ipv4_per_interface`."""
        return max(each.ipv6_per_interface for each in self.catalog.values())
