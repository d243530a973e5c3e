"""What the routes for operators answer: plans, settings, the EC2 budget, events, explanations, paths, log lines."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Annotated

from pydantic import ConfigDict, Field

from api.schemas import Address, Count, Seconds, View, shown

Scalar = str | int | float


class ActionView(View):
    """One thing the pool asks of EC2."""

    action: str
    """What: for example `assign_addresses`, `unassign_addresses`, `create_eni` or `release_eni`."""
    reason: str
    """Why, in one sentence with the numbers."""
    arguments: dict[str, str | int | list[str] | None]
    """On what, and how much: for example `eni_id`, `count`, `subnet_id`, `addresses`."""


class PlanView(View):
    """What the pool would do now, worked out from what it knows at this moment. Nothing is started by asking."""

    model_config = shown(
        {
            "actions": [
                {
                    "action": "assign_addresses",
                    "reason": "3 addresses short of the targets",
                    "arguments": {"eni_id": "eni-0123456789abcdef0", "count": 3},
                }
            ],
            "reason": "demand 7, free 2, target 5: grow by 3",
            "short_count": 3,
            "recheck_after_s": 12.5,
            "in_flight": [],
        }
    )

    actions: list[ActionView]
    """What it would start; independent of one another. Empty when the pool is as it should be."""
    reason: str
    """Why, in one sentence with the numbers; explains an empty plan too."""
    short_count: Count
    """Addresses that are missing, those on their way counted as there."""
    recheck_after_s: Seconds | None
    """Seconds until time alone may change the plan; null when only an event can."""
    in_flight: list[ActionView]
    """What has been started already and has not ended."""


class SettingView(View):
    """One setting and where its value comes from."""

    name: str
    """Name of the environment variable."""
    value: str | int | bool | list[str] | dict[str, str] | None
    """What the agent works with; null for unset. A secret is shown as `(left out)`."""
    default: str
    """What it is without the variable, as one would write it there; empty for unset."""
    provenance: str
    """`default`, or `environment` when the variable is set."""
    allowed: str
    """Which values are allowed."""
    description: str
    """What the setting does."""


class ConfigView(View):
    """The settings this agent runs with. They are read once, at its start."""

    model_config = shown(
        {
            "version": "0.1.0",
            "settings": [
                {
                    "name": "WARM_IP_TARGET",
                    "value": 5,
                    "default": "0",
                    "provenance": "environment",
                    "allowed": "an integer from 0 to 10000",
                    "description": "How many free addresses to hold.",
                }
            ],
            "notices": [],
        }
    )

    version: str
    """Version of the agent."""
    settings: list[SettingView]
    notices: list[str]
    """Sentences about names that are set and have no effect."""


class CallCount(View):
    """Requests of one kind to EC2, since the agent started."""

    reason: str
    """What they were made for, for example `start`, `grow` or `shrink`."""
    outcome: str
    """`ok`, the name of a cause (`ec2_throttled`, `iam_denied`, ...), `withheld` (not sent) or `cancelled`."""
    count: Count


class ActionBudgetView(View):
    """One EC2 action: the account's published token bucket, and what this node takes of it."""

    action: str
    """Name of the EC2 action, for example `AssignPrivateIpAddresses`."""
    bucket_size: Seconds
    """Tokens the account's bucket holds, as EC2 publishes it."""
    refill_per_s: Seconds
    """Tokens it gets back each second, for all callers of the account together."""
    rate_per_s: Seconds
    """Requests a second this node allows itself; less than the above once EC2 has throttled it."""
    level: float
    """Requests it may send at once now; below 0 while some wait."""
    throttled_count: Count
    """Requests EC2 answered with "slow down"."""
    withheld_count: Count
    """Requests that were not sent because no token would have come in time."""
    waited_s: Seconds
    """Seconds that requests have waited for tokens, in all."""
    calls: list[CallCount]
    """Requests so far, by reason and outcome."""


