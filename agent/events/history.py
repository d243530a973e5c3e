"""Pure: who held an address, and when, as far as the events reach."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from agent.events.model import Event, Kind

_HELD = frozenset({"held", "quarantined"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenure:
    """One holder of one address, from `since` until `until`.

    until: None while it lasts. known_end: False when nobody saw the end (the agent was down): `until` is then the
    time of the first event that contradicts it.
    """

    address: str
    eni: str
    namespace: str
    pod: str
    container_id: str
    ifname: str
    since: datetime
    until: datetime | None = None
    known_end: bool = True


def tenures(events: Iterable[Event], address: str) -> tuple[Tenure, ...]:
    """Everybody who held `address`, oldest first. `events` in order of their ids; doubles do no harm."""
    found: list[Tenure] = []
    last_id = -1
    for event in events:
        if event.kind is not Kind.ADDRESS or event.fields.get("address") != address or event.id <= last_id:
            continue
        last_id = event.id
        current = found[-1] if found and found[-1].until is None else None
        if event.fields.get("after") in _HELD:
            new = _tenure(event)
            if current is not None and _same_holder(current, new):
                continue
            if current is not None:
                found[-1] = replace(current, until=event.at, known_end=False)
            found.append(new)
        elif current is not None:
            found[-1] = replace(current, until=event.at, known_end=event.fields.get("before") in _HELD)
    return tuple(found)


def _tenure(event: Event) -> Tenure:
    def text(name: str) -> str:
        return str(event.fields.get(name, ""))

    return Tenure(
        address=text("address"),
        eni=text("eni"),
        namespace=text("namespace"),
        pod=text("pod"),
        container_id=text("container_id"),
        ifname=text("ifname"),
        since=event.at,
    )


def _same_holder(one: Tenure, other: Tenure) -> bool:
    return (one.container_id, one.ifname) == (other.container_id, other.ifname)
