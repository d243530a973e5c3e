"""Objects with resource versions and a history, as etcd and the API server's watch cache keep them.

Kubernetes documentation, "Kubernetes API Concepts": every write gets the next version, of all objects together; a watch
from a version sees every later write; a version older than the history is 410 Gone.
"""

from __future__ import annotations

import asyncio
import copy
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Json = dict[str, Any]


class Refused(Exception):
    """A `Status` failure. reason: as metav1.StatusReason spells it. field: which one of the object is to blame."""

    def __init__(
        self, code: int, reason: str, message: str, *, retry_after_s: int | None = None, field: str = ""
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.message, self.retry_after_s = code, reason, message, retry_after_s
        self.field = field


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A resource. prefix: `/api/v1` or `/apis/<group>/<version>`."""

    prefix: str
    plural: str
    kind: str
    namespaced: bool

    @property
    def api_version(self) -> str:
        return self.prefix.removeprefix("/apis/").removeprefix("/api/")

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def qualified(self) -> str:
        """As messages name the resource: `pods`, `eniconfigs.crd.k8s.amazonaws.com`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural


PODS = Kind(prefix="/api/v1", plural="pods", kind="Pod", namespaced=True)
NODES = Kind(prefix="/api/v1", plural="nodes", kind="Node", namespaced=False)
EVENTS = Kind(prefix="/apis/events.k8s.io/v1", plural="events", kind="Event", namespaced=True)
ENI_CONFIGS = Kind(
    prefix="/apis/crd.k8s.amazonaws.com/v1alpha1", plural="eniconfigs", kind="ENIConfig", namespaced=False
)
CNI_NODES = Kind(prefix="/apis/vpcresources.k8s.aws/v1alpha1", plural="cninodes", kind="CNINode", namespaced=False)
KINDS = (PODS, NODES, EVENTS, ENI_CONFIGS, CNI_NODES)

Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One entry of the history. before, after: None for what did not or does not exist."""

    version: int
    kind: Kind
    before: Json | None
    after: Json | None


class Store:
    """Everything the API server knows. `changed` is notified after every write."""

    def __init__(self) -> None:
        self.version = 1000
        self.oldest = 1000
        """Watches from before it are 410 Gone."""
        self.changed = asyncio.Condition()
        self._objects: dict[Kind, dict[Key, Json]] = {kind: {} for kind in KINDS}
        self._history: list[Write] = []

    def objects(self, kind: Kind) -> list[Json]:
        return [copy.deepcopy(one) for one in self._objects[kind].values()]

    def get(self, kind: Kind, namespace: str, name: str) -> Json:
        """Raises: Refused(404)."""
        try:
            return copy.deepcopy(self._objects[kind][namespace, name])
        except KeyError:
            raise Refused(404, "NotFound", f'{kind.qualified} "{name}" not found') from None

    async def create(self, kind: Kind, namespace: str, document: Json) -> Json:
        """Raises: Refused(409 AlreadyExists)."""
        made = copy.deepcopy(document)
        metadata = made.setdefault("metadata", {})
        name = metadata["name"]
        if (namespace, name) in self._objects[kind]:
            raise Refused(409, "AlreadyExists", f'{kind.qualified} "{name}" already exists')
        made["apiVersion"], made["kind"] = kind.api_version, kind.kind
        if kind.namespaced:
            metadata["namespace"] = namespace
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata.setdefault("creationTimestamp", datetime.now(tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
        return await self._write(kind, (namespace, name), made)

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Mapping[str, Any]) -> Json:
        """JSON merge patch; `metadata.uid` and `metadata.resourceVersion` in it are preconditions.

        Raises: Refused(404; 409 Conflict: of another version; 422 Invalid: of another uid, which never changes).
        """
        before = self.get(kind, namespace, name)
        metadata = patch.get("metadata") or {}
        if metadata.get("resourceVersion") not in {None, before["metadata"]["resourceVersion"]}:
            raise Refused(
                409,
                "Conflict",
                f'Operation cannot be fulfilled on {kind.qualified} "{name}": the object has been modified; please'
                " apply your changes to the latest version and try again",
            )
        if (uid := metadata.get("uid")) not in {None, before["metadata"]["uid"]}:
            raise Refused(
                422,
                "Invalid",
                f'{kind.kind} "{name}" is invalid: metadata.uid: Invalid value: "{uid}": field is immutable',
                field="metadata.uid",
            )
        return await self._write(kind, (namespace, name), merge(before, patch))

    async def delete(self, kind: Kind, namespace: str, name: str) -> Json:
        """Raises: Refused(404)."""
        self.get(kind, namespace, name)
        return await self._write(kind, (namespace, name), None)

    def since(self, kind: Kind, version: int) -> Iterator[Write]:
        """Writes of a kind after a version. Raises: Refused(410)."""
        if version < self.oldest:
            raise Refused(410, "Expired", f"too old resource version: {version} ({self.oldest})")
        return iter([one for one in self._history if one.version > version and one.kind is kind])

    def compact(self) -> None:
        """Forget the history: every watch from before now is 410 Gone."""
        self._history.clear()
        self.oldest = self.version

    async def _write(self, kind: Kind, key: Key, after: Json | None) -> Json:
        async with self.changed:
            self.version += 1
            before = self._objects[kind].get(key)
            if after is None:
                assert before is not None  # noqa: S101 - `delete` has looked
                self._objects[kind].pop(key)
                gone = copy.deepcopy(before)
                gone["metadata"]["resourceVersion"] = str(self.version)
                shown = gone
            else:
                after["metadata"]["resourceVersion"] = str(self.version)
                self._objects[kind][key] = after
                shown = after
            self._history.append(Write(version=self.version, kind=kind, before=before, after=after))
            self.changed.notify_all()
        return copy.deepcopy(shown)


def merge(target: Any, patch: Any) -> Any:
    """RFC 7386: null removes, objects merge, everything else replaces."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged
