"""Circuit breakers of the pool: one per scope that fails.

A breaker opens with a failure, for a time that doubles with each further one; then it is half-open, and the next try
decides. Success closes it. The first failure and the recovery are logged, not every try.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.errors import AgentError
from agent.events.model import Kind, Publish, Scalar, publish_nowhere
from agent.ipam.trouble import Trouble, longest_wait_s
from agent.runtime.log import event_logger

log = event_logger(__name__)

FORGET_S = 300.0
"""How long after its next try a failure is forgotten if nobody has tried: what failed is not wanted any more."""


class Breakers:
    """Every scope that fails.

    draw: random numbers in [0, 1). The wait is drawn from almost the whole span up to the longest one (full jitter), so
    that nodes which failed together do not come back together; a tenth of it is certain, so that no try is immediate.
    """

    def __init__(
        self, *, clock: Callable[[], float], draw: Callable[[], float], publish: Publish = publish_nowhere
    ) -> None:
        self._clock = clock
        self._draw = draw
        self._publish = publish
        self._troubles: dict[str, Trouble] = {}

    def trip(self, scope: str, error: AgentError) -> None:
        """Note a failure. The error's own `retry_after_s` (EC2's hint) is a lower bound of the wait."""
        now_s = self._clock()
        before = self._trouble(scope)
        failures = 1 if before is None else before.failure_count + 1
        wait_s = max(longest_wait_s(scope, error, failures) * (0.1 + 0.9 * self._draw()), error.retry_after_s or 0.0)
        self._troubles[scope] = Trouble(
            scope=scope,
            error=error,
            failure_count=failures,
            since_s=now_s if before is None else before.since_s,
            next_try_s=now_s + wait_s,
        )
        if before is None or before.error.cause is not error.cause:
            log.warning(
                "pool_degraded", scope=scope, cause=error.cause, error=error.message, next_try_s=round(wait_s, 3)
            )
            told: dict[str, Scalar] = {"scope": scope, "cause": str(error.cause), "message": error.message}
            self._publish(Kind.POOL_DEGRADED, **error.evidence | told, next_try_s=round(wait_s, 3))

    def reset(self, scope: str) -> None:
        """Note a success."""
        trouble = self._troubles.pop(scope, None)
        if trouble is not None:
            log.info("pool_recovered", scope=scope, cause=trouble.error.cause, failures=trouble.failure_count)
            self._publish(
                Kind.POOL_RECOVERED, scope=scope, cause=str(trouble.error.cause), failures=trouble.failure_count
            )

    def is_open(self, scope: str) -> bool:
        """No try before its time."""
        trouble = self._trouble(scope)
        return trouble is not None and self._clock() < trouble.next_try_s

    def is_half_open(self, scope: str) -> bool:
        """It failed last time and may be tried now."""
        return self.is_failing(scope) and not self.is_open(scope)

    def is_failing(self, scope: str) -> bool:
        """It failed last time."""
        return self._trouble(scope) is not None

    def troubles(self) -> tuple[Trouble, ...]:
        """All of them, the one that has lasted longest first."""
        known = [trouble for scope in tuple(self._troubles) if (trouble := self._trouble(scope))]
        return tuple(sorted(known, key=lambda trouble: trouble.since_s))

    def next_try_s(self) -> float | None:
        """When the next open breaker becomes half-open."""
        now_s = self._clock()
        return min((one.next_try_s for one in self._troubles.values() if one.next_try_s > now_s), default=None)

    def _trouble(self, scope: str) -> Trouble | None:
        trouble = self._troubles.get(scope)
        if trouble is not None and self._clock() >= trouble.next_try_s + FORGET_S:
            del self._troubles[scope]
            return None
        return trouble
