"""Serves an ASGI application on the agent's socket, and closes politely."""

from __future__ import annotations

import asyncio
import math
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from agent.runtime.connection import Connection, ReaderConnection
from agent.runtime.library import Config, Server

KEEP_ALIVE_S = 5
"""How long an idle connection stays open; clients are local and short-lived."""

MAX_TURNS = 1000
"""Of the event loop, to empty the backlog; one turn accepts whoever is there."""
TURNS_OF_A_CONNECTION = 3
"""From its acceptance until uvicorn knows it: a transport is made, and its protocol is told."""


class _Server(Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # Signals belong to whoever owns the process; uvicorn would re-raise them and end it before anyone cleans up.
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for sock in sockets or ():
            await _empty_backlog(sock)
        await super().shutdown(sockets)


async def serve(
    app: Any,
    sock: socket.socket,
    *,
    drain_s: float = 5.0,
    read_only: bool = False,
    max_connections: int | None = None,
) -> None:
    """Serve the ASGI `app` on `sock` until cancelled; then turn away who comes and answer who is there.

    Who is there: whose request is being served, or whose connection waits in the socket's backlog, where closing the
    socket would cut it off. Of a Unix socket the file is removed first, so that the backlog comes to an end.

    drain_s: how long requests in flight may take after that, rounded up to whole seconds; then they are cancelled.
    read_only: says so to the app, see `connection.READ_ONLY`.
    max_connections: what comes beyond is answered with 503.
    Uses httptools for parsing and whatever event loop is running. Closes `sock`.

    Cancel: drains first, then raises CancelledError. A second cancellation is ignored: the drain has its own deadline.
    """
    config = Config(
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


async def _empty_backlog(sock: socket.socket) -> None:
    """Let everybody in who has connected. Not for TCP, where nobody can be kept from connecting but by closing."""
    if sock.family != socket.AF_UNIX:
        return
    with suppress(FileNotFoundError):
        os.unlink(sock.getsockname())  # noqa: PTH108 - where pathlib would block no less
    backlog = select.poll()
    backlog.register(sock, select.POLLIN)
    quiet_turns = 0
    for _ in range(MAX_TURNS):
        quiet_turns = 0 if backlog.poll(0) else quiet_turns + 1
        if quiet_turns > TURNS_OF_A_CONNECTION:
            return
        await asyncio.sleep(0)
