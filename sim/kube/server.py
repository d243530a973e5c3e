"""The HTTP side: paths, verbs, list, watch, bookmarks, merge patches and `Status` errors.

Kubernetes documentation, "Kubernetes API Concepts". Unlike a real one it knows a few resources only, field selectors on
two fields, and no paging (a real one does not page out of its cache either, which is where lists of version 0 come
from). `tests/contract` holds it and a real one to the same scenarios.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from sim.kube import discovery, strategy
from sim.kube.faults import Fault, Faults, Rule
from sim.kube.selectors import selector
from sim.kube.store import EVENTS, KINDS, NODES, PODS, Json, Kind, Refused, Store, Write
from sim.kube.users import User, authorize


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    kind: Kind
    namespace: str
    name: str
    subresource: str = ""


class ApiServer:
    """One API server on 127.0.0.1. `start` and `stop` may alternate; the port and the objects stay the same.

    users: by token; without any, everybody may do everything. bookmark_s: seconds between bookmarks.
    tls: may be replaced while it is stopped. unserved: kinds whose CustomResourceDefinition is not there.
    requests: (verb, plural) of every request so far. queries: those of lists and watches, in full.
    """

    def __init__(
        self,
        *,
        users: Mapping[str, User] | None = None,
        bookmark_s: float = 60.0,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.store = Store()
        self.faults = Faults()
        self.users = dict(users or {})
        self.unserved: set[Kind] = set()
        self.requests: Counter[tuple[str, str]] = Counter()
        self.queries: list[tuple[str, str, dict[str, str]]] = []
        self._bookmark_s = bookmark_s
        self._port = port
        self.tls = tls
        self._runner: web.AppRunner | None = None
        self._watches: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self._port}"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True, ssl_context=self.tls)
        await site.start()
        if self._port == 0:
            self._port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Refuse connections, and cut those there are."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            self.cut_watches()
            await runner.cleanup()

    def cut_watches(self) -> None:
        """Close the connection of every open watch."""
        for task in self._watches:
            task.cancel()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        try:
            if request.method == "GET" and (found := discovery.document(request.path)) is not None:
                return web.json_response(found)
            target = _target(request.path)
            if target.kind in self.unserved:
                return web.Response(status=404, text="404 page not found\n")
            verb = _verb(request, target)
            self.requests[verb, target.kind.plural] += 1
            self.queries.append((verb, target.kind.plural, dict(request.query)))
            rule = self.faults.take(verb, target.kind.plural)
            if rule is not None and rule.fault is Fault.HANG:
                async with self._cuttable(request):
                    await asyncio.Event().wait()
            if rule is not None and rule.fault not in {Fault.STALE, Fault.GONE_IN_STREAM, Fault.END_AT_ONCE}:
                return await _misbehave(request, target, rule)
            self._authorize(request, verb, target)
            if verb == "watch":
                return await self._watch(request, target, rule)
            return web.json_response(
                await self._carry_out(request, verb, target, rule), status=201 if verb == "create" else 200
            )
        except Refused as refused:
            headers = {} if refused.retry_after_s is None else {"Retry-After": str(refused.retry_after_s)}
            return web.json_response(_status(refused), status=refused.code, headers=headers)

    def _authorize(self, request: web.Request, verb: str, target: _Target) -> None:
        authorize(
            self.users,
            request.headers.get("Authorization", ""),
            verb=verb,
            kind=target.kind,
            namespace=target.namespace,
            name=target.name,
        )

    async def _carry_out(self, request: web.Request, verb: str, target: _Target, rule: Rule | None) -> Json:
        match verb:
            case "list":
                return self._list(request.query, target, rule)
            case "get":
                return self.store.get(target.kind, target.namespace, target.name)
            case "create":
                document = await _body(request, "application/json")
                return await self.store.create(
                    target.kind, target.namespace, strategy.created(target.kind, target.namespace, document)
                )
            case "patch":
                body = await _body(request, *strategy.patch_types(target.kind))
                patch = strategy.patched(target.kind, body, subresource=target.subresource)
                return await self.store.patch(target.kind, target.namespace, target.name, patch)
            case "delete":
                return await self._delete(request, target)
            case _:
                raise Refused(405, "MethodNotAllowed", f"{verb} is not supported")

    async def _delete(self, request: web.Request, target: _Target) -> Json:
        found = self.store.get(target.kind, target.namespace, target.name)
        asked = request.query.get("gracePeriodSeconds")
        stay_s = strategy.grace_s(target.kind, found, None if asked is None else int(asked))
        if not stay_s:
            return await self.store.delete(target.kind, target.namespace, target.name)
        mark = strategy.leaving(stay_s, datetime.now(tz=UTC))
        return await self.store.patch(target.kind, target.namespace, target.name, mark)

    def _list(self, query: Mapping[str, str], target: _Target, rule: Rule | None) -> Json:
        if rule is not None and rule.fault is Fault.STALE:
            return _collection(target.kind, [], self.store.oldest - 500)
        wanted = query.get("resourceVersion", "")
        if query.get("resourceVersionMatch") and not wanted:
            raise Refused(422, "Invalid", "resourceVersionMatch is forbidden unless resourceVersion is provided")
        if wanted and int(wanted) > self.store.version:
            raise Refused(
                504,
                "Timeout",
                f"Timeout: Too large resource version: {wanted}, current: {self.store.version}",
                retry_after_s=1,
            )
        fits = selector(query, target.kind, target.namespace)
        return _collection(
            target.kind, [one for one in self.store.objects(target.kind) if fits(one)], self.store.version
        )

    async def _watch(self, request: web.Request, target: _Target, rule: Rule | None) -> web.StreamResponse:
        _check_initial_events(request)
        selector(request.query, target.kind, target.namespace)  # refused before anything is sent
        version = int(request.query.get("resourceVersion") or 0)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if rule is not None and rule.fault is Fault.END_AT_ONCE:
            return response
        if rule is not None:
            await response.write(
                _failure(Refused(410, "Expired", "The resourceVersion for the provided watch is too old."))
            )
            return response
        async with self._cuttable(request):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(float(request.query.get("timeoutSeconds", "1800"))):
                    await self._stream(request, response, target, version)
        return response

    @contextlib.asynccontextmanager
    async def _cuttable(self, request: web.Request) -> AsyncIterator[None]:
        """A request that lasts until `cut_watches`, which closes its connection."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101
        self._watches.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if request.transport is not None:
                request.transport.abort()
            raise
        finally:
            self._watches.discard(task)

    async def _stream(self, request: web.Request, response: web.StreamResponse, target: _Target, version: int) -> None:
        fits = selector(request.query, target.kind, target.namespace)
        bookmarks = _says(request, "allowWatchBookmarks")
        initial = _says(request, "sendInitialEvents")
        if initial or version == 0:  # "start at any": what there is comes first
            version = self.store.version
            for one in self.store.objects(target.kind):
                if fits(one):
                    await response.write(_line({"type": "ADDED", "object": one}))
        began = self.store.version
        if initial and bookmarks:
            await response.write(_line(_bookmark(target.kind, version, ends_initial=True)))
        while True:
            try:
                writes, version = list(self.store.since(target.kind, version)), self.store.version
            except Refused as refused:  # a watch that began well fails by an event, 410 too
                await response.write(_failure(refused))
                return
            for write in writes:
                if (event := _event(write, fits)) is not None:
                    await response.write(_line(event))
            try:
                async with asyncio.timeout(self._bookmark_s), self.store.changed:
                    while self.store.version == version:
                        await self.store.changed.wait()
            except TimeoutError:
                # A real one bookmarks nothing that had happened when the watch began (cacheWatcher.process).
                if bookmarks and version > began:
                    await response.write(_line(_bookmark(target.kind, version)))


