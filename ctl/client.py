"""The agent's HTTP API over its Unix socket, with the standard library."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

DEFAULT_SOCKET = "/run/enoki/agent.sock"
TIMEOUT_S = 10.0
"""For one answer. The slowest takes the agent a look at the kernel: milliseconds."""
SILENCE_S = 60.0
"""A stream of events says something every 15 s, so a minute without a word means that the agent is gone."""


class Unreachable(Exception):
    """Nobody answers on the socket."""


class Refused(Exception):
    """The agent answered with a problem (RFC 9457). status: HTTP status."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSentEvent:
    """One event of a stream. name: its kind, or `missed`."""

    name: str
    data: dict[str, Any]


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """One agent. socket_path: None for `ENOKI_SOCKET`, or the default."""

    def __init__(self, socket_path: str | None = None) -> None:
        self.socket_path = socket_path or os.environ.get("ENOKI_SOCKET") or DEFAULT_SOCKET  # noqa: TID251

    def get(
        self, *steps: str, allow: tuple[int, ...] = (), timeout_s: float = TIMEOUT_S, **query: str | int | None
    ) -> Any:
        """GET the path of these steps; the decoded answer. allow: statuses beside 2xx whose body is an answer too.

        Raises: Unreachable, Refused.
        """
        status, body = self._ask("GET", _target(steps, query), None, timeout_s)
        return _decoded(status, body, allow)

    def put(self, *steps: str, body: Mapping[str, Any]) -> Any:
        """PUT a JSON body. Raises: Unreachable, Refused."""
        status, answer = self._ask("PUT", _target(steps, {}), json.dumps(body))
        return _decoded(status, answer, ())

    def events(self, *, after: int | None, follow: bool) -> Iterator[ServerSentEvent]:
        """The stream of `/v1/events`, until it ends. Raises: Unreachable, Refused."""
        target = _target(("v1", "events"), {"after": after, "follow": str(follow).lower()})
        connection = _Connection(self.socket_path, SILENCE_S)
        try:
            connection.request("GET", target)
            response = connection.getresponse()
            if response.status != 200:
                _decoded(response.status, response.read(), ())
            yield from _events(response)
        except (OSError, http.client.HTTPException) as exc:
            raise self._unreachable(exc) from exc
        finally:
            connection.close()

    def text(self, *steps: str) -> str:
        """GET an answer that is not JSON. Raises: Unreachable, Refused."""
        status, body = self._ask("GET", _target(steps, {}), None)
        if status // 100 != 2:
            _decoded(status, body, ())
        return body.decode("utf-8", "replace")

    def _ask(self, method: str, target: str, body: str | None, timeout_s: float = TIMEOUT_S) -> tuple[int, bytes]:
        connection = _Connection(self.socket_path, timeout_s)
        headers = {} if body is None else {"content-type": "application/json"}
        try:
            connection.request(method, target, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as exc:
            raise self._unreachable(exc) from exc
        finally:
            connection.close()

    def _unreachable(self, exc: Exception) -> Unreachable:
        words = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc) or type(exc).__name__
        hint = "is the agent running on this node?"
        if isinstance(exc, PermissionError):
            hint = "only root may open it; a readers' socket can be set with ENOKI_READERS_SOCKET"
            return Unreachable(f"may not ask the agent at {self.socket_path}: {words}; {hint}")
        if not Path(self.socket_path).exists():
            hint = "is the agent running on this node? ENOKI_SOCKET or --socket say where its socket is"
        return Unreachable(f"no agent at {self.socket_path}: {words}; {hint}")


def _target(steps: tuple[str, ...], query: Mapping[str, str | int | None]) -> str:
    path = "/" + "/".join(quote(step, safe="") for step in steps)
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


def _decoded(status: int, body: bytes, allow: tuple[int, ...]) -> Any:
    try:
        value = json.loads(body)
    except ValueError:
        value = {"title": f"HTTP status {status}"}
    if status // 100 == 2 or status in allow:
        return value
    words = f"{value.get('title', status)}: {value['detail']}" if value.get("detail") else str(value.get("title"))
    raise Refused(status, words)


def _events(lines: Iterator[bytes] | http.client.HTTPResponse) -> Iterator[ServerSentEvent]:
    name, data = "message", ""
    for raw in lines:
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line and data:
            yield ServerSentEvent(name=name, data=json.loads(data))
            name, data = "message", ""
        elif field == "event":
            name = value
        elif field == "data":
            data += value
