"""Why something is as it is, and where a packet goes."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Annotated

from pydantic import Field

from api.event_schemas import EventView
from api.schemas import Address, Count, Scalar, View, shown


class StepState(StrEnum):
    """How a step of an explanation stands. `waiting` passes by itself; `failing` does not, or says when it is tried
    again."""

    OK = "ok"
    WAITING = "waiting"
    FAILING = "failing"
    UNKNOWN = "unknown"


class StepView(View):
    """One step, and what it depends on."""

    step: str
    """What the step is about, for example `agent`, `request`, `address`, `kernel`, `pool`, `subnet subnet-0a1b`."""
    state: StepState
    """How it stands."""
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
    """The answer in one sentence: the message of the deepest step that is not as it should be; when all is well, the
    address the pod has."""
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
    """Kubernetes namespace of the pod it leaves."""
    pod: str
    """Name of that pod."""
    source: Address
    """The pod's address."""
    destination: Address
    """Where it is to go."""
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
    """The router it is handed to; null when the link leads there directly."""
    translated_to: IPv4Address | None
    """The source address the destination sees, when it is not the pod's."""
    refusal: str
    """The kernel's error name when there is no route, for example `ENETUNREACH`."""
