"""The warm pool: the loop that executes plans, and the queue of those who wait for an address.

`step` is one turn of a reconciler: start a look at EC2 if the last one is old, plan, start what the plan asks for, and
say when to look again. It waits for nothing: whatever ends is another turn. The pool alone retries what EC2 or the
kernel refused, when a breaker says so; a wake defeats no breaker, but free addresses are handed out whatever fails.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from agent.errors import AgentError, CloudFailed, TryAgain
from agent.events.model import Publish, publish_nowhere
from agent.ipam.account import account, demand_count
from agent.ipam.breakers import Breakers
from agent.ipam.demand import DemandHistory
from agent.ipam.executor import Executor
from agent.ipam.ledger import Ledger
from agent.ipam.lookout import Lookout
from agent.ipam.model import (
    Address,
    AddressView,
    AttachmentKey,
    EniUsage,
    Finding,
    Holder,
    InstanceLimits,
    Reservation,
    Subnet,
)
from agent.ipam.plan import Action, CreateEni, Observation, Plan, PoolPolicy, Surroundings
from agent.ipam.planner import plan
from agent.ipam.shortage import explain
from agent.ipam.trouble import CREATE_ENI, DESCRIBE_ENIS, GROW, SHRINK, SITE, Trouble
from agent.ipam.waiters import Waiter, Waiters
from agent.ports.cloud import Cloud
from agent.ports.datapath import Datapath


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolView:
    """The pool at one moment, for the API.

    reason: of the last plan, with its numbers.
    short_count: addresses the last plan was short of.
    failure: what has kept the pool from doing its work for the longest time, with the time to the next try; or None.
    troubles: everything that fails, what has lasted longest first.
    in_flight: what is being done, each with its reason.
    findings: the latest disagreements between kernel and EC2, oldest first.
    described_s_ago: age of the last describe of ENIs.
    subnets: those a new ENI may be made in, as last described; empty until one was needed.
    """

    enis: tuple[EniUsage, ...]
    addresses: tuple[AddressView, ...]
    waiter_count: int
    reason: str
    short_count: int
    failure: AgentError | None
    troubles: tuple[Trouble, ...]
    in_flight: tuple[Action, ...]
    findings: tuple[Finding, ...]
    described_s_ago: float
    subnets: tuple[Subnet, ...] = ()


class Pool:
    """The pool of one node. Make it right after a describe, with the ledger that came of it (`recovery.recover`).

    wake: asks the loop that runs `step` for a turn. clock: monotonic seconds. draw: random numbers in [0, 1).
    publish: told when something begins to fail or works again, and of findings.
    """

    def __init__(  # noqa: PLR0913 - the parts of a pool
        self,
        *,
        cloud: Cloud,
        datapath: Datapath,
        ledger: Ledger,
        limits: InstanceLimits,
        policy: PoolPolicy,
        clock: Callable[[], float],
        wake: Callable[[], None],
        draw: Callable[[], float] = random.random,
        publish: Publish = publish_nowhere,
    ) -> None:
        self._ledger = ledger
        self._limits = limits
        self._policy = policy
        self._clock = clock
        self._wake = wake
        self._surroundings = Surroundings()
        self._waiters = Waiters()
        self._demand = DemandHistory(max(policy.settle_addresses_s, policy.settle_enis_s), clock())
        self._breakers = Breakers(clock=clock, draw=draw, publish=publish)
        self._lookout = Lookout(cloud=cloud, ledger=ledger, breakers=self._breakers, clock=clock, publish=publish)
        self._executor = Executor(
            cloud=cloud,
            datapath=datapath,
            ledger=ledger,
            lookout=self._lookout,
            breakers=self._breakers,
            clock=clock,
            serve=self._serve,
            ended=wake,
        )
        self._latest = Plan(actions=(), reason="not planned yet", short_count=0, recheck_after_s=0.0)

    async def start(self) -> None:
        """Set up every ENI there is, at the same time, and return when each has been tried once.

        An ENI that cannot be set up is tried again by `step`; its addresses wait. Never raises an AgentError.
        """
        self._executor.set_up_enis()
        await self._executor.wait()

    async def reserve(self, holder: Holder, *, deadline_s: float, request_id: str) -> Reservation:
        """An address for `holder`: at once, or as soon as one is free, first come, first served.

        deadline_s: how long to wait, in seconds from now.
        request_id: goes into the log of whatever the pool does for it.
        Raises: TryAgain with the cause, its numbers and the time of the next try.
        Idempotent: a key that holds an address gets the same one. Cancel: leaves nothing behind.
        """
        waiter = Waiter(holder=holder, request_id=request_id)
        was_attached = self._ledger.attachment(holder.key) is not None
        self._waiters.join(waiter)
        self._serve()
        self._wake()
        try:
            async with asyncio.timeout(deadline_s):
                return await waiter.answer
        except TimeoutError:
            if waiter.is_served:
                return waiter.answer.result()
            raise self._explain() from None
        except asyncio.CancelledError:
            if waiter.is_served and not was_attached:
                self.release(holder.key, cooldown_s=0.0)
            raise
        finally:
            self._waiters.leave(waiter)
            self._wake()

    def release(self, key: AttachmentKey, *, cooldown_s: float) -> tuple[Address, ...]:
        """End an attachment; its addresses cool. Returns them: none for an unknown key.

        cooldown_s: 0 for addresses nobody has used: they are free at once.
        """
        released = self._ledger.release(key, now_s=self._clock(), cooldown_s=cooldown_s)
        self._serve()
        self._wake()
        return released

    def tell(self, surroundings: Surroundings) -> None:
        """What Kubernetes and the settings say of this node; call it whenever that changes."""
        self._surroundings = surroundings
        self._wake()

    async def step(self) -> float:
        """One turn of the loop; returns the seconds until the next one. Never raises an AgentError.

        Raises: the bug that ended an action.
        Cancel: at any time; actions in flight go on.
        """
        if self._executor.bug is not None:
            raise self._executor.bug
        if self._lookout.is_due:
            self._executor.look_at_enis()
        self._serve()
        self._executor.set_up_enis()
        if self._surroundings.is_provisioning:
            self._executor.align_enis(follow_groups=not self._policy.custom_networking)
        decided = self.plan_now()
        if self._lookout.wants_subnets(decided):
            self._executor.look_at_subnets()
        for action in decided.actions:
            # An ENI waits until it is known where it may go; the end of that look is a turn of its own.
            if not (
                isinstance(action, CreateEni) and self._lookout.is_list_old and self._executor.is_looking_at_subnets
            ):
                self._executor.start(action, request_ids=self._waiters.request_ids())
        self._latest = decided
        return self._rest_s()

    def plan_now(self) -> Plan:
        """What the planner would do now, and why: a dry run."""
        seen = self._observe()
        if self._breakers.is_open(CREATE_ENI):
            # To the planner, an instance that may not have a further ENI for now is one of a smaller type.
            on_card_count = sum(usage.eni.card == 0 for usage in seen.enis)
            seen = replace(seen, limits=replace(seen.limits, eni_count=min(seen.limits.eni_count, on_card_count)))
        return plan(seen, self._policy)

    def view(self) -> PoolView:
        """The pool as it is."""
        now_s = self._clock()
        self._ledger.cool(now_s)
        troubles = self.troubles()
        return PoolView(
            enis=self._ledger.enis(),
            addresses=self._ledger.addresses(),
            waiter_count=len(self._waiters),
            reason=self._latest.reason,
            short_count=self._latest.short_count,
            failure=as_failure(troubles[0], now_s) if troubles else None,
            troubles=troubles,
            in_flight=self._executor.in_flight,
            findings=tuple(self._lookout.findings),
            described_s_ago=now_s - self._lookout.described_s,
            subnets=self._lookout.subnets,
        )

    async def close(self) -> None:
        """Cancel what is in flight and wait for its end. What EC2 did meanwhile, the next start finds."""
        await self._executor.close()

    def _serve(self) -> None:
        now_s = self._clock()
        self._ledger.cool(now_s)
        self._waiters.serve(self._ledger, now_s)

    def _observe(self) -> Observation:
        now_s = self._clock()
        seen = Observation(
            now_s=now_s,
            limits=self._limits,
            enis=self._ledger.enis(),
            waiter_count=len(self._waiters),
            announced_count=len(self._surroundings.announced - self._served()),
            site=self._surroundings.site,
            is_schedulable=self._surroundings.is_schedulable,
            is_provisioning=self._surroundings.is_provisioning,
            max_pods=self._surroundings.max_pods,
            subnets=self._lookout.subnets,
            blocked_subnets=self._lookout.blocked_subnets,
            short_subnets=self._lookout.short_subnets,
            fragmented_subnets=self._lookout.fragmented_subnets,
            scarce_subnets=self._lookout.scarce_subnets,
            in_flight=self._executor.in_flight,
            setting_up=self._executor.setting_up,
            growth_held=self._breakers.is_open(GROW) or self._lookout.is_distrusted,
            shrink_held=self._breakers.is_open(SHRINK),
        )
        self._demand.note(demand_count(seen, self._policy), now_s)
        return replace(
            seen,
            peak_demand_count=self._demand.peak_count(now_s, self._policy.settle_addresses_s),
            peak_eni_demand_count=self._demand.peak_count(now_s, self._policy.settle_enis_s),
            quiet_s=self._demand.quiet_s(now_s),
            watched_s=self._demand.watched_s(now_s),
        )

    def troubles(self) -> tuple[Trouble, ...]:
        """Everything that fails, what has lasted longest first; last that nobody knows where a new ENI would go."""
        found, problem, now_s = tuple(self._breakers.troubles()), self._surroundings.site_problem, self._clock()
        if problem is None:
            return found
        return (*found, Trouble(scope=SITE, error=problem, failure_count=1, since_s=now_s, next_try_s=now_s))

    def exhausted(self) -> TryAgain | None:
        """Why pods wait and nothing is under way for them; None when none does, or something is.

        Pods are those of requests and those that are announced: the runtime asks, gives up, and asks again for one that
        has been waiting all the time. What is not planned for yet may still be served, unless the instance is full.
        """
        if self._executor.in_flight:
            return None
        sums = account(self._observe(), self._policy)
        lacks = sums.demand_count > sums.total_count
        in_vain = self._latest.short_count > 0 or sums.demand_count > sums.capacity_count
        return self._explain() if lacks and in_vain else None

    def _served(self) -> set[tuple[str, str]]:
        """Pods that hold an address or wait for one: they are counted already."""
        holders = [one.holder for one in self._ledger.attachments()] + self._waiters.holders()
        return {(one.namespace, one.pod) for one in holders}

    def _explain(self) -> TryAgain:
        return explain(self._observe(), self._policy, self.troubles(), self._ledger.next_cooled_s())

    def _rest_s(self) -> float:
        now_s = self._clock()
        asked = self._executor.is_looking_at_enis
        times_s = [
            now_s + self._latest.recheck_after_s,
            self._breakers.next_try_s(),
            self._ledger.next_cooled_s(),
            None if asked or self._breakers.is_open(DESCRIBE_ENIS) else self._lookout.describe_at_s,
        ]
        return max(0.0, min(time_s for time_s in times_s if time_s is not None) - now_s)


def as_failure(trouble: Trouble, now_s: float) -> AgentError:
    """A trouble as whoever asks reads it: with its scope, its count, and the seconds to the next try."""
    return CloudFailed(
        trouble.error.cause,
        trouble.error.message,
        evidence={**trouble.error.evidence, "scope": trouble.scope, "failures": trouble.failure_count},
        remedy=trouble.error.remedy,
        retry_after_s=max(0.0, trouble.next_try_s - now_s),
    )
