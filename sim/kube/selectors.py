"""`fieldSelector` and `labelSelector` (Kubernetes documentation, "Field Selectors", "Labels and Selectors"). Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from sim.kube.store import NODES, PODS, Json, Kind, Refused

Fits = Callable[[Json], bool]

_FIELDS = frozenset({"metadata.name", "metadata.namespace"})
_MORE_FIELDS: Mapping[Kind, frozenset[str]] = {
    PODS: frozenset({"spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "status.phase", "status.podIP"}),
    NODES: frozenset({"spec.unschedulable"}),
}
_FIELD = re.compile(r"([\w.]+)(==|=|!=)(.*)")
_EQUALITY = re.compile(r"\s*([\w./-]+)\s*(==|=|!=)\s*([\w.-]*)\s*")
_PRESENCE = re.compile(r"\s*(!?)\s*([\w./-]+)\s*")


def selector(query: Mapping[str, str], kind: Kind, namespace: str) -> Fits:
    """Whether an object is one that a list or a watch asks for. namespace: empty for all.

    Raises: Refused(400) for a selector that cannot be read, a field nobody may select by, or a set-based requirement,
    which is not simulated.
    """
    fields = [_by_field(part, kind) for part in query.get("fieldSelector", "").split(",") if part]
    labels = [_label(part) for part in query.get("labelSelector", "").split(",") if part]

    def fits(document: Json) -> bool:
        if namespace and document["metadata"].get("namespace") != namespace:
            return False
        carried = document["metadata"].get("labels") or {}
        return all(has(document) for has in fields) and all(has(carried) for has in labels)

    return fits


def _by_field(text: str, kind: Kind) -> Fits:
    found = _FIELD.fullmatch(text)
    if found is None:
        raise Refused(400, "BadRequest", f"invalid selector: {text}")
    name, operator, value = found.groups()
    if name not in _FIELDS | _MORE_FIELDS.get(kind, frozenset()):
        raise Refused(400, "BadRequest", f"field label not supported: {name}")
    return lambda document: (_field(document, name) == value) == (operator != "!=")


def _field(document: Json, name: str) -> str:
    outer, inner = name.split(".")
    return str(document.get(outer, {}).get(inner, ""))


def _label(text: str) -> Callable[[Mapping[str, str]], bool]:
    if found := _EQUALITY.fullmatch(text):
        key, operator, value = found.groups()
        if operator == "!=":
            return lambda carried: carried.get(key) != value
        return lambda carried: carried.get(key) == value
    if found := _PRESENCE.fullmatch(text):
        absent, key = found.groups()
        return lambda carried: (key not in carried) == bool(absent)
    raise Refused(400, "BadRequest", f"unable to parse requirement: {text}")
