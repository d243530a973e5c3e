"""EC2's request throttling: one token bucket per action, account and Region.

Sizes and refill rates are those of the EC2 Developer Guide, "Request throttling for the Amazon EC2 API", table "Request
token bucket sizes and refill rates":

| actions | bucket | refill per s |
|---|---|---|
| Create-, Delete-, ModifyNetworkInterface(Attribute), Assign-/Unassign-PrivateIpAddresses, -Ipv6Addresses | 100 | 5 |
| CreateTags, DeleteTags | 100 | 10 |
| Attach-, DetachNetworkInterface (mutating actions without a row of their own) | 50 | 5 |
| DescribeInstances, DescribeNetworkInterfaces, DescribeSecurityGroups with neither filter nor paging | 50 | 10 |
| all other Describe* | 100 | 20 |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A bucket is full at first; tokens that do not fit are lost."""

    size_count: float
    refill_per_s: float


_MUTATING = Bucket(size_count=50, refill_per_s=5)
_NETWORK = Bucket(size_count=100, refill_per_s=5)
_TAGS = Bucket(size_count=100, refill_per_s=10)
_DESCRIBE = Bucket(size_count=100, refill_per_s=20)
_UNFILTERED = Bucket(size_count=50, refill_per_s=10)

PUBLISHED: Mapping[str, Bucket] = {
    "CreateNetworkInterface": _NETWORK,
    "DeleteNetworkInterface": _NETWORK,
    "ModifyNetworkInterfaceAttribute": _NETWORK,
    "AssignPrivateIpAddresses": _NETWORK,
    "UnassignPrivateIpAddresses": _NETWORK,
    "AssignIpv6Addresses": _NETWORK,
    "UnassignIpv6Addresses": _NETWORK,
    "CreateTags": _TAGS,
    "DeleteTags": _TAGS,
}
_TELLS_FILTERED_APART = frozenset({"DescribeInstances", "DescribeNetworkInterfaces", "DescribeSecurityGroups"})


class Budget:
    """The buckets of one account in one Region.

    limits: by action; for what is not in it, the guide's general classes hold.
    """

    def __init__(self, limits: Mapping[str, Bucket] = PUBLISHED) -> None:
        self._limits = limits
        self._levels: dict[str, tuple[float, float]] = {}

    def take(self, action: str, *, filtered: bool, now_s: float) -> bool:
        """Take a token for one request; False when there is none. A clock that goes back refills nothing."""
        name, bucket = self._bucket(action, filtered=filtered)
        level, since_s = self._levels.get(name, (bucket.size_count, now_s))
        level = min(bucket.size_count, level + max(0.0, now_s - since_s) * bucket.refill_per_s)
        granted = level >= 1
        self._levels[name] = (level - 1 if granted else level, now_s)
        return granted

    def levels(self) -> dict[str, float]:
        """Tokens left at the last request, by bucket; a bucket nobody has used is full and not listed."""
        return {name: level for name, (level, _) in self._levels.items()}

    def _bucket(self, action: str, *, filtered: bool) -> tuple[str, Bucket]:
        if action in self._limits:
            return action, self._limits[action]
        if not action.startswith("Describe"):
            return action, _MUTATING
        if filtered or action not in _TELLS_FILTERED_APART:
            return action, _DESCRIBE
        return f"{action} (unfiltered)", _UNFILTERED