_MISSHAPEN_EVENTS: tuple[Json, ...] = (
    {"type": "ADDED", "object": {"metadata": [1]}},
    {"type": "DELETED", "object": {"metadata": None}},
    {"type": "BOOKMARK", "object": {"metadata": "x"}},
    {"type": "SOMETHING", "object": {}},
    {"type": "ERROR", "object": {"code": "many"}},
)


async def _misbehave(request: web.Request, target: _Target, rule: Rule) -> web.StreamResponse:
    match rule.fault:
        case Fault.THROTTLE:
            raise Refused(429, "TooManyRequests", "too many requests", retry_after_s=rule.retry_after_s)
        case Fault.FORBIDDEN:
            raise Refused(403, "Forbidden", f"{target.kind.qualified} is forbidden: User cannot do this")
        case Fault.UNAVAILABLE:
            return web.Response(status=503, text="upstream connect error")
        case Fault.MISSHAPEN if _is_watch(request):
            return web.Response(body=b"".join(map(_line, _MISSHAPEN_EVENTS)))
        case Fault.MISSHAPEN:
            return web.json_response({"metadata": ["no"], "items": "none"})
        case Fault.GARBAGE:
            return web.Response(text="<html>captive portal</html>")
        case _:
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            if _is_watch(request):
                await response.prepare(request)
                await response.write(b'{"type":"MODIF')
            if request.transport is not None:
                request.transport.abort()
            return response
    raise AssertionError(rule)


