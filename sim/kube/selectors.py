"""`fieldSelector` and `labelSelector` (Kubernetes documentation, "Field Selectors", "Labels and Selectors"). Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from sim.kube.store import Json, Refused

Fits = Callable[[Json], bool]

_FIELDS = frozenset({"metadata.name", "metadata.namespace", "spec.nodeName"})
_EQUALITY = re.compile(r"\s*([\w./-]+)\s*(==|=|!=)\s*([\w.-]*)\s*")
_PRESENCE = re.compile(r"\s*(!?)\s*([\w./-]+)\s*")


def selector(query: Mapping[str, str], namespace: str) -> Fits:
    """Whether an object is one that a list or a watch asks for. namespace: empty for all.

    Raises: Refused(400) for a selector that cannot be read, a field nobody may select by, or a set-based requirement,
    which is not simulated.
    """
    fields = _fields(query.get("fieldSelector", ""))
    labels = [_label(part) for part in query.get("labelSelector", "").split(",") if part]

    def fits(document: Json) -> bool:
        if namespace and document["metadata"].get("namespace") != namespace:
            return False
        carried = document["metadata"].get("labels") or {}
        return all(_field(document, name) == value for name, value in fields) and all(has(carried) for has in labels)

    return fits


def _fields(text: str) -> list[tuple[str, str]]:
    wanted = []
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        if name not in _FIELDS:
            raise Refused(400, "BadRequest", f"field label not supported: {name}")
        wanted.append((name, value.removeprefix("=")))
    return wanted


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
