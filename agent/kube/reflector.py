"""List and watch of one collection, kept as values.

Kubernetes documentation, "Efficient detection of changes": list once, watch from the list's resource version, follow
the bookmarks, and list anew when the server says 410 Gone. What differs from the textbook:

- a list is asked for as not older than what is known, and one that is older all the same (a replica that lags) is not
  believed: the store never goes back in time while the cluster goes forward;
- every wait after a failure is drawn from the whole range (full jitter), so that the nodes of a cluster whose API
  server came back do not come all at once;
- a watch that ends at once, again and again, counts as a failure.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from agent.errors import AgentError, Cause, ClusterExpired, ClusterFailed
from agent.kube.api import KubeApi, nonsense
from agent.runtime.log import event_logger

log = event_logger(__name__)

T = TypeVar("T")

WATCH_S = (300, 600)
"""How long one watch is asked to last; client-go draws from the same range."""
LONGEST_PAUSE_S = 60.0
SHORTEST_WATCH_S = 1.0
"""A watch that ended earlier and brought nothing was refused in another form."""
STALE_PATIENCE_S = 300.0
"""How long older lists are not believed. Longer than any replica lags; after that the cluster itself went back (it was
restored from a backup)."""


def pause_s(failure_count: int, draw: float) -> float:
    """The wait after the n-th failure in a row (n >= 1), for `draw` in [0, 1): full jitter below 2, 4, ... 60 s."""
    return draw * min(LONGEST_PAUSE_S, float(2 ** min(failure_count, 16)))


def is_older(version: str, than: str) -> bool:
    """Whether a resource version is older than another. False when nobody can tell.

    They are opaque in theory; every API server counts (etcd's revision), and KEP-5504 makes it a promise.
    """
    return version.isdigit() and than.isdigit() and int(version) < int(than)


class Reflector(Generic[T]):
    """A collection, kept up to date by `run`.

    path, query: of the list; the watch is asked for with the same selectors. parse: an object's value; one that it
    cannot parse (KeyError, TypeError, ValueError) is left out. changed: called after every change, on the event loop.
    """

    def __init__(
        self,
        name: str,
        *,
        path: str,
        query: Mapping[str, str],
        parse: Callable[[Mapping[str, Any]], T],
        changed: Callable[[], None],
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.failure: AgentError | None = None
        """Why the last request failed; None when it did not."""
        self.synced = False
        """Whether the collection has been listed at least once."""
        self._path = path
        self._query = dict(query)
        self._parse = parse
        self._changed = changed
        self._draw = draw
        self._items: dict[str, T] = {}
        self._versions: dict[str, str] = {}
        self._newest = ""
        self._must_list = True
        self._failure_count = 0
        self._stale_since_s: float | None = None
        self._events_seen = 0

    @property
    def items(self) -> Mapping[str, T]:
        """By `namespace/name`, or `name` for what has no namespace. As last seen, while the API server is away."""
        return MappingProxyType(self._items)

    async def run(self, api: KubeApi) -> None:
        """List and watch until cancelled. Never raises an AgentError."""
        while True:
            try:
                if self._must_list:
                    await self._list(api)
                await self._watch(api)
            except ClusterExpired as error:
                # Not a fault: the server keeps five minutes of history. The jitter is for all the nodes it told so.
                self._must_list = True
                await self._pause(error, at_most_s=2.0)
            except AgentError as error:
                await self._pause(error)

    async def _list(self, api: KubeApi) -> None:
        # 0: any version, out of the server's cache. Without it, a list of one node's pods may make etcd read them all.
        query = {**self._query, "resourceVersion": self._newest or "0"}
        if self._newest:
            query["resourceVersionMatch"] = "NotOlderThan"
        try:
            found = await api.get(self._path, query)
        except ClusterExpired:
            self._newest = ""
            raise
        except ClusterFailed as error:
            # "Too large resource version": the server has not come as far as we have been, or never will.
            if error.evidence.get("status") == 504 and not self._may_be_lag():
                self._newest = ""
            raise
        version, documents = _version(found), found.get("items") or []
        if not version or not isinstance(documents, list):
            raise nonsense(self._path, "a list without version or items")
        if is_older(version, self._newest) and self._may_be_lag():
            raise ClusterFailed(
                Cause.KUBERNETES_UNAVAILABLE,
                f"the list of {self.name} is older than what is known: {version}, not {self._newest}",
                evidence={"listed": version, "known": self._newest},
            )
        self._stale_since_s = None
        self._items, self._versions = {}, {}
        for document in documents:
            self._put(document)
        self._newest, self._must_list = version, False
        if not self.synced:
            log.info("kubernetes_synced", collection=self.name, count=len(self._items))
        self.synced = True
        self._succeeded()
        self._changed()

    def _may_be_lag(self) -> bool:
        """Whether an older server may still be a replica that lags, and not a cluster that went back."""
        now_s = asyncio.get_running_loop().time()
        if self._stale_since_s is None:
            self._stale_since_s = now_s
        return now_s - self._stale_since_s < STALE_PATIENCE_S

    async def _watch(self, api: KubeApi) -> None:
        loop = asyncio.get_running_loop()
        began_s, seen_before = loop.time(), self._events_seen
        low_s, high_s = WATCH_S
        query = {**self._query, "resourceVersion": self._newest}
        open_s = round(low_s + self._draw() * (high_s - low_s))
        # A good watch may be silent for minutes; one that is open for so long is no refusal in another form (410 comes
        # as an event).
        proofs: list[asyncio.TimerHandle] = []
        try:
            await api.watch(
                self._path,
                query,
                open_s=open_s,
                take=self._take,
                opened=lambda: proofs.append(loop.call_later(SHORTEST_WATCH_S, self._succeeded)),
            )
        finally:
            for proof in proofs:
                proof.cancel()
        if self._events_seen == seen_before and loop.time() - began_s < SHORTEST_WATCH_S:
            raise ClusterFailed(
                Cause.KUBERNETES_UNAVAILABLE, f"the watch of {self.name} ended at once", evidence={"path": self._path}
            )
        self._succeeded()

    def _take(self, event: Mapping[str, Any]) -> None:
        document = event["object"]
        version = _version(document)
        self._events_seen += 1
        self._succeeded()
        is_new = False
        match event["type"]:
            case "ADDED" | "MODIFIED":
                is_new = self._put(document)
            case "DELETED":
                is_new = self._drop(document)
            case "BOOKMARK":
                pass
            case kind:
                log.debug("kubernetes_event_unknown", collection=self.name, type=kind)
                return
        if version and not is_older(version, self._newest):
            self._newest = version
        if is_new:
            self._changed()

    def _put(self, document: Mapping[str, Any]) -> bool:
        """Whether that makes a difference: a kubelet's heartbeat does not."""
        try:
            key, version = _key(document), str(document["metadata"].get("resourceVersion", ""))
            if is_older(version, self._versions.get(key, "")):
                return False
            item = self._parse(document)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            log.warning("kubernetes_object_unread", collection=self.name, error=repr(error))
            return False
        is_new = self._items.get(key) != item
        self._items[key], self._versions[key] = item, version
        return is_new

    def _drop(self, document: Mapping[str, Any]) -> bool:
        try:
            key = _key(document)
        except (KeyError, TypeError, AttributeError):
            return False
        self._versions.pop(key, None)
        return self._items.pop(key, None) is not None

    def _succeeded(self) -> None:
        recovered_count, self._failure_count, self.failure = self._failure_count, 0, None
        if recovered_count:
            log.info("kubernetes_recovered", collection=self.name, failures=recovered_count)
            self._changed()

    async def _pause(self, error: AgentError, *, at_most_s: float = LONGEST_PAUSE_S) -> None:
        self._failure_count += 1
        is_new = self.failure is None or self.failure.cause is not error.cause
        self.failure = error
        wait_s = max(min(pause_s(self._failure_count, self._draw()), at_most_s), error.retry_after_s or 0.0)
        if is_new:
            log.warning(
                "kubernetes_failed",
                collection=self.name,
                cause=error.cause,
                error=error.message,
                retry_after_s=round(wait_s, 3),
            )
            self._changed()
        else:
            log.debug("kubernetes_failed", collection=self.name, error=str(error), failures=self._failure_count)
        await asyncio.sleep(wait_s)


def _version(document: Mapping[str, Any]) -> str:
    """Of an object, a list or a bookmark; empty for what has none."""
    metadata = document.get("metadata")
    return str(metadata.get("resourceVersion") or "") if isinstance(metadata, dict) else ""


def _key(document: Mapping[str, Any]) -> str:
    metadata = document["metadata"]
    namespace = metadata.get("namespace")
    return f"{namespace}/{metadata['name']}" if namespace else str(metadata["name"])
