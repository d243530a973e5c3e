"""One event per change of state: created once, repeated seldom, bounded always."""

from __future__ import annotations

from datetime import UTC, datetime

from agent.kube import outbox
from agent.kube.outbox import BURST, MAX_STATES, REFILL_S, REPEAT_S, Create, Outbox, Repeat
from agent.ports.cluster import Notice, NoticeKind
from sim.kube.strategy import check_event

NODE = {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}
AT = datetime(2026, 11, 24, 10, 0, 0, 5, tzinfo=UTC)


def a_notice(subject: str = "subnet-1", *, over: bool = False, message: str = "full") -> Notice:
    return Notice(kind=NoticeKind.SUBNET_EXHAUSTED, subject=subject, message=message, over=over)


def sent(box: Outbox, now_s: float) -> Create | Repeat | None:
    """Send what is due, as if the API server took it."""
    due = box.due(now_s)
    if due is not None:
        box.told(due, f"name-{due.key}", now_s)
    return due


def test_a_state_is_created_once_however_often_it_is_reported() -> None:
    box = Outbox()
    for _ in range(100):
        box.report(a_notice(), 0.0)

    first = sent(box, 0.0)
    for second in range(1, 60):
        box.report(a_notice(), float(second))

    assert isinstance(first, Create)
    assert sent(box, 60.0) is None
    assert box.rest_s(60.0) == REPEAT_S - 60.0


def test_a_lasting_state_is_repeated_with_its_count() -> None:
    box = Outbox()
    box.report(a_notice(), 0.0)
    sent(box, 0.0)
    box.report(a_notice(), 1.0)
    box.report(a_notice(), 2.0)

    again = sent(box, REPEAT_S)

    assert again == Repeat(key="SubnetExhausted subnet-1", name="name-SubnetExhausted subnet-1", count=3)
    assert sent(box, 3 * REPEAT_S) is None  # nobody reported it since


def test_the_end_of_a_state_is_one_event_and_the_state_is_forgotten() -> None:
    box = Outbox()
    box.report(a_notice(), 0.0)
    sent(box, 0.0)
    box.report(a_notice(over=True), 5.0)

    end = sent(box, 5.0)

    assert isinstance(end, Create)
    assert end.notice.over
    assert len(box) == 0
    box.report(a_notice(over=True), 6.0)
    assert box.due(6.0) is None


def test_a_state_that_nobody_was_told_of_ends_in_silence() -> None:
    box = Outbox()
    box.report(a_notice(), 0.0)
    box.report(a_notice(over=True), 0.1)

    assert box.due(1.0) is None


def test_a_state_that_ends_while_its_beginning_is_on_its_way_is_told_to_its_end() -> None:
    box = Outbox()
    box.report(a_notice(), 0.0)
    beginning = box.due(0.0)
    assert beginning is not None
    box.report(a_notice(over=True), 0.1)
    box.told(beginning, "name", 0.2)

    end = sent(box, 0.2)

    assert isinstance(end, Create)
    assert end.notice.over
    assert len(box) == 0


def test_a_state_that_comes_back_before_its_end_was_told_goes_on() -> None:
    box = Outbox()
    box.report(a_notice(), 0.0)
    sent(box, 0.0)
    box.report(a_notice(over=True), 1.0)
    box.report(a_notice(), 2.0)

    due = box.due(2.0)

    assert isinstance(due, Create)
    assert not due.notice.over


def test_creations_are_bounded_in_rate_and_states_in_number() -> None:
    box = Outbox()
    for number in range(1000):
        box.report(a_notice(f"subnet-{number}"), 0.0)

    told = [one for one in (sent(box, 0.0) for _ in range(100)) if one is not None]

    assert len(told) == BURST
    assert len(box) == MAX_STATES
    assert box.rest_s(0.0) == REFILL_S
    assert sent(box, REFILL_S) is not None
    assert sent(box, REFILL_S) is None


def test_an_event_that_the_api_server_forgot_is_created_anew() -> None:
    box = Outbox()
    box.report(a_notice(), 0.0)
    sent(box, 0.0)
    box.report(a_notice(), 1.0)
    due = box.due(REPEAT_S)
    assert isinstance(due, Repeat)

    box.forgotten(due)

    assert isinstance(box.due(REPEAT_S), Create)


def test_a_refused_event_is_not_tried_again() -> None:
    box = Outbox()
    box.report(a_notice(), 0.0)
    due = box.due(0.0)
    assert due is not None

    box.refused(due)

    assert box.due(1.0) is None


def test_the_body_is_what_the_api_server_requires() -> None:
    long = Notice(kind=NoticeKind.POOL_EXHAUSTED, message="ü" * 2000, evidence={"subnet": "subnet-1", "free": 0})

    body = outbox.event(long, name=outbox.event_name("n" * 253, "k", AT), regarding=NODE, instance="n" * 253, at=AT)

    check_event(body, "default")
    assert len(body["metadata"]["name"]) <= 253
    assert body["eventTime"] == "2026-11-24T10:00:00.000005Z"
    assert body["type"] == "Warning"
    assert len(body["note"].encode()) <= 1024


def test_a_missing_permission_is_told_as_the_aws_plugin_tells_it() -> None:
    notice = Notice(kind=NoticeKind.IAM_DENIED, subject="CreateNetworkInterface", message="denied")

    body = outbox.event(notice, name="x", regarding=NODE, instance="n", at=AT)

    assert (body["type"], body["reason"], body["action"]) == (
        "Warning",
        "MissingIAMPermissions",
        "ec2:CreateNetworkInterface",
    )
