"""Pure: why something is as it is. From what the node's views say to a tree of steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from agent.errors import Cause
from api.event_schemas import EventView
from api.explain_schemas import ExplainView, StepState, StepView
from api.schemas import AllocationView, ConditionView, EniView, HealthView, PoolView, StageState, StartupView

_ORDER = (StepState.FAILING, StepState.WAITING, StepState.UNKNOWN, StepState.OK)
"""Worst first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TroubleFacts:
    """Something the pool cannot do at present. scope: what fails together, for example `subnet subnet-0a1b`."""

    scope: str
    since: datetime
    condition: ConditionView


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """An ADD under way. step: `lock`, `address` or `wire`. since: when it entered that step."""

    request_id: str
    container_id: str
    step: str
    since: datetime
    began: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFacts:
    """A host veth found in the kernel. addresses: those routed to it, as text."""

    container_id: str
    host_ifname: str
    addresses: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """What the node knows of a pod. failure: the latest failed ADD, or CHECK of what is not attached. kernel_error: why
    the kernel could not be asked.
    """

    namespace: str
    pod: str
    startup: StartupView
    pool: PoolView
    troubles: Sequence[TroubleFacts]
    requests: Sequence[RequestFacts]
    allocations: Sequence[AllocationView]
    links: Sequence[LinkFacts]
    kernel_error: str
    failure: EventView | None
    events: Sequence[EventView]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What the node knows of itself. kubernetes: why it does not know what Kubernetes should tell it."""

    startup: StartupView
    health: HealthView
    pool: PoolView
    enis: Sequence[EniView]
    troubles: Sequence[TroubleFacts]
    findings: Sequence[str]
    short_count: int
    kubernetes: ConditionView | None
    events: Sequence[EventView]


def explain_pod(facts: PodFacts) -> ExplainView:
    """The steps of a pod's start, as far as it has come."""
    failure = facts.failure
    if failure is not None and any(one.since > failure.at for one in facts.allocations):
        failure = None  # it was overcome
    steps = [_agent(facts.startup), _request(facts, failure), _address(facts, failure)]
    if facts.allocations or any(one.step == "wire" for one in facts.requests):
        steps.append(_kernel(facts))
    return _explanation(f"{facts.namespace}/{facts.pod}", steps, facts.events, well=steps[2].message)


def explain_node(facts: NodeFacts) -> ExplainView:
    """Whether this node can serve pods."""
    steps = [_agent(facts.startup), _loops(facts.health), _pool(facts), _enis(facts.enis), _agreement(facts)]
    steps.append(_kubernetes(facts.kubernetes))
    return _explanation("node", steps, facts.events, well=f"it can serve pods ({facts.pool.reason})")


def _explanation(subject: str, steps: Sequence[StepView], events: Sequence[EventView], *, well: str) -> ExplainView:
    """well: the answer when nothing is wrong."""
    state = _worst(step.state for step in steps)
    summary = well if state is StepState.OK else _summary(steps, state)
    return ExplainView(subject=subject, state=state, summary=summary, steps=list(steps), events=list(events))


def _worst(states: Iterable[StepState]) -> StepState:
    return min(states, key=_ORDER.index, default=StepState.OK)


def _summary(steps: Sequence[StepView], state: StepState) -> str:
    """The message of the deepest step that stands as the whole does: that is the reason."""
    step = next(step for step in steps if step.state is state)
    while deeper := next((one for one in step.because if one.state in {state, StepState.FAILING}), None):
        step = deeper
    return step.message


