"""The operators' half of a scripted node: fixed answers, a real journal."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from ipaddress import IPv4Address

from agent.events.journal import Journal
from agent.service.telling import event_view
from api.adoption_schemas import AdoptionView
from api.doctor_schemas import CheckView, DoctorView, VerdictName
from api.event_schemas import HistoryView, TenureView
from api.explain_schemas import ExplainView, StepState, StepView, TraceView
from api.log_schemas import LogLevel, LogLevelName, LogLine, LogView
from api.node_schemas import ActionBudgetView, ActionView, BudgetView, CallCount, ConfigView, PlanView, SettingView
from api.operators import EventBatch
from api.problems import Problem
from api.schemas import Address

AT = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
POD = IPv4Address("10.0.1.9")


class ScriptedOperators:
    """Knows one pod, default/web-0, which is well, and one that is not, default/web-1."""

    def __init__(self) -> None:
        self.journal = Journal(request_id=lambda: "", now=lambda: AT, capacity=64)
        self.level = LogLevelName.INFO
        self.log_questions: list[tuple[str | None, str | None, str | None, int]] = []
        self.stopping = asyncio.Event()

    def plan(self) -> PlanView:
        action = ActionView(action="assign_blocks", reason="short of 3", arguments={"eni_id": "eni-1", "count": 3})
        return PlanView(actions=[action], reason="grow", short_count=3, recheck_after_s=None, in_flight=[])

    def config(self) -> ConfigView:
        setting = SettingView(
            name="WARM_IP_TARGET",
            value=5,
            default="0",
            provenance="environment",
            allowed="an integer",
            description="How many free addresses to hold.",
        )
        return ConfigView(version="dev", settings=[setting], notices=[])

    def budget(self) -> BudgetView:
        action = ActionBudgetView(
            action="DescribeNetworkInterfaces",
            bucket_size=100,
            refill_per_s=20,
            rate_per_s=20,
            level=99,
            throttled_count=0,
            withheld_count=0,
            waited_s=0,
            calls=[CallCount(reason="start", outcome="ok", count=4)],
        )
        return BudgetView(since=AT, call_count=4, throttled_count=0, actions=[action])

    async def explain_pod(self, namespace: str, pod: str) -> ExplainView:
        if (namespace, pod) == ("default", "web-0"):
            step = StepView(step="address", state=StepState.OK, message="10.0.1.9 on eni-1", since=AT)
            return ExplainView(
                subject="default/web-0", state=StepState.OK, summary=step.message, steps=[step], events=[]
            )
        if (namespace, pod) == ("default", "web-1"):
            reason = StepView(
                step="subnet subnet-0a1b",
                state=StepState.FAILING,
                message="subnet-0a1b has 0 free addresses",
                since=AT,
                cause="subnet_exhausted",
                evidence={"free": 0},
                remedy="free addresses in the subnet",
                next_try_s=61.5,
            )
            step = StepView(
                step="address", state=StepState.WAITING, message="no address is free", since=AT, because=[reason]
            )
            return ExplainView(
                subject="default/web-1", state=StepState.WAITING, summary=reason.message, steps=[step], events=[]
            )
        raise Problem(404, "Unknown pod", f"{namespace}/{pod} is not known")

    async def adoption(self) -> AdoptionView:
        return AdoptionView(
            possible=False,
            refusals=["aws-node still runs"],
            pod_count=0,
            eni_count=0,
            script="",
            next_steps=["python -m agent adopt --apply"],
        )

    async def doctor(self) -> DoctorView:
        checks = [
            CheckView(
                name="ip_forward",
                title="The kernel forwards packets between pods and ENIs",
                verdict=VerdictName.OK,
                message="net.ipv4.ip_forward is 1",
                fix="",
                evidence={},
            ),
            CheckView(
                name="iam",
                title="The role allows every EC2 action that is called (asked by DryRun)",
                verdict=VerdictName.FAILING,
                message="the role may not AssignPrivateIpAddresses",
                fix="allow ec2:AssignPrivateIpAddresses (deploy/iam/policy.json)",
                evidence={"denied": 1},
            ),
        ]
        return DoctorView(verdict=VerdictName.FAILING, checks=checks)

    def explain_node(self) -> ExplainView:
        step = StepView(step="agent", state=StepState.OK, message="the agent is ready", since=AT)
        return ExplainView(subject="node", state=StepState.OK, summary=step.message, steps=[step], events=[])

    async def trace(self, namespace: str, pod: str, to: Address) -> TraceView:
        if pod != "web-0":
            raise Problem(404, "Unknown pod", f"{namespace}/{pod} is not attached on this node")
        return TraceView(
            namespace=namespace,
            pod=pod,
            source=POD,
            destination=to,
            reaches="outside",
            verdict="leaves by eth0 as 10.0.1.5",
            host_ifname="eni2b7c0f3a1d4",
            mark=0x80,
            mark_reasons=["0x80: outside the VPC"],
            sets=[],
            rule_pref=1024,
            rule="1024: from all fwmark 0x80/0x80 lookup 254",
            table_id=254,
            route_type="unicast",
            out_ifname="eth0",
            eni_id="eni-0123456789abcdef0",
            gateway=IPv4Address("10.0.1.1"),
            translated_to=IPv4Address("10.0.1.5"),
            refusal="",
        )

    async def history(self, address: Address) -> HistoryView:
        tenure = TenureView(
            namespace="default",
            pod="web-0",
            container_id="c1",
            ifname="eth0",
            eni_id="eni-0123456789abcdef0",
            since=AT,
            until=None,
            known_end=True,
        )
        return HistoryView(address=address, remembered_since=AT, tenures=[tenure] if address == POD else [])

    def newest_event_id(self) -> int:
        return self.journal.newest_id

    def events_after(self, last_id: int) -> EventBatch:
        batch = self.journal.after(last_id)
        return EventBatch(events=[event_view(one) for one in batch.events], missed=batch.missed)

    async def next_events(self, last_id: int) -> EventBatch | None:
        await self.journal.next(last_id)
        return self.events_after(last_id)

    def logs(self, *, namespace: str | None, pod: str | None, request_id: str | None, limit: int) -> LogView:
        self.log_questions.append((namespace, pod, request_id, limit))
        line = LogLine(ts=AT, level="info", logger="agent.attachments", event="attached")
        return LogView(lines=[line], remembered_since=AT)

    def log_level(self) -> LogLevel:
        return LogLevel(level=self.level)

    def set_log_level(self, level: LogLevel) -> LogLevel:
        self.level = level.level
        return level

    def metrics(self) -> bytes:
        return b"# TYPE enoki_ready gauge\nenoki_ready 1.0\n"
