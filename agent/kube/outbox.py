"""Which reports become Kubernetes events, and when. Pure.

One event per state: its first report creates it, later ones raise its count, seldom; its end is one more event. A token
bucket bounds the creations, so that whatever goes wrong on ten thousand nodes does not go wrong in the API server too.
What the bucket holds back is not lost: a state is told as soon as there is room, if it still lasts.

API reference, events.k8s.io/v1 Event: `note` up to 1 KiB, `action`, `reason` and `reportingInstance` up to 128 bytes;
the namespace of an event about something without one is `default`; after creation only `series` may change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agent.ports.cluster import Notice, NoticeKind

MAX_STATES = 64
"""States kept at a time; a new one beyond them takes the place of the one reported longest ago."""
BURST = 10
REFILL_S = 30.0
"""One more creation every so often: client-go's spam filter gives a source 25 at once and one every 300 s."""
REPEAT_S = 600.0
"""How often the count of a lasting state goes up: an event is forgotten an hour after its last change."""
CONTROLLER = "enoki"
_NOTE_BYTES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Create:
    """A new event. key: whom to tell `Outbox.created`."""

    key: str
    notice: Notice


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """One more of an event that exists. name: the event's. count: reports so far."""

    key: str
    name: str
    count: int


Send = Create | Repeat


@dataclass(slots=True)
class _State:
    notice: Notice
    count: int = 1
    name: str = ""
    told_s: float = field(default=float("-inf"))
    told_count: int = 0
    reported_s: float = 0.0
    on_its_way: bool = False
    """Handed out to be created: somebody may have been told."""
    end: Notice | None = None
    """What ended the state while its beginning was on its way."""


class Outbox:
    """States that were reported, and what of them is to be told."""

    def __init__(self) -> None:
        self._states: dict[str, _State] = {}
        self._tokens = float(BURST)
        self._refilled_s: float | None = None

    def __len__(self) -> int:
        return len(self._states)

    def report(self, notice: Notice, now_s: float) -> None:
        """Take a report. The latest message of a state counts."""
        key = _key(notice)
        known = self._states.get(key)
        if known is None:
            if notice.over:
                return
            if len(self._states) >= MAX_STATES:
                del self._states[min(self._states, key=lambda one: self._states[one].reported_s)]
            self._states[key] = _State(notice=notice, reported_s=now_s)
        elif notice.over and known.on_its_way:
            known.end = notice
        elif notice.over and not known.name:
            del self._states[key]  # it began and ended before anybody was told
        elif (notice.over and not known.notice.over) or (known.notice.over and not notice.over and not known.name):
            self._states[key] = _State(notice=notice, reported_s=now_s)
        else:
            known.notice, known.count, known.reported_s, known.end = notice, known.count + 1, now_s, None

    def due(self, now_s: float) -> Send | None:
        """What to send next, or None."""
        self._refill(now_s)
        for key, state in self._states.items():
            if not state.name:
                if self._tokens >= 1.0:
                    state.on_its_way = True
                    return Create(key=key, notice=state.notice)
            elif state.count > state.told_count and now_s - state.told_s >= REPEAT_S:
                return Repeat(key=key, name=state.name, count=state.count)
        return None

    def rest_s(self, now_s: float) -> float:
        """Seconds until `due` may have something without a further report; inf when nothing waits."""
        waits = [
            (REFILL_S * (1.0 - self._tokens) if not state.name else state.told_s + REPEAT_S - now_s)
            for state in self._states.values()
            if not state.name or state.count > state.told_count
        ]
        return max(0.0, min(waits, default=float("inf")))

    def told(self, sent: Send, name: str, now_s: float) -> None:
        """The API server has it, under this name."""
        state = self._states.get(sent.key)
        if isinstance(sent, Create):
            self._tokens -= 1.0
        if state is None:
            return
        if isinstance(sent, Create) and sent.notice.over and state.notice.over:
            del self._states[sent.key]  # told to its end
            return
        if state.end is not None:
            self._states[sent.key] = _State(notice=state.end, reported_s=now_s)
            return
        state.name, state.told_s, state.on_its_way = name, now_s, False
        state.told_count = sent.count if isinstance(sent, Repeat) else state.count

    def forgotten(self, sent: Send) -> None:
        """The API server does not know the event any more: create it anew."""
        if state := self._states.get(sent.key):
            state.name = ""
            state.on_its_way = False

    def refused(self, sent: Send) -> None:
        """The API server will never take it: do not try again."""
        self._states.pop(sent.key, None)

    def _refill(self, now_s: float) -> None:
        if self._refilled_s is not None:
            self._tokens = min(float(BURST), self._tokens + (now_s - self._refilled_s) / REFILL_S)
        self._refilled_s = now_s


def _key(notice: Notice) -> str:
    return f"{notice.kind} {notice.subject}"


def event(notice: Notice, *, name: str, regarding: Mapping[str, str], instance: str, at: datetime) -> dict[str, Any]:
    """The body of an events.k8s.io/v1 Event.

    name: unique in its namespace. regarding: an ObjectReference. instance: which agent reports. at: UTC.
    """
    is_iam = notice.kind is NoticeKind.IAM_DENIED and notice.subject
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": regarding.get("namespace") or "default"},
        "eventTime": micro_time(at),
        "reportingController": CONTROLLER,
        "reportingInstance": instance[:128] or CONTROLLER,
        "type": "Normal" if notice.over or notice.kind in _NORMAL else "Warning",
        "reason": f"{notice.kind}Over" if notice.over else str(notice.kind),
        "action": f"ec2:{notice.subject}"[:128] if is_iam else _ACTIONS[notice.kind],
        "note": _note(notice),
        "regarding": dict(regarding),
    }


def series(count: int, at: datetime) -> dict[str, Any]:
    """The merge patch that says an event happened again."""
    return {"series": {"count": max(2, count), "lastObservedTime": micro_time(at)}}


def event_name(node_name: str, key: str, at: datetime) -> str:
    """Unique among the node's events: the state and when it was told. A DNS subdomain of at most 253 characters."""
    digest = hashlib.sha256(f"{key} {at.isoformat()}".encode()).hexdigest()[:16]
    return f"{node_name[:230]}.{digest}"


def micro_time(at: datetime) -> str:
    """metav1.MicroTime: RFC 3339 with six digits of a second."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _note(notice: Notice) -> str:
    evidence = ", ".join(f"{name}={value}" for name, value in notice.evidence.items())
    text = f"{notice.message} ({evidence})" if evidence else notice.message
    encoded = text.encode()
    return text if len(encoded) <= _NOTE_BYTES else encoded[: _NOTE_BYTES - 3].decode(errors="ignore") + "..."


_NORMAL = frozenset({NoticeKind.DRIFT_REPAIRED, NoticeKind.SITE_CHANGED})
_ACTIONS: Mapping[NoticeKind, str] = {
    NoticeKind.POOL_EXHAUSTED: "AllocateAddress",
    NoticeKind.SUBNET_EXHAUSTED: "AllocateAddress",
    NoticeKind.IAM_DENIED: "CallEc2",
    NoticeKind.ENI_FAILED: "AttachEni",
    NoticeKind.EC2_FAILING: "CallEc2",
    NoticeKind.DRIFT_REPAIRED: "RepairDatapath",
    NoticeKind.SITE_CHANGED: "SelectEniConfig",
    NoticeKind.SITE_UNKNOWN: "SelectEniConfig",
    NoticeKind.MAX_PODS_TOO_HIGH: "ReadNode",
}
