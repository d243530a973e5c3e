"""What operators ask: `api.operators.Operators` for a `Node`."""

from __future__ import annotations

import asyncio
import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import TYPE_CHECKING

from agent.errors import AgentError
from agent.events.history import tenures
from agent.events.journal import Journal
from agent.events.model import Event, Kind
from agent.events.store import EventStore
from agent.ipam.model import Attachment
from agent.ipam.pool import as_failure
from agent.node import Node, Parts
from agent.ports.datapath import PathSeen
from agent.runtime import log
from agent.service import explain
from agent.service.configuration import config_view
from agent.service.metrics import Metrics
from agent.service.story import select
from agent.service.telling import action_view, as_problem, budget_view, event_view, is_about, verdict_of
from agent.service.views import condition
from agent.settings import Settings
from api.adoption_schemas import AdoptionView
from api.doctor_schemas import DoctorView
from api.event_schemas import HistoryView, TenureView
from api.explain_schemas import ExplainView, TraceView
from api.log_schemas import LogLevel, LogLevelName, LogView
from api.node_schemas import BudgetView, ConfigView, PlanView
from api.operators import EventBatch
from api.problems import Problem
from api.schemas import Address, AllocationView, EniView, HealthView, PoolView, StartupView

if TYPE_CHECKING:
    from agent.service.examination import Examiner

SHOWN_EVENT_COUNT = 20
"""Events in an explanation."""
WALL_STEP = timedelta(seconds=0.5)
"""By how much the wall clock must have been set before times that were told already change."""


_BROADCAST = IPv4Address("255.255.255.255")


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """What answering takes beside the node. store: None when events are not written down. since: when this agent
    began."""

    chosen: Settings
    version: str
    journal: Journal
    store: EventStore | None
    metrics: Metrics
    since: datetime


