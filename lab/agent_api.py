"""The agent's HTTP API over its Unix socket, as any client would call it."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

TIMEOUT_S = 30.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(str(self._path))


def get(path: Path, route: str) -> Any:
    """GET a route of the agent that listens on `path`; the decoded body.

    Raises: OSError when nobody listens, ValueError when the answer is not a 2xx.
    """
    status, body = ask(path, route)
    if status // 100 != 2:
        raise ValueError(f"GET {route}: {status} {body}")
    return body


def ask(path: Path, route: str) -> tuple[int, Any]:
    """As `get`, but the answer may have any status: (status, decoded body).

    Raises: OSError when nobody listens.
    """
    connection = _UnixConnection(path)
    try:
        connection.request("GET", route)
        response = connection.getresponse()
        body = response.read()
    finally:
        connection.close()
    return response.status, json.loads(body)
