"""EC2's request budget as this node sees it: one token bucket per action, and what the requests were made for.

EC2 throttles per account, Region and action with token buckets (EC2 Developer Guide, "Request throttling for the Amazon
EC2 API", table "Request token bucket sizes and refill rates"). A node has the published bucket to itself until EC2 says
otherwise. A throttled request says that the account's bucket is empty and that others use it too: how many is unknown.
So the node's rate falls to one request in four seconds, a fourth of that with each further throttle, and rises again by
a twentieth of the published rate with each request that is let through (additive increase, multiplicative decrease).
The next request after a throttle waits a random part of the whole interval (full jitter), so that nodes that were
throttled together do not come back together.

Without I/O; the clock and the random numbers come from outside.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

THROTTLED_RATE_PER_S = 1.0
"""The most a node counts on when it is throttled, before the decrease."""
DECREASE = 4.0
"""What a throttle divides the rate by. Halving is not enough: when a thousand nodes share five requests a second, every
step on the way to their fair rate is a refused request of each of them (tests/unit/test_cloud_fleet.py)."""
LOWEST_RATE_PER_S = 1 / 60
"""The least: one try a minute of a request that somebody needs."""
_INCREASE = 0.05
"""Of the published rate, with each request that is let through."""
_CERTAIN = 0.1
"""The part of an interval that is waited in any case, so that no request follows a throttle at once."""


_NOBODY_WAITS = 1e-6
"""A level further below 0 is that of requests that wait already, and keep their places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A published bucket: full at first, and refilled up to its size."""

    size_count: float
    refill_per_s: float


_MUTATING = Bucket(size_count=50, refill_per_s=5)
_DESCRIBE = Bucket(size_count=100, refill_per_s=20)
_NETWORK = Bucket(size_count=100, refill_per_s=5)

PUBLISHED: Mapping[str, Bucket] = {
    "CreateNetworkInterface": _NETWORK,
    "DeleteNetworkInterface": _NETWORK,
    "ModifyNetworkInterfaceAttribute": _NETWORK,
    "AssignPrivateIpAddresses": _NETWORK,
    "UnassignPrivateIpAddresses": _NETWORK,
    "AssignIpv6Addresses": _NETWORK,
    "UnassignIpv6Addresses": _NETWORK,
    "CreateTags": Bucket(size_count=100, refill_per_s=10),
}
"""Actions with a row of their own. The others have their class's: `Describe*` (ours are all filtered), or mutating."""


def published(action: str) -> Bucket:
    """The account's bucket for an action."""
    return PUBLISHED.get(action) or (_DESCRIBE if action.startswith("Describe") else _MUTATING)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCount:
    """Requests with one reason and one outcome ("ok", a cause's value, "withheld", "cancelled", "malformed")."""

    reason: str
    outcome: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionBudget:
    """One action's part of the budget, at one moment.

    size_count, refill_per_s: as published, for the whole account.
    rate_per_s: what this node allows itself. level_count: its tokens; below 0 while requests wait.
    throttled_count, withheld_count: refused by EC2, and not sent because no token would come in time.
    waited_s: seconds that requests waited for tokens, in all.
    spent_s: seconds that requests took, in all, by outcome.
    """

    action: str
    size_count: float
    refill_per_s: float
    rate_per_s: float
    level_count: float
    throttled_count: int
    withheld_count: int
    waited_s: float
    calls: tuple[CallCount, ...]
    spent_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Account:
    """The node's bucket for one action."""

    bucket: Bucket
    level: float
    since_s: float
    rate_per_s: float
    throttled_count: int = 0
    waited_s: float = 0.0
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    spent_s: dict[str, float] = field(default_factory=dict)

    def refill(self, now_s: float) -> None:
        # The burst shrinks with the rate: a node that was throttled saves no bucketful for later.
        share = self.rate_per_s / self.bucket.refill_per_s
        full = max(1.0, self.bucket.size_count * share)
        self.level = min(full, self.level + max(0.0, now_s - self.since_s) * self.rate_per_s)
        self.since_s = now_s


WITHHELD = "withheld"


class Budget:
    """Every action's bucket. clock: monotonic seconds. draw: random numbers in [0, 1)."""

    def __init__(self, *, clock: Callable[[], float], draw: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._draw = draw
        self._accounts: dict[str, _Account] = {}

    def wait_s(self, action: str) -> float:
        """Seconds until a request that asks now may go out."""
        account = self._account(action)
        return max(0.0, (1.0 - account.level) / account.rate_per_s)

    def take(self, action: str) -> float:
        """Take a token, perhaps one that has still to come; seconds until then. First come, first served."""
        wait_s = self.wait_s(action)
        account = self._account(action)
        account.level -= 1.0
        account.waited_s += wait_s
        return wait_s

    def allowed(self, action: str) -> None:
        """EC2 let a request through."""
        account = self._account(action)
        refill_per_s = account.bucket.refill_per_s
        account.rate_per_s = min(refill_per_s, account.rate_per_s + _INCREASE * refill_per_s)

    def throttled(self, action: str) -> float:
        """EC2 throttled a request; seconds until the next one may go out, never the same on two nodes."""
        account = self._account(action)
        account.throttled_count += 1
        account.rate_per_s = max(LOWEST_RATE_PER_S, min(THROTTLED_RATE_PER_S, account.rate_per_s) / DECREASE)
        if account.level > -_NOBODY_WAITS:
            account.level = (1.0 - _CERTAIN) * (1.0 - self._draw())
        return self.wait_s(action)

    def note(self, action: str, reason: str, outcome: str, duration_s: float = 0.0) -> None:
        """Count a request that has ended."""
        account = self._account(action)
        account.calls[reason, outcome] += 1
        account.spent_s[outcome] = account.spent_s.get(outcome, 0.0) + duration_s

    def counts(self) -> Counter[tuple[str, str]]:
        """Requests that went out, by (action, outcome)."""
        found: Counter[tuple[str, str]] = Counter()
        for action, account in self._accounts.items():
            for (_, outcome), count in account.calls.items():
                if outcome != WITHHELD:
                    found[action, outcome] += count
        return found

    def view(self) -> tuple[ActionBudget, ...]:
        """All actions this node has asked for, by name."""
        return tuple(self._view(action) for action in sorted(self._accounts))

    def _view(self, action: str) -> ActionBudget:
        account = self._account(action)
        return ActionBudget(
            action=action,
            size_count=account.bucket.size_count,
            refill_per_s=account.bucket.refill_per_s,
            rate_per_s=account.rate_per_s,
            level_count=account.level,
            throttled_count=account.throttled_count,
            withheld_count=sum(count for (_, outcome), count in account.calls.items() if outcome == WITHHELD),
            waited_s=account.waited_s,
            calls=tuple(
                CallCount(reason=reason, outcome=outcome, count=count)
                for (reason, outcome), count in sorted(account.calls.items())
            ),
            spent_s=dict(account.spent_s),
        )

    def _account(self, action: str) -> _Account:
        now_s = self._clock()
        account = self._accounts.get(action)
        if account is None:
            bucket = published(action)
            account = _Account(bucket=bucket, level=bucket.size_count, since_s=now_s, rate_per_s=bucket.refill_per_s)
            self._accounts[action] = account
        account.refill(now_s)
        return account
