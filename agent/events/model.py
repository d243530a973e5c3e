"""Pure: one event, and its two written forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

Scalar = str | int | float


class Kind(StrEnum):
    """What an event is about. A closed set; the fields of each are listed with it."""

    ADDRESS = "address"
    """An address went from one state to another: address, eni, before, after, change; namespace, pod, container_id and
    ifname of whoever holds it or has just let it go."""
    ENI = "eni"
    """A network interface came, is ready for pods, is leaving, or is gone: eni, change, device, table."""
    POOL_DEGRADED = "pool_degraded"
    """Something the pool needs began to fail: scope, cause, message, next_try_s, and the error's evidence."""
    POOL_RECOVERED = "pool_recovered"
    """It works again: scope, cause, failures."""
    KUBERNETES_FAILED = "kubernetes_failed"
    """Kubernetes began not to answer what the agent asks, or its answer does not say where ENIs go: cause, message, and
    the error's evidence."""
    KUBERNETES_RECOVERED = "kubernetes_recovered"
    """It answers again: cause, of the failure that is over."""
    FINDING = "finding"
    """Kernel and EC2 disagree: finding, message, and its evidence."""
    REPAIR = "repair"
    """Something in the kernel was put right: object, reason; and, when somebody else had changed it, strikes (how
    often in a row), contested (something keeps changing it) and error (why putting it right failed)."""
    CNI_FAILED = "cni_failed"
    """A request of the container runtime failed: verb, cause, message, remedy, retry_after_s, namespace, pod,
    container_id, ifname."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened.

    id: grows by one, and never goes back: a later agent of the node starts higher (see `Journal`).
    at: with a time zone (UTC).
    request_id: of the CNI call it belongs to; empty when there is none.
    """

    id: int
    at: datetime
    kind: Kind
    request_id: str
    fields: Mapping[str, Scalar]


class Publish(Protocol):
    """Enters an event. Never fails and never waits."""

    def __call__(self, kind: Kind, /, **fields: Scalar) -> None: ...


def publish_nowhere(kind: Kind, /, **fields: Scalar) -> None:
    """For a part that nobody listens to."""


def to_json_object(event: Event) -> dict[str, Any]:
    """The event as JSON values; the inverse of `from_json_object`."""
    return {
        "id": event.id,
        "at": event.at.isoformat(timespec="milliseconds"),
        "kind": event.kind.value,
        "request_id": event.request_id,
        "fields": dict(event.fields),
    }


def from_json_object(value: Any) -> Event:
    """Read an event that was written down.

    Raises: ValueError, KeyError or TypeError when it is not one (a torn line, another version's kind).
    """
    at = datetime.fromisoformat(value["at"])
    if at.tzinfo is None:
        raise ValueError(f"a time without a zone: {value['at']}")
    return Event(
        id=int(value["id"]),
        at=at,
        kind=Kind(value["kind"]),
        request_id=str(value["request_id"]),
        fields={str(name): field for name, field in value["fields"].items() if isinstance(field, str | int | float)},
    )