def _agent(startup: StartupView) -> StepView:
    stages = [
        StepView(
            step=f"stage {one.name}",
            state={StageState.DONE: StepState.OK, StageState.FAILED: StepState.FAILING}.get(
                one.state, StepState.WAITING
            ),
            message=f"{one.name}: {one.reason}" if one.reason else f"{one.name} is {one.state}",
            since=one.since,
            cause=_cause_in(one.reason),
        )
        for one in startup.stages
    ]
    if startup.ready:
        last = max((one.since for one in startup.stages if one.since), default=None)
        return StepView(step="agent", state=StepState.OK, message="the agent is ready", since=last)
    open_stages = sorted((one for one in stages if one.state is not StepState.OK), key=lambda one: _at(one.state))
    return StepView(
        step="agent",
        state=_worst(one.state for one in open_stages),
        message="the agent is starting",
        since=open_stages[0].since if open_stages else None,
        cause=Cause.AGENT_STARTING,
        because=open_stages,
    )


def _at(state: StepState) -> int:
    return _ORDER.index(state)


def _request(facts: PodFacts, failure: EventView | None) -> StepView:
    if facts.requests:
        newest = facts.requests[-1]
        message = f"the runtime asked for container {newest.container_id}; the request is in step {newest.step}"
        return StepView(
            step="request",
            state=StepState.OK,
            message=message,
            since=newest.began,
            evidence={"request_id": newest.request_id, "container_id": newest.container_id},
        )
    if failure is not None:
        return StepView(
            step="request",
            state=StepState.FAILING,
            message=f"the last {_text(failure, 'verb')} failed: {_text(failure, 'message')}",
            since=failure.at,
            cause=_text(failure, "cause"),
            evidence={"request_id": failure.request_id},
            remedy="",
            next_try_s=None,
        )
    held = facts.allocations
    return StepView(
        step="request",
        state=StepState.OK,
        message="the runtime asked, and was answered" if held else "the runtime has not asked",
        since=held[0].since if held else None,
    )


def _address(facts: PodFacts, failure: EventView | None) -> StepView:
    if facts.allocations:
        newest = facts.allocations[-1]
        addresses = ", ".join(str(address) for address in newest.addresses)
        return StepView(
            step="address",
            state=StepState.OK,
            message=f"{addresses} on {newest.eni_id or 'an ENI that EC2 does not list'}",
            since=newest.since,
            evidence={"eni": newest.eni_id, "host_ifname": newest.host_ifname},
        )
    because = [_trouble(one) for one in facts.troubles]
    waiting = next((one for one in facts.requests if one.step == "address"), None)
    if waiting is not None:
        free, waiters = facts.pool.counts.free_count, facts.pool.waiter_count
        return StepView(
            step="address",
            state=StepState.WAITING,
            message=f"no address is free yet; {waiters} requests wait",
            since=waiting.since,
            cause=because[0].cause if because else Cause.POOL_EMPTY,
            evidence={"waiting": waiters, "free": free, "cooling": facts.pool.counts.cooling_count},
            because=because,
        )
    if failure is not None:
        known = {"verb", "cause", "message", "remedy", "retry_after_s", "namespace", "pod", "container_id", "ifname"}
        retry = failure.fields.get("retry_after_s")
        return StepView(
            step="address",
            state=StepState.FAILING,
            message=_text(failure, "message"),
            since=failure.at,
            cause=_text(failure, "cause"),
            evidence={name: value for name, value in failure.fields.items() if name not in known},
            remedy=_text(failure, "remedy"),
            next_try_s=retry if isinstance(retry, int | float) else None,
            because=because,
        )
    return StepView(step="address", state=StepState.UNKNOWN, message="it holds no address", because=because)


def _kernel(facts: PodFacts) -> StepView:
    if facts.kernel_error:
        return StepView(step="kernel", state=StepState.UNKNOWN, message=facts.kernel_error)
    for held in facts.allocations:
        wanted = {str(address) for address in held.addresses}
        link = next((one for one in facts.links if one.container_id == held.container_id), None)
        if link is None:
            return _drifted(f"there is no link {held.host_ifname} for container {held.container_id}", held)
        if not wanted <= link.addresses:
            missing = ", ".join(sorted(wanted - link.addresses))
            return _drifted(f"no route in table pods leads to {missing} by {link.host_ifname}", held)
        return StepView(
            step="kernel",
            state=StepState.OK,
            message=f"{link.host_ifname} is there, with a route to {', '.join(sorted(link.addresses))}",
            since=held.since,
        )
    wiring = facts.requests[-1]
    return StepView(step="kernel", state=StepState.WAITING, message="the links are being made", since=wiring.since)


