"""Why there is no address: one cause with its numbers, for whoever waited in vain. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from agent.errors import Cause, TryAgain
from agent.ipam.account import Account, account, eni_limit
from agent.ipam.plan import CreateEni, Observation, PoolPolicy
from agent.ipam.trouble import DESCRIBE_ENIS, DESCRIBE_SUBNETS, SHRINK, SITE, Trouble, align_scope

_BIGGER = "run fewer pods on this node, raise MAX_ENI if it is set, or use a larger instance type"


def explain(
    seen: Observation, policy: PoolPolicy, troubles: Sequence[Trouble], next_cooled_s: float | None
) -> TryAgain:
    """The error for a request whose deadline is over.

    In this order: the instance is full (and then for want of prefixes, an ENI on its way out, addresses cooling, or
    simply full), nobody may change what the node has, EC2 or the kernel refuses something the request needs, an ENI is
    on its way, or growth is.
    """
    sums = account(seen, policy)
    evidence = _evidence(seen, policy, sums)
    # A subnet without prefixes still gives single addresses: it blocks when there is no slot for more of them.
    fragmented = next((one for one in troubles if one.error.cause is Cause.SUBNET_FRAGMENTED), None)
    if sums.demand_count > sums.capacity_count and fragmented is not None:
        return _refused(seen, fragmented, evidence)
    if sums.demand_count > sums.capacity_count:
        return _full(seen, sums, evidence, next_cooled_s)
    siteless = next((one for one in troubles if one.scope == SITE), None)
    if siteless is not None:
        return _refused(seen, siteless, evidence)
    held = _held_back(seen, policy)
    if held is not None:
        cause, why, remedy = held
        # Somebody may change that at any time; what cools comes by itself.
        retry_after_s = 30.0 if next_cooled_s is None else min(30.0, max(1.0, next_cooled_s - seen.now_s))
        message = f"no address is free, and {why}"
        return TryAgain(cause, message, evidence=evidence, remedy=remedy, retry_after_s=retry_after_s)
    # What growth itself met comes first; a describe that fails only delays it.
    aside = {SHRINK, DESCRIBE_SUBNETS, *(align_scope(usage.eni.eni_id) for usage in seen.enis)}
    blocking = [one for one in troubles if one.scope not in aside and one is not fragmented]
    trouble = min(blocking, key=lambda one: one.scope == DESCRIBE_ENIS, default=None)
    if trouble is not None:
        return _refused(seen, trouble, evidence)
    if any(isinstance(action, CreateEni) for action in seen.in_flight) or not all(eni.ready for eni in sums.enis):
        return TryAgain(
            Cause.ENI_ATTACHING, "an ENI is being attached and set up", evidence=evidence, retry_after_s=5.0
        )
    return TryAgain(
        Cause.POOL_EMPTY, "no address is free yet, and more are on their way", evidence=evidence, retry_after_s=1.0
    )


def _full(
    seen: Observation, sums: Account, evidence: dict[str, str | int | float], next_cooled_s: float | None
) -> TryAgain:
    """The instance has no room for what is asked of it: for now, or at all."""
    leaving = [eni.eni.eni_id for eni in seen.enis if eni.leaving]
    if leaving:
        return TryAgain(
            Cause.ENI_DETACHING,
            f"every address is in use, and {', '.join(leaving)} must be detached before another ENI takes its place",
            evidence={**evidence, "detaching": len(leaving)},
            retry_after_s=5.0,
        )
    if next_cooled_s is not None:
        return TryAgain(
            Cause.POOL_EMPTY_COOLING,
            "every address this instance can have is in use or cooling",
            evidence=evidence,
            remedy=_BIGGER,
            retry_after_s=max(1.0, next_cooled_s - seen.now_s),
        )
    return TryAgain(
        Cause.INSTANCE_LIMIT,
        f"all {sums.capacity_count} addresses this instance can have are in use",
        evidence=evidence,
        remedy=_BIGGER,
        retry_after_s=30.0,
    )


def _held_back(seen: Observation, policy: PoolPolicy) -> tuple[Cause, str, str] | None:
    """Why the planner asks EC2 for nothing, and what a person can do about it; None when it may."""
    if not seen.is_provisioning:
        why = "somebody else provisions this node's ENIs and addresses"
        return Cause.PROVISIONED_ELSEWHERE, why, "give the instance more addresses"
    if not seen.is_schedulable:
        remedy = "uncordon it, or set AWS_MANAGE_ENIS_NON_SCHEDULABLE=true"
        return Cause.NODE_CORDONED, "the node is cordoned, so that nothing is asked of EC2 for it", remedy
    if policy.custom_networking and seen.site is None:
        remedy = "create the ENIConfig that the node's label or annotation names"
        return Cause.CUSTOM_NETWORKING_UNKNOWN, "no ENIConfig is known for this node", remedy
    return None


def _refused(seen: Observation, trouble: Trouble, evidence: dict[str, str | int | float]) -> TryAgain:
    error = trouble.error
    return TryAgain(
        error.cause,
        f"no address is free, and the pool cannot grow: {error.message}",
        evidence={**evidence, **error.evidence, "failures": trouble.failure_count},
        remedy=error.remedy,
        retry_after_s=max(1.0, trouble.next_try_s - seen.now_s),
    )


def _evidence(seen: Observation, policy: PoolPolicy, sums: Account) -> dict[str, str | int | float]:
    return {
        "waiting": seen.waiter_count,
        "held": sum(eni.held_count for eni in sums.enis),
        "cooling": sum(eni.cooling_count for eni in sums.enis),
        "quarantined": sum(eni.quarantined_count for eni in sums.enis),
        "free": sum(len(eni.free) for eni in sums.enis),
        "capacity": sums.capacity_count,
        "enis": len(seen.enis),
        "eni_limit": eni_limit(seen.limits, policy),
    }