class AgentOperators(ABC):
    """The other half of `AgentService`, which has the views used here."""

    def __init__(self, node: Node, desk: Desk) -> None:
        self._node = node
        self._desk = desk
        self._wall_offset = datetime.min.replace(tzinfo=UTC)
        self._examiner: Examiner | None = None

    @abstractmethod
    def pool(self) -> PoolView: ...

    @abstractmethod
    def enis(self) -> list[EniView]: ...

    @abstractmethod
    def allocations(
        self, *, namespace: str | None = None, pod: str | None = None, address: Address | None = None
    ) -> list[AllocationView]: ...

    @abstractmethod
    def health(self) -> HealthView: ...

    @abstractmethod
    def startup(self) -> StartupView: ...

    # ---- asking

    def plan(self) -> PlanView:
        """See `Pool.plan_now`."""
        parts = self._parts()
        decided = parts.pool.plan_now()
        return PlanView(
            actions=[action_view(one) for one in decided.actions],
            reason=decided.reason,
            short_count=decided.short_count,
            recheck_after_s=None if math.isinf(decided.recheck_after_s) else max(0.0, decided.recheck_after_s),
            in_flight=[action_view(one) for one in parts.pool.view().in_flight],
        )

    def config(self) -> ConfigView:
        """See `configuration.config_view`."""
        return config_view(self._desk.chosen, self._desk.version)

    def budget(self) -> BudgetView:
        """Counts of the EC2 adapter."""
        return budget_view(self._node.budget(), self._desk.since)

    async def doctor(self) -> DoctorView:
        """See `examination`."""
        if self._examiner is None:
            from agent.service.examination import Examiner  # noqa: PLC0415 - rarely asked for

            self._examiner = Examiner(self._node, self._desk.chosen)
        return await self._examiner.examine()

    async def adoption(self) -> AdoptionView:
        """See `taking_over`."""
        from agent.service.taking_over import dry_run  # noqa: PLC0415 - rarely asked for

        try:
            return await dry_run(self._node)
        except AgentError as exc:
            raise as_problem(exc) from exc

    def metrics(self) -> bytes:
        """See `Metrics`."""
        return self._desk.metrics.render()

    # ---- understanding

    async def explain_pod(self, namespace: str, pod: str) -> ExplainView:
        """See `explain.explain_pod`."""
        parts = self._node.parts
        events = [one for one in self._desk.journal.events() if is_about(one, namespace, pod)]
        requests = [] if parts is None else self._requests(parts, namespace, pod)
        allocations = self.allocations(namespace=namespace, pod=pod)
        # Of what is attached, the kernel is asked anew: a CHECK that failed may be past.
        verbs = {"ADD"} if allocations else {"ADD", "CHECK"}
        failures = [one for one in events if one.kind is Kind.CNI_FAILED and one.fields.get("verb") in verbs]
        if parts is not None and not (events or requests or allocations):
            words = f"this node has neither an attachment nor a request of {namespace}/{pod}, and remembers none"
            raise Problem(404, "Unknown pod", words)
        links: list[explain.LinkFacts] = []
        kernel_error = ""
        if allocations:
            try:
                links = await self._links(namespace, pod)
            except AgentError as exc:
                kernel_error = str(exc)
        return explain.explain_pod(
            explain.PodFacts(
                namespace=namespace,
                pod=pod,
                startup=self.startup(),
                pool=self.pool(),
                troubles=self._troubles(),
                requests=requests,
                allocations=allocations,
                links=links,
                kernel_error=kernel_error,
                failure=event_view(failures[-1]) if failures else None,
                events=[event_view(one) for one in events[-SHOWN_EVENT_COUNT:]],
            )
        )

    def explain_node(self) -> ExplainView:
        """See `explain.explain_node`."""
        parts = self._node.parts
        view = None if parts is None else parts.pool.view()
        failure = self._node.news.cluster_failure()
        events = [one for one in self._desk.journal.events() if one.kind is not Kind.ADDRESS]
        return explain.explain_node(
            explain.NodeFacts(
                startup=self.startup(),
                health=self.health(),
                pool=self.pool(),
                enis=self.enis(),
                troubles=self._troubles(),
                findings=[] if view is None else [one.message for one in view.findings],
                short_count=0 if view is None else view.short_count,
                kubernetes=None if failure is None else condition(failure),
                events=[event_view(one) for one in events[-SHOWN_EVENT_COUNT:]],
            )
        )

    async def trace(self, namespace: str, pod: str, to: Address) -> TraceView:
        """See `KernelDatapath.trace`."""
        parts = self._parts()
        if to.is_unspecified or to.is_multicast or to.is_loopback or to == _BROADCAST:
            raise Problem(422, "Not traced", f"{to} is no unicast address that a pod's packet could leave with")
        held = self._attachment(parts, namespace, pod)
        source = next((one for one in held.addresses if one.version == to.version), None)
        if source is None:
            raise Problem(422, "No such address family", f"{namespace}/{pod} has no IPv{to.version} address")
        host_ifname = self._node.host_ifname(held.holder)
        try:
            seen = await self._node.datapath.trace(host_ifname, source, to)
        except AgentError as exc:
            raise as_problem(exc) from exc
        reaches = self._reaches(parts, to, seen)
        eni_id = next(
            (one.eni.eni_id for one in parts.ledger.enis() if seen.out_mac and one.eni.mac == seen.out_mac), ""
        )
        return TraceView(
            namespace=namespace,
            pod=pod,
            source=source,
            destination=to,
            reaches=reaches,
            verdict=verdict_of(seen, reaches, eni_id),
            host_ifname=host_ifname,
            mark=seen.mark,
            mark_reasons=list(seen.mark_reasons),
            sets=list(seen.inside_sets),
            rule_pref=seen.rule_pref,
            rule=seen.rule,
            table_id=seen.table_id,
            route_type=seen.route_type,
            out_ifname=seen.out_ifname,
            eni_id=eni_id,
            gateway=seen.gateway,
            translated_to=seen.snat_address,
            refusal=seen.refusal,
        )

    async def history(self, address: Address) -> HistoryView:
        """From the journal and, when there is one, the store."""
        events: dict[int, Event] = {}
        if self._desk.store is not None:
            store, text = self._desk.store, f'"{address}"'
            try:
                written = await asyncio.to_thread(lambda: list(store.events(lambda line: text in line)))
            except OSError as exc:
                raise Problem(500, "Events unreadable", str(exc)) from exc
            events.update((one.id, one) for one in written)
        kept = self._desk.journal.events()
        events.update((one.id, one) for one in kept)
        ordered = [events[number] for number in sorted(events)]
        return HistoryView(
            address=address,
            remembered_since=ordered[0].at if ordered else None,
            tenures=[
                TenureView(
                    namespace=one.namespace,
                    pod=one.pod,
                    container_id=one.container_id,
                    ifname=one.ifname,
                    eni_id=one.eni,
                    since=one.since,
                    until=one.until,
                    known_end=one.known_end,
                )
                for one in tenures(ordered, str(address))
            ],
        )

    # ---- events

    def newest_event_id(self) -> int:
        """See `Journal.newest_id`."""
        return self._desk.journal.newest_id

    def events_after(self, last_id: int) -> EventBatch:
        """See `Journal.after`."""
        batch = self._desk.journal.after(last_id)
        return EventBatch(events=[event_view(one) for one in batch.events], missed=batch.missed)

    async def next_events(self, last_id: int) -> EventBatch | None:
        """See `Journal.next`."""
        waits = [
            asyncio.ensure_future(self._desk.journal.next(last_id)),
            asyncio.ensure_future(self._node.stop.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return None if self._node.stop.is_set() else self.events_after(last_id)

    # ---- logs

    def logs(self, *, namespace: str | None, pod: str | None, request_id: str | None, limit: int) -> LogView:
        """See `story.select`."""
        lines = [json.loads(line) for line in log.recent.lines()]
        chosen = select(lines, namespace=namespace, pod=pod, request_id=request_id)
        return LogView(
            lines=chosen[-limit:],  # type: ignore[arg-type]  # validated by the model
            remembered_since=lines[0]["ts"] if lines else None,
        )

    def log_level(self) -> LogLevel:
        """The root logger's; `fatal` is told as error."""
        level = log.current_level()
        return LogLevel(level=LogLevelName(level if level in set(LogLevelName) else LogLevelName.ERROR))

    def set_log_level(self, level: LogLevel) -> LogLevel:
        """See `log.set_level`."""
        log.set_level(level.level)
        return self.log_level()

    # ---- inside

    def _parts(self) -> Parts:
        if self._node.parts is None:
            waits_for = self._node.startup.waits_for()
            raise Problem(503, "Agent starting", waits_for, {"cause": "agent_starting", "retry_after_s": 1.0})
        return self._node.parts

    def wall(self, at_s: float) -> datetime:
        """A moment on the monotonic clock as wall time: the same at every call, unless the wall clock was set."""
        offset = datetime.now(tz=UTC) - timedelta(seconds=self._node.clock())
        if abs(offset - self._wall_offset) > WALL_STEP:
            self._wall_offset = offset
        return self._wall_offset + timedelta(seconds=at_s)

    def _attachment(self, parts: Parts, namespace: str, pod: str) -> Attachment:
        for held in reversed(parts.ledger.attachments()):
            if (held.holder.namespace, held.holder.pod) == (namespace, pod):
                return held
        raise Problem(404, "Unknown pod", f"{namespace}/{pod} is not attached on this node")

    def _troubles(self) -> list[explain.TroubleFacts]:
        parts = self._node.parts
        if parts is None:
            return []
        return [
            explain.TroubleFacts(
                scope=one.scope,
                since=self.wall(one.since_s),
                condition=condition(as_failure(one, self._node.clock())),
            )
            for one in parts.pool.view().troubles
        ]

    def _requests(self, parts: Parts, namespace: str, pod: str) -> list[explain.RequestFacts]:
        return [
            explain.RequestFacts(
                request_id=one.request_id,
                container_id=one.holder.key.container_id,
                step=one.step,
                since=self.wall(one.since_s),
                began=self.wall(one.began_s),
            )
            for one in parts.attachments.under_way()
            if (one.holder.namespace, one.holder.pod) == (namespace, pod)
        ]

    async def _links(self, namespace: str, pod: str) -> list[explain.LinkFacts]:
        seen = await self._node.datapath.observe()
        return [
            explain.LinkFacts(
                container_id=one.holder.key.container_id,
                host_ifname=one.host_ifname,
                addresses=frozenset(str(address) for address in one.addresses),
            )
            for one in seen.attachments
            if (one.holder.namespace, one.holder.pod) == (namespace, pod)
        ]

    def _reaches(self, parts: Parts, to: Address, seen: PathSeen) -> str:
        if any(to in held.addresses for held in parts.ledger.attachments()):
            return "pod"
        if seen.route_type == "local":
            return "node"
        return "vpc" if "vpc4" in seen.inside_sets else "outside"
