"""What operators ask of the node, as a protocol. A part of `api.service.NodeService`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from api.adoption_schemas import AdoptionView
from api.doctor_schemas import DoctorView
from api.event_schemas import EventView, HistoryView
from api.explain_schemas import ExplainView, TraceView
from api.log_schemas import LogLevel, LogView
from api.node_schemas import BudgetView, ConfigView, PlanView
from api.schemas import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class EventBatch:
    """Events in order. missed: some after the asked id are not known any more."""

    events: Sequence[EventView]
    missed: bool


class Operators(Protocol):
    """Methods raise `api.problems.Problem` for expected failures."""

    def plan(self) -> PlanView:
        """What the pool would do now. Problem 503 while the agent starts."""
        ...

    def config(self) -> ConfigView:
        """The effective settings, without secrets."""
        ...

    def budget(self) -> BudgetView:
        """Requests to EC2 so far."""
        ...

    async def doctor(self) -> DoctorView:
        """Read-only checks of node, EC2, IMDS and Kubernetes. Some seconds."""
        ...

    async def adoption(self) -> AdoptionView:
        """What taking the node over from aws-node would do. Problem 503 while the agent starts."""
        ...

    async def explain_pod(self, namespace: str, pod: str) -> ExplainView:
        """Why a pod has, or does not have, its address. Problem 404 when this node knows nothing of it."""
        ...

    def explain_node(self) -> ExplainView:
        """Whether this node can serve pods, and why not."""
        ...

    async def trace(self, namespace: str, pod: str, to: Address) -> TraceView:
        """Where a packet of a pod to an address goes. Problem 404 for a pod that is not attached here."""
        ...

    async def history(self, address: Address) -> HistoryView:
        """Who held an address, and when."""
        ...

    def newest_event_id(self) -> int:
        """The id of the last event."""
        ...

    def events_after(self, last_id: int) -> EventBatch:
        """The next events after an id, some hundred at most; empty when there are none."""
        ...

    async def next_events(self, last_id: int) -> EventBatch | None:
        """As `events_after`, but waits for the first one; None when the agent stops."""
        ...

    def logs(self, *, namespace: str | None, pod: str | None, request_id: str | None, limit: int) -> LogView:
        """The latest log lines in memory about a pod or a request."""
        ...

    def log_level(self) -> LogLevel:
        """The level in force."""
        ...

    def set_log_level(self, level: LogLevel) -> LogLevel:
        """Change it now, until the agent stops."""
        ...

    def metrics(self) -> bytes:
        """Prometheus' text format, version 0.0.4."""
        ...
