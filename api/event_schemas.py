"""What happened: events, and who held an address."""

from __future__ import annotations

from datetime import datetime

from api.schemas import Address, Scalar, View, shown


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
    """When it happened, by the node's clock."""
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
    """Pod name; empty when the runtime did not say."""
    container_id: str
    """The runtime's id of the pod's sandbox."""
    ifname: str
    """Interface name inside the container."""
    eni_id: str
    """The ENI the address belonged to."""
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
    """The address that was asked about."""
    remembered_since: datetime | None
    """The time of the oldest event that is still known; null when there is none."""
    tenures: list[TenureView]
    """Its holders; empty when none is known."""
