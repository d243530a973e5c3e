"""Requests to an ASGI application without a server or a client library in between."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers with lower-case names, body."""


def post(app: FastAPI, path: str, body: bytes, *, split_at: int = 0) -> Answer:
    """POST `body` in two pieces."""
    return asyncio.run(request(app, "POST", path, body, split_at=split_at))


def get(app: FastAPI, path: str) -> Answer:
    """GET `path`, which may have a query."""
    return asyncio.run(request(app, "GET", path))


async def request(app: FastAPI, method: str, target: str, body: bytes = b"", *, split_at: int = 0) -> Answer:
    """One request; the client stays until it has its answer."""
    path, _, query = target.partition("?")
    pieces = [
        {"type": "http.request", "body": body[:split_at], "more_body": True},
        {"type": "http.request", "body": body[split_at:], "more_body": False},
    ]
    answered = asyncio.Event()
    status, headers, parts = 0, dict[str, str](), list[bytes]()

    async def receive() -> dict[str, Any]:
        if pieces:
            return pieces.pop(0)
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            headers.update((name.decode(), value.decode()) for name, value in message["headers"])
        else:
            parts.append(message["body"])

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost")],
        "client": None,
        "server": None,
        "enoki.peer": (1, 0, 0),
    }
    await app(scope, receive, send)
    return status, headers, b"".join(parts)