def _drifted(message: str, held: AllocationView) -> StepView:
    return StepView(
        step="kernel",
        state=StepState.FAILING,
        message=message,
        cause=Cause.ATTACHMENT_DRIFTED,
        evidence={"host_ifname": held.host_ifname, "container_id": held.container_id},
        remedy="delete the pod, so that its sandbox is made again",
    )


def _trouble(one: TroubleFacts) -> StepView:
    condition = one.condition
    return StepView(
        step=one.scope,
        state=StepState.FAILING,
        message=condition.message,
        since=one.since,
        cause=condition.cause,
        evidence=condition.evidence,
        remedy=condition.remedy,
        next_try_s=condition.retry_after_s,
    )


def _loops(health: HealthView) -> StepView:
    failing = [
        StepView(
            step=f"loop {one.name}",
            state=StepState.FAILING,
            message=f"loop {one.name}: {one.reason}",
            cause=_cause_in(one.reason),
        )
        for one in health.loops
        if not one.healthy
    ]
    message = "the agent's loops turn" if not failing else f"{len(failing)} of the agent's loops fail"
    return StepView(step="loops", state=_worst(one.state for one in failing), message=message, because=failing)


def _pool(facts: NodeFacts) -> StepView:
    because = [_trouble(one) for one in facts.troubles]
    counts = facts.pool.counts
    evidence: dict[str, str | int | float] = {
        "free": counts.free_count,
        "held": counts.held_count,
        "cooling": counts.cooling_count,
        "quarantined": counts.quarantined_count,
        "waiting": facts.pool.waiter_count,
        "short": facts.short_count,
    }
    state = StepState.OK
    if facts.pool.waiter_count or facts.short_count:
        state = StepState.WAITING
    if because:
        state = StepState.FAILING
    return StepView(step="pool", state=state, message=facts.pool.reason, evidence=evidence, because=because)


def _enis(enis: Sequence[EniView]) -> StepView:
    unready = [
        StepView(step=one.eni_id, state=StepState.WAITING, message=f"{one.eni_id} is not set up (yet)")
        for one in enis
        if one.managed and one.table_id is None and one.card == 0
    ]
    return StepView(
        step="enis",
        state=_worst(one.state for one in unready),
        message=f"{len(enis)} ENIs are attached" + (f", {len(unready)} not set up" if unready else ""),
        because=unready,
    )


def _agreement(facts: NodeFacts) -> StepView:
    quarantined = facts.pool.counts.quarantined_count
    if not quarantined:
        return StepView(step="agreement", state=StepState.OK, message="kernel and EC2 agree on every address")
    return StepView(
        step="agreement",
        state=StepState.FAILING,
        message=f"{quarantined} addresses are quarantined: kernel and EC2 disagree on them",
        evidence={"quarantined": quarantined},
        remedy="delete the pods that hold them; see /v1/events and /v1/pool for which",
        because=[StepView(step="finding", state=StepState.FAILING, message=one) for one in facts.findings],
    )


def _kubernetes(failure: ConditionView | None) -> StepView:
    if failure is None:
        return StepView(step="kubernetes", state=StepState.OK, message="nothing is missing that Kubernetes should say")
    return StepView(
        step="kubernetes",
        state=StepState.WAITING,
        message=f"{failure.message}; pods start all the same",
        cause=failure.cause,
        evidence=failure.evidence,
        remedy=failure.remedy,
        next_try_s=failure.retry_after_s,
    )


def _cause_in(reason: str) -> str | None:
    """The cause that an `AgentError` as text begins with."""
    first = reason.partition(":")[0]
    return first if first in set(Cause) else None


def _text(event: EventView, name: str) -> str:
    return str(event.fields.get(name, ""))
