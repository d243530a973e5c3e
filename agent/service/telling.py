"""Pure: plans, events, paths and failures as the API tells them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from datetime import datetime

from agent.cloud.budget import WITHHELD, ActionBudget
from agent.errors import AgentError, InvalidRequest
from agent.events.model import Event
from agent.ipam.plan import Action
from agent.ports.datapath import PathSeen
from api.event_schemas import EventView
from api.node_schemas import ActionBudgetView, ActionView, BudgetView, CallCount
from api.problems import Problem


def as_problem(error: AgentError) -> Problem:
    """An expected failure outside `/v1/cni`."""
    extensions = {
        "cause": str(error.cause),
        "evidence": error.evidence,
        "remedy": error.remedy,
        "retry_after_s": error.retry_after_s,
    }
    status = 404 if isinstance(error, InvalidRequest) else 503
    return Problem(status, str(error.cause).replace("_", " ").capitalize(), error.message, extensions)


def event_view(event: Event) -> EventView:
    """An event of the journal."""
    return EventView(id=event.id, at=event.at, kind=event.kind, request_id=event.request_id, fields=dict(event.fields))


def is_about(event: Event, namespace: str, pod: str) -> bool:
    """Whether an event names a pod."""
    return event.fields.get("pod") == pod and event.fields.get("namespace") == namespace


def budget_view(budget: Sequence[ActionBudget], since: datetime) -> BudgetView:
    """Every action that was used."""
    return BudgetView(
        since=since,
        call_count=sum(call.count for one in budget for call in one.calls if call.outcome != WITHHELD),
        throttled_count=sum(one.throttled_count for one in budget),
        actions=[
            ActionBudgetView(
                action=one.action,
                bucket_size=one.size_count,
                refill_per_s=one.refill_per_s,
                rate_per_s=one.rate_per_s,
                level=one.level_count,
                throttled_count=one.throttled_count,
                withheld_count=one.withheld_count,
                waited_s=one.waited_s,
                calls=[CallCount(reason=call.reason, outcome=call.outcome, count=call.count) for call in one.calls],
            )
            for one in sorted(budget, key=lambda one: one.action)
        ],
    )


def action_view(action: Action) -> ActionView:
    """Any action of a plan, by the names of its class and fields."""
    fields = {one.name: getattr(action, one.name) for one in dataclasses.fields(action) if one.name != "reason"}
    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(action).__name__).lower()
    return ActionView(
        action=name, reason=action.reason, arguments={key: _argument(value) for key, value in fields.items()}
    )


def _argument(value: object) -> str | int | list[str] | None:
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [str(getattr(one, "network", one)) for one in value]
    return str(value)


def verdict_of(seen: PathSeen, reaches: str, eni_id: str) -> str:
    """A path in one sentence."""
    if seen.refusal:
        return f"the kernel has no route ({seen.refusal}): the packet is dropped here"
    if reaches == "node":
        return "delivered to this node itself"
    if reaches == "pod":
        return f"handed to the pod by {seen.out_ifname}, without leaving the node"
    source = f" as {seen.snat_address}" if seen.snat_address else " with the pod's own address"
    gateway = f" to gateway {seen.gateway}" if seen.gateway else ""
    eni = f" ({eni_id})" if eni_id else ""
    return f"leaves by {seen.out_ifname}{eni}{gateway}{source}"