class BudgetView(View):
    """What this node has asked of EC2."""

    model_config = shown(
        {
            "since": "2026-11-24T09:30:00Z",
            "call_count": 5,
            "throttled_count": 1,
            "actions": [
                {
                    "action": "AssignPrivateIpAddresses",
                    "bucket_size": 100,
                    "refill_per_s": 5,
                    "rate_per_s": 0.25,
                    "level": 0,
                    "throttled_count": 1,
                    "withheld_count": 0,
                    "waited_s": 2.5,
                    "calls": [
                        {"reason": "grow", "outcome": "ec2_throttled", "count": 1},
                        {"reason": "grow", "outcome": "ok", "count": 4},
                    ],
                }
            ],
        }
    )

    since: datetime
    """When this agent started to count."""
    call_count: Count
    """All requests together."""
    throttled_count: Count
    """Those EC2 answered with "slow down"."""
    actions: list[ActionBudgetView]
    """In the order of their names."""


class EventView(View):
    """Something that happened on this node."""

    model_config = shown(
        {
            "id": 1795599000000042,
            "at": "2026-11-24T09:30:00.125Z",
            "kind": "address",
            "request_id": "5f0c2a9be113",
            "fields": {"address": "10.0.1.9", "eni": "eni-0123456789abcdef0", "before": "free", "after": "held"},
        }
    )

    id: int
    """Grows from event to event, over restarts of the agent too. Hand it back as `Last-Event-ID` or `after`."""
    at: datetime
    kind: str
    """`address`, `eni`, `pool_degraded`, `pool_recovered`, `kubernetes_failed`, `kubernetes_recovered`, `finding`,
    `repair` or `cni_failed`."""
    request_id: str
    """The CNI call it belongs to; empty when it belongs to none."""
    fields: dict[str, Scalar]
    """What happened to what; depends on the kind."""


class TenureView(View):
    """One holder of an address."""

    namespace: str
    """Kubernetes namespace; empty when the runtime did not say."""
    pod: str
    container_id: str
    ifname: str
    eni_id: str
    since: datetime
    """When it got the address; when the agent started, for one that was there already."""
    until: datetime | None
    """When it let the address go; null while it holds it."""
    known_end: bool
    """False when nobody saw the end: `until` is then the first moment at which it was certainly over."""


class HistoryView(View):
    """Who held an address, oldest first, as far back as this node remembers."""

    model_config = shown(
        {
            "address": "10.0.1.9",
            "remembered_since": "2026-11-23T18:02:11Z",
            "tenures": [
                {
                    "namespace": "default",
                    "pod": "web-0",
                    "container_id": "3f5a9c0e7d",
                    "ifname": "eth0",
                    "eni_id": "eni-0123456789abcdef0",
                    "since": "2026-11-24T09:30:00Z",
                    "until": "2026-11-24T11:02:30Z",
                    "known_end": True,
                }
            ],
        }
    )

    address: Address
    remembered_since: datetime | None
    """The time of the oldest event that is still known; null when there is none."""
    tenures: list[TenureView]


class StepState(StrEnum):
    """How a step of an explanation stands."""

    OK = "ok"
    WAITING = "waiting"
    FAILING = "failing"
    UNKNOWN = "unknown"


class StepView(View):
    """One step, and what it depends on."""

    step: str
    """What the step is about, for example `agent`, `request`, `address`, `kernel`, `ec2`."""
    state: StepState
    message: str
    """One sentence: what is, or what is wrong."""
    since: datetime | None = None
    """Since when it stands so; null when nobody knows."""
    cause: str | None = None
    """The name of the cause when it fails or waits."""
    evidence: dict[str, Scalar] = Field(default_factory=dict)
    """Numbers and ids that prove it."""
    remedy: str = ""
    """What a person can do; empty when nothing has to be done, or waiting is the remedy."""
    next_try_s: Annotated[float, Field(ge=0)] | None = None
    """Seconds until the agent (or the runtime) tries again; null when nobody will."""
    because: list[StepView] = Field(default_factory=list)
    """What this step depends on, worst first."""


