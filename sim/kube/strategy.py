"""What an API server makes of an object that somebody writes, and what it refuses. Pure.

kubernetes/pkg/registry/core: the strategies of pods, nodes and events; pkg/apis/core/validation/events.go. Only what a
node agent can see of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sim.kube.store import CNI_NODES, ENI_CONFIGS, EVENTS, NODES, PODS, Json, Kind, Refused

GRACE_S = 30
"""Default of a pod's `terminationGracePeriodSeconds`."""
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
_CUSTOM = frozenset({ENI_CONFIGS, CNI_NODES})


def patch_types(kind: Kind) -> tuple[str, ...]:
    """How an object of this kind may be patched; custom resources know no strategic merge patch."""
    return (MERGE_PATCH,) if kind in _CUSTOM else (MERGE_PATCH, STRATEGIC_PATCH)


def created(kind: Kind, namespace: str, document: Json) -> Json:
    """What is stored of a new object. Raises: Refused(422)."""
    if kind is EVENTS:
        check_event(document, namespace)
    if kind is ENI_CONFIGS and (document.get("kind"), document.get("apiVersion")) != (kind.kind, kind.api_version):
        raise Refused(400, "BadRequest", f"the object provided is unrecognized (must be of type {kind.kind})")
    if kind is ENI_CONFIGS and not isinstance((document.get("spec") or {}).get("subnet"), str):
        raise Refused(422, "Invalid", f"{_named(kind, document)} is invalid: spec.subnet: Required value")
    if kind is PODS:  # its status is the kubelet's
        return {**document, "status": {"phase": "Pending"}}
    return document


def patched(kind: Kind, patch: Mapping[str, Any], *, subresource: str) -> Json:
    """What of a patch counts: the status has an address of its own. Raises: Refused(422)."""
    if subresource == "status":
        return {key: value for key, value in patch.items() if key == "status"}
    if kind is EVENTS and set(patch) - {"series"}:
        changed = min(set(patch) - {"series"})
        raise Refused(422, "Invalid", f"Event.events.k8s.io is invalid: {changed}: Invalid value: field is immutable")
    if kind is EVENTS:
        check_series(patch)
    if kind in {PODS, NODES}:
        return {key: value for key, value in patch.items() if key != "status"}
    return dict(patch)


def grace_s(kind: Kind, document: Json, asked_s: int | None) -> int:
    """How long an object that is deleted stays, for its kubelet; 0: it goes at once."""
    spec = document.get("spec") or {}
    finished = (document.get("status") or {}).get("phase") in {"Succeeded", "Failed"}
    if kind is not PODS or not spec.get("nodeName") or finished:
        return 0
    return int(spec.get("terminationGracePeriodSeconds", GRACE_S)) if asked_s is None else asked_s


def leaving(seconds: int, now: datetime) -> Json:
    """The patch that marks an object as being deleted. now: in UTC."""
    at = (now + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"metadata": {"deletionTimestamp": at, "deletionGracePeriodSeconds": seconds}}


def check_event(document: Json, namespace: str) -> None:
    """What the API server requires of an events.k8s.io/v1 Event. Raises: Refused(422)."""
    problems = [
        field
        for field in ("eventTime", "reportingController", "reportingInstance", "action", "reason", "type")
        if not document.get(field)
    ]
    limits = (("reportingInstance", 128), ("action", 128), ("reason", 128), ("note", 1024))
    problems += [field for field, size in limits if len(str(document.get(field, "")).encode()) > size]
    if document.get("type") not in {"Normal", "Warning"}:
        problems.append("type")
    regarding = document.get("regarding") or {}
    if not regarding.get("namespace") and namespace not in {"default", "kube-system"}:
        problems.append("involvedObject.namespace")
    deprecated = ("deprecatedCount", "deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedSource")
    problems += [field for field in deprecated if document.get(field)]
    if problems:
        raise Refused(422, "Invalid", f"{_named(EVENTS, document)} is invalid: {', '.join(problems)}")
    check_series(document)


def check_series(document: Mapping[str, Any]) -> None:
    """Raises: Refused(422)."""
    series = document.get("series")
    if series is not None and (series.get("count", 0) < 2 or not series.get("lastObservedTime")):
        raise Refused(422, "Invalid", "Event.events.k8s.io is invalid: series")


def _named(kind: Kind, document: Json) -> str:
    name = (document.get("metadata") or {}).get("name", "")
    return f'{kind.kind}{"." if kind.group else ""}{kind.group} "{name}"'
