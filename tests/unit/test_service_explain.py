"""Explanations, pods' stories and settings: pure functions of what the node says."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from typing import Any

import pytest

from agent.errors import Cause
from agent.service.configuration import LEFT_OUT, config_view, shown
from agent.service.explain import (
    LinkFacts,
    NodeFacts,
    PodFacts,
    RequestFacts,
    TroubleFacts,
    explain_node,
    explain_pod,
)
from agent.service.story import select
from agent.settings import load
from api.event_schemas import EventView
from api.explain_schemas import StepState
from api.schemas import (
    AddressCounts,
    AllocationView,
    ConditionView,
    HealthView,
    LoopView,
    PoolView,
    StageState,
    StageView,
    StartupView,
)

AT = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)
READY = StartupView(ready=True, stages=[StageView(name="identity", state=StageState.DONE, since=AT)])
POOL = PoolView(counts=AddressCounts(held_count=1), waiter_count=0, enis=[], reason="as it should be")
HELD = AllocationView(
    addresses=[IPv4Address("10.0.1.9")],
    eni_id="eni-1",
    container_id="c1",
    ifname="eth0",
    namespace="default",
    pod="web-0",
    host_ifname="eni1234",
    since=AT,
)
LINK = LinkFacts(container_id="c1", host_ifname="eni1234", addresses=frozenset({"10.0.1.9"}))
FULL = TroubleFacts(
    scope="subnet subnet-1",
    since=AT,
    condition=ConditionView(
        cause="subnet_exhausted", message="subnet-1 has 0 free addresses", remedy="free some", retry_after_s=60.0
    ),
)
WAITING = RequestFacts(request_id="r1", container_id="c1", step="address", since=AT, began=AT)
FAILED = EventView(
    id=1,
    at=AT,
    kind="cni_failed",
    request_id="r1",
    fields={
        "verb": "ADD",
        "cause": "iam_denied",
        "message": "no right to AssignPrivateIpAddresses",
        "remedy": "allow it",
        "retry_after_s": 12.5,
        "namespace": "default",
        "pod": "web-0",
        "container_id": "c1",
        "ifname": "eth0",
        "free": 0,
    },
)
WELL = PodFacts(
    namespace="default",
    pod="web-0",
    startup=READY,
    pool=POOL,
    troubles=(),
    requests=(),
    allocations=(HELD,),
    links=(LINK,),
    kernel_error="",
    failure=None,
    events=(),
)
BARE = replace(WELL, allocations=(), links=())


def test_a_pod_that_is_well() -> None:
    answer = explain_pod(WELL)
    assert answer.summary == answer.steps[2].message != answer.steps[0].message  # the address it has
    assert [(step.step, step.state) for step in answer.steps] == [
        (name, StepState.OK) for name in ("agent", "request", "address", "kernel")
    ]
    assert answer.state is StepState.OK


def test_a_pod_that_waits_says_for_what() -> None:
    answer = explain_pod(replace(BARE, requests=(WAITING,), troubles=(FULL,)))
    assert (answer.state, answer.summary) == (StepState.WAITING, "subnet-1 has 0 free addresses")
    address = answer.steps[2]
    assert (address.cause, address.since) == ("subnet_exhausted", AT)
    (reason,) = address.because
    assert (reason.cause, reason.remedy, reason.next_try_s, reason.since) == ("subnet_exhausted", "free some", 60.0, AT)


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_of_a_failed_add_is_found_again(cause: Cause) -> None:
    failure = FAILED.model_copy(update={"fields": FAILED.fields | {"cause": str(cause)}})
    address = explain_pod(replace(BARE, failure=failure)).steps[2]
    assert (address.state, address.cause) == (StepState.FAILING, cause)
    assert (address.message, address.remedy, address.next_try_s) == (
        "no right to AssignPrivateIpAddresses",
        "allow it",
        12.5,
    )
    assert address.evidence == {"free": 0}


def test_a_failure_that_was_overcome_is_no_reason() -> None:
    later = HELD.model_copy(update={"since": AT + timedelta(seconds=1)})
    assert explain_pod(replace(WELL, allocations=(later,), failure=FAILED)).state is StepState.OK


@pytest.mark.parametrize(
    ("links", "words"),
    [
        ((), "there is no link eni1234"),
        ((replace(LINK, addresses=frozenset()),), "no route in table pods leads to 10.0.1.9"),
    ],
)
def test_a_kernel_that_differs(links: tuple[LinkFacts, ...], words: str) -> None:
    answer = explain_pod(replace(WELL, links=links))
    assert answer.summary.startswith(words)
    assert (answer.state, answer.steps[3].cause) == (StepState.FAILING, Cause.ATTACHMENT_DRIFTED)


def test_a_kernel_that_cannot_be_asked_is_unknown() -> None:
    answer = explain_pod(replace(WELL, links=(), kernel_error="kernel_refused: no end after 10 s"))
    assert (answer.state, answer.steps[3].state) == (StepState.UNKNOWN, StepState.UNKNOWN)


def test_an_agent_that_starts_says_where_it_hangs() -> None:
    stages = [
        StageView(name="identity", state=StageState.DONE, since=AT),
        StageView(name="addresses", state=StageState.FAILED, since=AT, reason="iam_denied: no right to describe"),
    ]
    answer = explain_pod(replace(BARE, startup=StartupView(ready=False, stages=stages)))
    assert (answer.state, answer.steps[0].cause) == (StepState.FAILING, Cause.AGENT_STARTING)
    assert answer.steps[0].because[0].cause == "iam_denied"
    assert answer.summary == "addresses: iam_denied: no right to describe"


NODE = NodeFacts(
    startup=READY,
    health=HealthView(healthy=True, loops=[LoopView(name="pool", healthy=True, seconds_since_good_turn_s=1.0)]),
    pool=POOL,
    enis=(),
    troubles=(),
    findings=(),
    kubernetes=None,
    short_count=0,
    events=(),
)


def test_a_node() -> None:
    assert explain_node(NODE).state is StepState.OK
    full = explain_node(replace(NODE, troubles=(FULL,)))
    assert (full.state, full.summary) == (StepState.FAILING, "subnet-1 has 0 free addresses")
    loops = [LoopView(name="pool", healthy=False, seconds_since_good_turn_s=1.0, reason="no end of the turn")]
    broken = explain_node(replace(NODE, health=HealthView(healthy=True, loops=loops)))
    assert (broken.state, broken.summary) == (StepState.FAILING, "loop pool: no end of the turn")
    quarantined = PoolView(counts=AddressCounts(quarantined_count=2), waiter_count=0, enis=[])
    found = explain_node(replace(NODE, pool=quarantined, findings=("10.0.1.9 is not listed",)))
    assert (found.state, found.summary) == (StepState.FAILING, "10.0.1.9 is not listed")


# ---- stories

LINES: list[dict[str, Any]] = [
    {"event": "pool_action", "request_id": "r1,r2"},
    {"event": "ec2_call", "request_id": "r1,r2"},
    {"event": "attached", "request_id": "r1", "pod": "default/web-0 (c1/eth0)"},
    {"event": "attached", "request_id": "r2", "pod": "default/web-1 (c2/eth0)"},
    {"event": "attached", "request_id": "r3", "pod": "other/web-0 (c3/eth0)"},
    {"event": "cni_failed", "request_id": "r4", "pod": "web-0", "namespace": "default"},
    {"event": "ready"},
]


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ({"namespace": "default", "pod": "web-0"}, [0, 1, 2, 5]),
        ({"namespace": "default", "pod": "web-1"}, [0, 1, 3]),
        ({"namespace": "default", "pod": "web"}, []),
        ({"namespace": "other"}, [4]),
        ({"request_id": "r2"}, [0, 1, 3]),
        ({"namespace": "default", "pod": "web-0", "request_id": "r4"}, [5]),
        ({"request_id": "r"}, []),
        ({}, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_a_story(question: dict[str, str], found: list[int]) -> None:
    assert select(LINES, **question) == [LINES[number] for number in found]


# ---- settings


def test_settings_are_shown_with_their_origin() -> None:
    view = config_view(load({"WARM_IP_TARGET": "5", "ADDITIONAL_ENI_TAGS": '{"team":"net"}'}), "1.2.3")
    found = {one.name: one for one in view.settings}
    assert (found["WARM_IP_TARGET"].value, found["WARM_IP_TARGET"].provenance) == (5, "environment")
    assert (found["MAX_ENI"].value, found["MAX_ENI"].provenance) == (None, "default")
    assert found["ADDITIONAL_ENI_TAGS"].value == {"team": "net"}
    assert found["ENOKI_SOCKET"].value == "/run/enoki/agent.sock"
    assert view.version == "1.2.3"


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("AWS_SECRET_ACCESS_KEY", "abc", LEFT_OUT),
        ("SOME_TOKEN", "abc", LEFT_OUT),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://user:word@host:80", "http://host:80"),
        ("ADDITIONAL_ENI_TAGS", (("token", "x"), ("team", "net")), {"token": LEFT_OUT, "team": "net"}),
        ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", (), []),
        ("X", True, True),
    ],
)
def test_secrets_are_left_out(name: str, value: object, wanted: object) -> None:
    assert shown(name, value) == wanted
