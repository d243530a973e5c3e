"""Serves an ASGI application on the agent's socket, and closes politely."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from agent.runtime.connection import Connection, ReaderConnection

KEEP_ALIVE_S = 5
"""How long an idle connection stays open; clients are local and short-lived."""


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals belong to whoever owns the process; uvicorn would re-raise them and end it before anyone cleans up.
        yield


async def serve(
    app: Any,
    sock: socket.socket,
    *,
    drain_s: float = 5.0,
    read_only: bool = False,
    max_connections: int | None = None,
) -> None:
    """Serve the ASGI `app` on `sock` until cancelled; then stop accepting and let requests in flight finish.

    drain_s: how long requests in flight may take after that, rounded up to whole seconds; then they are cancelled.
    read_only: says so to the app, see `connection.READ_ONLY`.
    max_connections: what comes beyond is answered with 503.
    Uses httptools for parsing and whatever event loop is running. Closes `sock`.

    Cancel: drains first, then raises CancelledError. A second cancellation is ignored: the drain has its own deadline.
    """
    config = uvicorn.Config(
        app,
        http=ReaderConnection if read_only else Connection,
        limit_concurrency=max_connections,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(drain_s),
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[sock]), name="uvicorn")
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
            server.should_exit = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
