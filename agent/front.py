"""Everything that faces operators, put together: the journal and its log on disk, metrics, and the doors to them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi import FastAPI

from agent.events.journal import Journal
from agent.events.store import EventStore, keep
from agent.node import Node
from agent.runtime.log import current_request_id, event_logger
from agent.runtime.readers_socket import readers_socket
from agent.runtime.socket_server import serve
from agent.service import AgentService
from agent.service.metrics import Metrics
from agent.service.operators import Desk
from agent.settings import Settings
from agent.shim_log import follow_shim_log
from api.app import create_app
from api.aws_node import introspection_app, metrics_app

log = event_logger(__name__)

METRICS_PORT = 61678
"""The AWS plugin's, on every address."""
MAX_READERS = 64
"""Connections to the readers' socket, and to each TCP port, at the same time."""

Tasks = Mapping[str, Callable[[], Coroutine[Any, Any, None]]]


class Front:
    """Made before the node, which it is handed to."""

    def __init__(self, chosen: Settings, version: str) -> None:
        self._chosen = chosen
        self._version = version
        self.journal = Journal(request_id=current_request_id)
        self.metrics = Metrics(version)
        directory = chosen.event_log_directory
        self._store = None if directory is None else EventStore(directory)

    def background(self) -> Tasks:
        """Long-lived tasks that outlive the doors."""
        tasks: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "shim log": partial(follow_shim_log, self._chosen.socket)
        }
        if self._store is not None:
            tasks["event log"] = partial(keep, self.journal, self._store)
        return tasks

    @contextmanager
    def doors(self, node: Node, sock: socket.socket) -> Iterator[Tasks]:
        """One task per open door: the agent's socket, and what the settings ask for.

        Raises: OSError when a port or the readers' socket cannot be had.
        """
        self.metrics.watch(node, self.journal)
        desk = Desk(
            chosen=self._chosen,
            version=self._version,
            journal=self.journal,
            store=self._store,
            metrics=self.metrics,
            since=datetime.now(tz=UTC),
        )
        service = AgentService(node, desk)
        app = create_app(service)
        doors: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {"door": partial(serve, app, sock)}
        bounded = partial(serve, read_only=True, max_connections=MAX_READERS)
        with ExitStack() as stack:
            if self._chosen.readers_socket is not None:
                group_id = self._chosen.readers_group_id
                own = stack.enter_context(readers_socket(self._chosen.readers_socket, group_id=group_id))
                doors["readers' door"] = partial(bounded, app, own)
            if not self._chosen.disable_introspection:
                own = stack.enter_context(_listening(self._chosen.introspection_address))
                doors["introspection"] = partial(bounded, introspection_app(service), own)
            if not self._chosen.disable_metrics:
                own = stack.enter_context(_listening(("0.0.0.0", METRICS_PORT)))
                doors["metrics"] = partial(bounded, metrics_app(service), own)
            if self._chosen.dev_http is not None:
                own = stack.enter_context(_listening(self._chosen.dev_http))
                doors["dev HTTP"] = _dev_door(app, own, self._chosen)
            yield doors


def _dev_door(app: FastAPI, sock: socket.socket, chosen: Settings) -> Callable[[], Coroutine[Any, Any, None]]:
    # Imported here: an agent without this port does not carry it.
    from api.dev.site import dev_site  # noqa: PLC0415

    allow = chosen.dev_http_allow
    log.warning(
        "dev_http_without_authentication",
        notice="everybody who reaches this port reads everything" + (" and may change it" if "writes" in allow else ""),
        allow=",".join(allow),
    )
    site = dev_site(app, writes="writes" in allow)
    return partial(serve, site, sock, read_only=True, max_connections=MAX_READERS)


def _listening(address: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    log.info("tcp_door", address=f"{address[0]}:{address[1]}")
    return sock