class ExplainView(View):
    """Why something is as it is: a tree of steps with their causes."""

    model_config = shown(
        {
            "subject": "default/web-0",
            "state": "waiting",
            "summary": "subnet subnet-0a1b has 0 free addresses, fewer than needed",
            "steps": [
                {
                    "step": "address",
                    "state": "waiting",
                    "message": "no address is free yet; 2 requests wait",
                    "since": "2026-11-24T09:30:00Z",
                    "cause": "subnet_exhausted",
                    "because": [
                        {
                            "step": "subnet subnet-0a1b",
                            "state": "failing",
                            "message": "subnet subnet-0a1b has 0 free addresses, fewer than needed",
                            "since": "2026-11-24T09:12:40Z",
                            "cause": "subnet_exhausted",
                            "evidence": {"subnet": "subnet-0a1b", "free": 0},
                            "remedy": "free addresses in the subnet, or tag another subnet of this zone for pods",
                            "next_try_s": 61.5,
                        }
                    ],
                }
            ],
            "events": [],
        }
    )

    subject: str
    """`node`, or `<namespace>/<pod>`."""
    state: StepState
    """The worst of the steps."""
    summary: str
    """The answer in one sentence: the message of the deepest step that is not as it should be."""
    steps: list[StepView]
    """In the order in which a pod's start goes through them."""
    events: list[EventView]
    """The latest events about it, oldest first."""


class TraceView(View):
    """Where the first packet of a connection goes. Asked of the kernel; nothing is sent."""

    model_config = shown(
        {
            "namespace": "default",
            "pod": "web-0",
            "source": "10.0.1.9",
            "destination": "203.0.113.5",
            "reaches": "outside",
            "verdict": "leaves by eth0 (eni-0123456789abcdef0) to gateway 10.0.1.1 as 10.0.1.5",
            "host_ifname": "eni2b7c0f3a1d4",
            "mark": 128,
            "mark_reasons": ["0x80: 203.0.113.5 is outside the VPC: by the primary ENI"],
            "sets": [],
            "rule_pref": 1024,
            "rule": "1024: from all fwmark 0x80/0x80 lookup 254",
            "table_id": 254,
            "route_type": "unicast",
            "out_ifname": "eth0",
            "eni_id": "eni-0123456789abcdef0",
            "gateway": "10.0.1.1",
            "translated_to": "10.0.1.5",
            "refusal": "",
        }
    )

    namespace: str
    pod: str
    source: Address
    """The pod's address."""
    destination: Address
    reaches: str
    """What the destination is: `pod`, `node`, `vpc` or `outside`."""
    verdict: str
    """The whole path in one sentence."""
    host_ifname: str
    """The link it comes in by: the host's end of the pod's veth pair."""
    mark: Count
    """Packet mark that our nftables table sets; 0 when it sets none."""
    mark_reasons: list[str]
    """One sentence for each part of the mark."""
    sets: list[str]
    """The table's destination sets that contain the destination."""
    rule_pref: int | None
    """Preference of the policy rule that decides; null when no rule explains the route."""
    rule: str
    """That rule, as `ip rule` prints it."""
    table_id: int
    """Routing table the route is in: 20512 has the pods, 254 is the main one, 255 the node's own addresses."""
    route_type: str
    """`unicast`, `local`, ... ; empty when the kernel has no route."""
    out_ifname: str
    """The link it leaves by."""
    eni_id: str
    """The ENI behind that link; empty for other links."""
    gateway: Address | None
    translated_to: IPv4Address | None
    """The source address the destination sees, when it is not the pod's."""
    refusal: str
    """The kernel's error name when there is no route, for example `ENETUNREACH`."""


class LogLevelName(StrEnum):
    """Names of log levels."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogLevel(View):
    """The least severe lines that are logged. Lost when the agent stops: the setting counts again at its next start."""

    model_config = shown({"level": "debug"})

    level: LogLevelName


class LogLine(View):
    """One line of the agent's log."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    ts: datetime
    level: str
    logger: str
    event: str
    """The name of what happened, in snake_case; the line's further members depend on it."""


class LogView(View):
    """The latest log lines that match, oldest first."""

    model_config = shown(
        {
            "lines": [
                {
                    "ts": "2026-11-24T09:30:00.125Z",
                    "level": "info",
                    "logger": "agent.attachments",
                    "event": "attached",
                    "request_id": "5f0c2a9be113",
                    "pod": "default/web-0 (3f5a9c0e7d/eth0)",
                    "addresses": ["10.0.1.9"],
                }
            ],
            "remembered_since": "2026-11-24T08:11:02.004Z",
        }
    )

    lines: list[LogLine]
    remembered_since: datetime | None
    """The time of the oldest line that is still in memory; null when there is none."""
