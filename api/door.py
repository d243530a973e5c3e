"""Who may do what: an ASGI layer in front of every route. What a caller says of itself counts for nothing.

The server puts what the kernel says of the caller into the scope (`PEER`, `READ_ONLY`). Without it nobody may change
anything.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.cni_output import render_error
from api.problems import CniCode, CniError

PEER = "enoki.peer"
"""Scope key: (pid, uid, gid) of the process that connected, from SO_PEERCRED (unix(7))."""
READ_ONLY = "enoki.read_only"
"""Scope key: True for a connection to the socket for readers."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""RFC 9110, section 9.2.1."""
MAX_BODY_BYTES = 64 * 1024
"""Of a request outside `/v1/cni`, which has its own bound."""
RATE_PER_S = 50.0
BURST = 100.0
"""Requests of one user who is not root: a dashboard's worth."""
MAX_USERS = 1024
"""Users whose rate is remembered."""

_CNI = "/v1/cni/"


class Door:
    """clock: monotonic seconds."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._clock = clock
        self._root = {0, os.geteuid()}
        self._buckets: dict[int, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        is_cni = scope["path"].startswith(_CNI)
        await self._app(scope, receive if is_cni else _bounded(receive), send)

    def _refusal(self, scope: Scope) -> Response | None:
        """What a caller is told who may not; None for one who may."""
        peer = scope.get(PEER)
        uid = peer[1] if peer else None
        if uid not in self._root and not self._has_token(-1 if uid is None else uid):
            return _answer(scope, 429, f"more than {RATE_PER_S:g} requests a second", {"retry-after": "1"})
        if scope["method"] in SAFE_METHODS:
            return None
        if scope.get(READ_ONLY):
            return _answer(scope, 403, f"{scope['method']} on the socket that is for reading only")
        if uid not in self._root:
            who = "a caller the kernel does not name" if uid is None else f"user {uid}"
            return _answer(scope, 403, f"{scope['method']} is for root only, and this is {who}")
        if not scope["path"].startswith(_CNI) and _content_length(scope) > MAX_BODY_BYTES:
            return _answer(scope, 413, f"the request is larger than {MAX_BODY_BYTES} bytes")
        return None

    def _has_token(self, uid: int) -> bool:
        now_s = self._clock()
        tokens, at_s = self._buckets.pop(uid, (BURST, now_s))
        tokens = min(BURST, tokens + (now_s - at_s) * RATE_PER_S)
        if len(self._buckets) >= MAX_USERS:
            self._buckets.pop(next(iter(self._buckets)))
        self._buckets[uid] = (max(0.0, tokens - 1.0), now_s)
        return tokens >= 1.0


def _answer(scope: Scope, status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    if scope["path"].startswith(_CNI):
        body: str | bytes = render_error(CniError(CniCode.FORBIDDEN, detail, http_status=status), "1.1.0")
        return Response(body, status, headers=headers, media_type="application/json")
    problem = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return Response(json.dumps(problem), status, headers=headers, media_type="application/problem+json")


def _content_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:18])
    return 0


def _bounded(receive: Receive) -> Receive:
    """Cut a body that came without a length, or with a wrong one."""
    size_bytes = 0

    async def bounded() -> Message:
        nonlocal size_bytes
        message: MutableMapping[str, Any] = await receive()
        size_bytes += len(message.get("body", b""))
        if size_bytes > MAX_BODY_BYTES:
            raise HTTPException(413)
        return message

    return bounded
