"""Requests to the API server: their deadlines, and their errors in our words.

Kubernetes documentation, "Kubernetes API Concepts": list and watch, resource versions, bookmarks, 410 Gone; errors are
`Status` objects. Watches are lines of JSON in a body that does not end.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import aiohttp

from agent.errors import Cause, ClusterConflict, ClusterExpired, ClusterFailed, ClusterGone, Evidence
from agent.kube.access import Access, unusable
from agent.kube.library import RESTClientObject

REQUEST_S = 10.0
"""For one request that has an end. The API server itself gives a list up to 60 s; a node's few pods take milliseconds,
and whoever waits here has a backoff."""
CONNECT_S = 5.0
WATCH_GRACE_S = 30.0
"""How much longer than asked for a watch may stay open: after that the other side is gone."""
MAX_LINE_BYTES = 8 * 1024 * 1024
"""Of one watch event: etcd takes objects of up to 1.5 MiB, and JSON may double that."""
MERGE_PATCH = "application/merge-patch+json"
CUSTOM_GROUP = "crd.k8s.amazonaws.com"
"""The one API group that somebody has to install."""


class KubeApi:
    """One connection pool to one API server. Use as an async context manager; entering it raises ClusterFailed."""

    def __init__(self, access: Access, *, user_agent: str, request_s: float = REQUEST_S) -> None:
        self._access = access
        self._user_agent = user_agent
        self._request_s = request_s
        self._client: RESTClientObject
        self._distrusted: RESTClientObject | None = None

    async def __aenter__(self) -> Self:
        self._client = await self._connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def _connect(self) -> RESTClientObject:
        try:
            async with asyncio.timeout(self._request_s):
                await self._access.renew()
            return RESTClientObject(self._access.configuration)
        except TimeoutError as error:
            raise unusable("the credentials' plugin did not answer in time") from error
        except (OSError, ValueError) as error:
            raise unusable(f"the certificates for {self._access.server} cannot be used: {error}") from error

    async def _trusted_client(self) -> RESTClientObject:
        """The client; a new one after a certificate was not accepted: the authority's file may have been replaced."""
        if self._distrusted is self._client:
            fresh = await self._connect()
            stale, self._client = self._client, fresh
            await stale.close()
        return self._client

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """GET an object or a list. Raises: ClusterFailed and its subclasses."""
        return await self._whole("GET", path, query=query)

    async def create(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """POST a new object. Raises: ClusterFailed and its subclasses. Not repeatable, unless its name is fixed."""
        return await self._whole("POST", path, body=document, content_type="application/json")

    async def merge_patch(self, path: str, document: Mapping[str, Any]) -> dict[str, Any]:
        """PATCH by JSON merge patch (RFC 7386). Raises: ClusterFailed and its subclasses."""
        return await self._whole("PATCH", path, body=document, content_type=MERGE_PATCH)

    async def watch(
        self,
        path: str,
        query: Mapping[str, str],
        *,
        open_s: int,
        take: Callable[[dict[str, Any]], None],
        opened: Callable[[], None] = lambda: None,
    ) -> None:
        """Hand every event of a watch to `take`, until the server ends it, which it is asked to do after `open_s`.

        opened: called once the server has agreed, perhaps long before the first event.

        Raises: ClusterFailed and its subclasses; an event that carries an error is one. Whatever `take` raises.
        """
        asked = {**query, "watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(open_s)}
        try:
            async with asyncio.timeout(self._request_s) as deadline, self._send("GET", path, query=asked) as answer:
                _notice_silence(answer)
                deadline.reschedule(asyncio.get_running_loop().time() + open_s + WATCH_GRACE_S)
                opened()
                async for event in self._events(path, answer):
                    take(event)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unanswered("watch", path, error, self._access.server) from error

    async def _events(self, path: str, answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
        buffer = b""
        async for chunk in answer.content.iter_any():
            buffer += chunk
            *lines, buffer = buffer.split(b"\n")
            if len(buffer) > MAX_LINE_BYTES:
                raise nonsense(path, f"an event of more than {MAX_LINE_BYTES} bytes")
            for line in lines:
                if line.strip():
                    yield _event(path, line)

    async def _whole(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "",
    ) -> dict[str, Any]:
        try:
            async with (
                asyncio.timeout(self._request_s),
                self._send(method, path, query=query, body=body, content_type=content_type) as answer,
            ):
                return _object(path, await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise _unanswered(method, path, error, self._access.server) from error

    @asynccontextmanager
    async def _send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "",
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        client = await self._trusted_client()
        headers = {"Accept": "application/json", "User-Agent": self._user_agent}
        if content_type:
            headers["Content-Type"] = content_type
        try:
            for credential in (await self._access.configuration.auth_settings()).values():
                headers[credential["key"]] = credential["value"]
            answer = await client.request(
                method,
                f"{self._access.server}{path}",
                query_params=dict(query or {}),
                headers=headers,
                body=body,
                _preload_content=False,
                _request_timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            )
        except aiohttp.ClientSSLError:
            self._distrusted = client
            raise
        except ValueError as error:
            raise unusable(f"the credentials for {self._access.server} cannot be used: {error}") from error
        async with answer:
            if answer.status >= 300:
                if answer.status == 401:
                    await self._access.renew()
                text = await answer.content.read(64 * 1024)
                raise failure(method, path, answer.status, text, answer.headers.get("Retry-After", ""))
            yield answer


def _notice_silence(answer: aiohttp.ClientResponse) -> None:
    """Have the kernel notice within half a minute that nobody is there any more (tcp(7)): a watch may be silent for
    minutes, and the packets of a node that was cut off are not refused but lost."""
    transport = None if answer.connection is None else answer.connection.transport
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


def failure(method: str, path: str, status: int, body: bytes, retry_after: str) -> ClusterFailed:
    """The error of an answer that is not a 2xx. body: a `Status` object, or whatever a proxy made of it."""
    try:
        said = json.loads(body)
        message = str(said.get("message", ""))
    except (ValueError, AttributeError):
        said, message = {}, body[:200].decode(errors="replace").strip()
    if status == 422 and _is_another_object(said):
        status = 409
    return _failed(f"{method} {path}", status, message, _retry_after_s(retry_after))


def _is_another_object(said: Mapping[str, Any]) -> bool:
    """Whether a patch named the uid of an object of which only the name is left: `metadata.uid` is immutable, and
    that is a precondition's only answer (client-go's controller references rely on the same)."""
    try:
        return any(one["field"] == "metadata.uid" for one in said["details"]["causes"])
    except (KeyError, TypeError):
        return False


def _failed(what: str, status: int, message: str, retry_after_s: float | None) -> ClusterFailed:
    text = f"{what}: {status} {message}".rstrip()
    evidence: Evidence = {"request": what, "status": status}
    match status:
        case 401 | 403:
            return ClusterFailed(
                Cause.KUBERNETES_DENIED,
                text,
                evidence=evidence,
                remedy="check the ClusterRole and its binding to the agent's service account",
                retry_after_s=retry_after_s,
            )
        case 404:
            remedy = "install the CustomResourceDefinition: deploy/crds" if f"/{CUSTOM_GROUP}/" in what else ""
            return ClusterGone(Cause.KUBERNETES_GONE, text, evidence=evidence, remedy=remedy)
        case 409:
            return ClusterConflict(Cause.KUBERNETES_CONFLICT, text, evidence=evidence)
        case 410:
            return ClusterExpired(Cause.KUBERNETES_EXPIRED, text, evidence=evidence)
        case _ if status == 429 or status >= 500:
            return ClusterFailed(Cause.KUBERNETES_UNAVAILABLE, text, evidence=evidence, retry_after_s=retry_after_s)
        case _:
            return ClusterFailed(Cause.KUBERNETES_REFUSED, text, evidence=evidence, retry_after_s=retry_after_s)


def _retry_after_s(text: str) -> float | None:
    """Seconds; the API server sends whole ones (RFC 9110, 10.2.3, also allows a date, which a proxy may send)."""
    return min(float(text), 300.0) if text.isascii() and text.isdigit() else None


def _event(path: str, line: bytes) -> dict[str, Any]:
    event = _object(path, line)
    if not isinstance(event.get("object"), dict) or not isinstance(event.get("type"), str):
        raise nonsense(path, "a watch event without type or object")
    if event["type"] == "ERROR":
        said = event["object"]
        code = said.get("code")
        raise _failed(f"watch {path}", code if isinstance(code, int) else 500, str(said.get("message", "")), None)
    return event


def _object(path: str, body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError as error:
        raise nonsense(path, f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise nonsense(path, "not a JSON object")
    return found


def nonsense(path: str, what: str) -> ClusterFailed:
    """The error of an answer that no API server gives."""
    return ClusterFailed(
        Cause.KUBERNETES_UNAVAILABLE, f"the API server's answer for {path} is {what}", evidence={"path": path}
    )


def _unanswered(what: str, path: str, error: Exception, server: str) -> ClusterFailed:
    match error:
        case TimeoutError():
            detail = "no answer in time"
        case aiohttp.ClientPayloadError():
            detail = "the connection ended in the middle of the answer"
        case _:
            detail = str(error) or type(error).__name__
    evidence: Evidence = {"server": server, "request": f"{what} {path}"}
    remedy = "check that this node reaches the API server; the agent goes on with what it knows"
    if isinstance(error, (aiohttp.ClientSSLError, ssl.SSLError)):
        remedy = "check the API server's certificate and the authority in the service account"
    return ClusterFailed(
        Cause.KUBERNETES_UNAVAILABLE, f"{what} {path} at {server}: {detail}", evidence=evidence, remedy=remedy
    )