def _target(path: str) -> _Target:
    for kind in KINDS:
        rest = path.removeprefix(f"{kind.prefix}/")
        if rest == path:
            continue
        subresource = "status" if rest.endswith("/status") else ""
        rest = rest.removesuffix("/status")
        match rest.split("/"):
            case [plural] if plural == kind.plural:
                return _Target(kind=kind, namespace="", name="")
            case [plural, name] if plural == kind.plural and not kind.namespaced:
                return _Target(kind=kind, namespace="", name=name, subresource=subresource)
            case ["namespaces", namespace, plural] if plural == kind.plural and kind.namespaced:
                return _Target(kind=kind, namespace=namespace, name="")
            case ["namespaces", namespace, plural, name] if plural == kind.plural and kind.namespaced:
                return _Target(kind=kind, namespace=namespace, name=name, subresource=subresource)
    raise Refused(404, "NotFound", "the server could not find the requested resource")


def _is_watch(request: web.Request) -> bool:
    return _says(request, "watch")


def _says(request: web.Request, name: str) -> bool:
    return request.query.get(name) in {"1", "true"}


def _check_initial_events(request: web.Request) -> None:
    """pkg/apis/meta/internalversion/validation: the two belong together."""
    wanted, match = request.query.get("sendInitialEvents"), request.query.get("resourceVersionMatch")
    if wanted is not None and match != "NotOlderThan":
        raise Refused(422, "Invalid", "resourceVersionMatch: Forbidden: sendInitialEvents requires NotOlderThan")
    if wanted is None and match:
        raise Refused(
            422, "Invalid", "resourceVersionMatch: Forbidden: is forbidden for watch unless sendInitialEvents"
        )


def _verb(request: web.Request, target: _Target) -> str:
    match request.method:
        case "GET" if target.name:
            return "get"
        case "GET":
            return "watch" if _is_watch(request) else "list"
        case method:
            return {"POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(method, method.lower())


async def _body(request: web.Request, *content_types: str) -> Json:
    if request.content_type not in content_types:
        raise Refused(415, "UnsupportedMediaType", f"{request.content_type}: use {' or '.join(content_types)}")
    try:
        found = json.loads(await request.read())
    except ValueError as error:
        raise Refused(400, "BadRequest", f"not JSON: {error}") from error
    return dict(found)


def _event(write: Write, fits: Callable[[Json], bool]) -> Json | None:
    """What a watch with a selector sees of a write: an object that stops to fit is DELETED to it."""
    before = write.before is not None and fits(write.before)
    after = write.after is not None and fits(write.after)
    if after:
        return {"type": "MODIFIED" if before else "ADDED", "object": write.after}
    if before and write.before is not None:
        last = {**write.before, "metadata": {**write.before["metadata"], "resourceVersion": str(write.version)}}
        return {"type": "DELETED", "object": last}
    return None


def _bookmark(kind: Kind, version: int, *, ends_initial: bool = False) -> Json:
    metadata: Json = {"resourceVersion": str(version), "creationTimestamp": None}
    if ends_initial:
        metadata["annotations"] = {"k8s.io/initial-events-end": "true"}
    return {"type": "BOOKMARK", "object": {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": metadata}}


def _collection(kind: Kind, items: list[Json], version: int) -> Json:
    # The items of a real list carry neither kind nor apiVersion.
    bare = [{key: value for key, value in one.items() if key not in {"kind", "apiVersion"}} for one in items]
    return {
        "kind": f"{kind.kind}List",
        "apiVersion": kind.api_version,
        "metadata": {"resourceVersion": str(version)},
        "items": bare,
    }


def _status(refused: Refused) -> Json:
    details: Json = {}
    if refused.field:
        details["causes"] = [{"reason": "FieldValueInvalid", "message": refused.message, "field": refused.field}]
    if refused.retry_after_s is not None:
        details["retryAfterSeconds"] = refused.retry_after_s
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": refused.message,
        "reason": refused.reason,
        "details": details,
        "code": refused.code,
    }


def _failure(refused: Refused) -> bytes:
    return _line({"type": "ERROR", "object": _status(refused)})


def _line(event: Json) -> bytes:
    return json.dumps(event).encode() + b"\n"


def a_node(name: str, *, max_pods: int = 110, **metadata: Any) -> Json:
    """A v1 Node as a kubelet registers one, in the parts that matter here."""
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}, **metadata},
        "spec": {"providerID": f"aws:///zone/{name}"},
        "status": {"capacity": {"cpu": "4", "pods": str(max_pods)}, "allocatable": {"pods": str(max_pods)}},
    }


def a_pod(name: str, node: str, *, host_network: bool = False, phase: str = "Pending") -> Json:
    """A v1 Pod that is bound to a node."""
    spec: Json = {"nodeName": node, "containers": [{"name": "main", "image": "pause"}]}
    if host_network:
        spec["hostNetwork"] = True
    return {"metadata": {"name": name, "labels": {"app": name}}, "spec": spec, "status": {"phase": phase}}


__all__ = ["EVENTS", "NODES", "PODS", "ApiServer", "a_node", "a_pod"]
