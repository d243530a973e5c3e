"""How many addresses and ENIs to hold: `plan`, a pure function.

EC2 grants blocks: a secondary address, or with prefix delegation a /28 of 16 addresses; each takes a slot of an ENI.
The arithmetic is in addresses for both. Demand is what is busy (held, cooling, quarantined), waiting, or announced.
What is needed for a demand:

- with an IP target: demand + WARM_IP_TARGET, and at least MINIMUM_IP_TARGET;
- without, with prefixes: demand + 16 x WARM_PREFIX_TARGET, and at least one free address;
- without, with secondary addresses: whole ENIs, as many as leave WARM_ENI_TARGET ENIs' worth of addresses free.

Growth (`growing`) happens as soon as less than that is there, on all ENIs at once. Where the target is a number of
addresses it comes in quanta of `growth_quantum` instead of single addresses; on an m5.4xlarge (29 slots per ENI,
quantum 10) with targets 5 and 10, 50 pods that come one by one cost four AssignPrivateIpAddresses and one new ENI: 7
calls.

Nothing shrinks (`shrinking`) before it has been idle for the settle time, nor within that time of the agent's start.
Two numbers say so: the peak of demand during that time, which the pool keeps enough for, and whether demand rose during
it; while it did, the pool may hold one quantum more.
So growth never undoes shrinking: it ends less than one quantum or block above what is needed, which shrinking leaves
alone, and shrinking takes only blocks that are surplus as a whole, so that it ends at what the peak needs or above.
"""

from __future__ import annotations

from agent.ipam.account import Account, account, strays
from agent.ipam.growing import grow
from agent.ipam.plan import Action, Observation, Plan, PoolPolicy
from agent.ipam.shrinking import shrink

_RECHECK_SURPLUS_S = 30.0
_RECHECK_SETTLED_S = 300.0


def plan(seen: Observation, policy: PoolPolicy) -> Plan:
    """Decide what to ask EC2 for, or to give back to it, now."""
    sums = account(seen, policy)
    actions, why = _decide(seen, policy, sums)
    return Plan(
        actions=actions,
        reason=why,
        short_count=sums.short_count,
        recheck_after_s=_RECHECK_SETTLED_S if _is_settled(seen, policy, sums) else _recheck_surplus_s(policy),
    )


def _decide(seen: Observation, policy: PoolPolicy, sums: Account) -> tuple[tuple[Action, ...], str]:
    short = sums.short_count
    numbers = f"demand {sums.demand_count}, need {sums.needed_count}, have {sums.total_count - sums.coming_count}"
    if sums.coming_count:
        numbers += f" and {sums.coming_count} coming"
    if short:
        numbers += f": {short} short"
    if not seen.is_provisioning:
        return (), f"{numbers}; this node's ENIs and addresses are provisioned by somebody else"
    if not seen.is_schedulable:
        return (), f"{numbers}; the node is cordoned, so that nothing is attached and nothing detached"
    if short and seen.growth_held:
        return (), f"{numbers}; EC2 refused a moment ago"
    if short:
        actions = grow(seen, policy, sums, numbers)
        if actions:
            return actions, numbers
        if policy.custom_networking and seen.site is None:
            return (), f"{numbers}; no ENIConfig is known for this node, so that no ENI can be made"
        return (), f"{numbers}; nothing can be asked for now"
    if seen.waiter_count or sums.coming_count or seen.shrink_held:
        return (), numbers
    return shrink(seen, policy, sums, numbers)


def _recheck_surplus_s(policy: PoolPolicy) -> float:
    """No settle time ends long before somebody looks."""
    return max(1.0, min(_RECHECK_SURPLUS_S, policy.settle_addresses_s, policy.settle_enis_s))


def _is_settled(seen: Observation, policy: PoolPolicy, sums: Account) -> bool:
    """Nothing will change by time alone."""
    return (
        0 <= sums.total_count - sums.needed_count < policy.kind.address_count
        and not seen.in_flight
        and all(eni.ready for eni in sums.enis)
        and not any(strays(seen, policy, eni) for eni in seen.enis if eni.serves_pods)
    )
