"""Pure: one pod's story out of log lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]


def select(
    lines: Sequence[Line], *, namespace: str | None = None, pod: str | None = None, request_id: str | None = None
) -> list[Line]:
    """The lines that name the pod or the request, and those of every request that names the pod. In order.

    A line of the pool carries the ids of all requests that wait for it, joined by commas. Nothing given: all lines.
    """
    if namespace is None and pod is None and request_id is None:
        return list(lines)
    named = [_names(line, namespace, pod) for line in lines]
    wanted = {one for line, is_named in zip(lines, named, strict=True) if is_named for one in _requests(line)}
    if request_id is not None:
        wanted = {request_id} if namespace is None and pod is None else wanted & {request_id}
        named = [False] * len(named)
    return [
        line for line, is_named in zip(lines, named, strict=True) if is_named or not wanted.isdisjoint(_requests(line))
    ]


def _names(line: Line, namespace: str | None, pod: str | None) -> bool:
    if namespace is None and pod is None:
        return False
    said = str(line.get("pod", "")).partition(" ")[0]  # `namespace/pod (container/ifname)`, or the pod's name alone
    said_namespace, slash, said_pod = said.rpartition("/")
    if not slash:
        said_namespace = str(line.get("namespace", ""))
    return bool(said_pod) and namespace in {None, said_namespace} and pod in {None, said_pod}


def _requests(line: Line) -> list[str]:
    return [one for one in str(line.get("request_id", "")).split(",") if one]
