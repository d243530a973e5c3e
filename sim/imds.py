"""IMDSv2, the instance metadata service: version 2 only (`HttpTokens: required`), as EKS configures its nodes.

Who asks is known by the address the request comes from: any address EC2 knows on an ENI of the instance.

| request | answer (EC2 User Guide, "Use the Instance Metadata Service", "How IMDSv2 works") |
|---|---|
| PUT /latest/api/token with `X-aws-ec2-metadata-token-ttl-seconds` 1..21600 | 200, a token for this instance |
| the same without that header, or out of range | 400 |
| the same with `X-Forwarded-For` | 403 |
| GET with a valid token | 200, or 404 |
| GET without one, with an expired one, or another instance's | 401 |
| any other method | 405 |

The answer to a PUT is sent with the instance's hop limit as its IP TTL (`HttpPutResponseHopLimit`, 2 on EKS nodes): it
reaches the node and a pod on it, and nothing behind. The connection itself is not limited, so a client that is too
far away sees a request without an answer.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from sim.fabric_legs import instance_of
from sim.imds_tree import VERSIONS, instance_tree, lookup
from sim.model.vpc import Vpc

TOKEN_PATH = "latest/api/token"  # noqa: S105 - a path
TOKEN_HEADER = "x-aws-ec2-metadata-token"  # noqa: S105 - a header's name
TOKEN_TTL_HEADER = "x-aws-ec2-metadata-token-ttl-seconds"  # noqa: S105 - a header's name
MAX_TOKEN_TTL_S = 21600
_DEFAULT_IP_TTL = 64
_CLIENT_SOCKET = "enoki.sim.client_socket"

_REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
}

_ERROR_PAGE = """\
<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
\t"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>{title}</title>
 </head>
 <body>
  <h1>{title}</h1>
 </body>
</html>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A session token: of which instance, and until when (seconds since the Unix epoch)."""

    instance_id: str
    expires_s: float


class MetadataService:
    """The service for every instance of a VPC; `app` is its ASGI application.

    clock: seconds since the Unix epoch.
    """

    def __init__(self, vpc: Vpc, *, clock: Callable[[], float]) -> None:
        self._vpc = vpc
        self._clock = clock
        self._tokens: dict[str, Token] = {}
        self._requests: dict[str, Counter[str]] = {}
        self.app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "HEAD", "PUT", "POST"])])

    def requests(self) -> Mapping[str, Mapping[str, int]]:
        """How often each instance asked, by what it got: `GET <path>`, `PUT latest/api/token`, or a status.

        Failed requests are counted by status alone, so that what a client makes up cannot fill the memory.
        """
        return {instance_id: dict(counts) for instance_id, counts in self._requests.items()}

    async def _answer(self, request: Request) -> Response:
        path = request.path_params["path"].strip("/")
        peer = request.client.host if request.client else "0.0.0.0"
        instance_id = instance_of(self._vpc.state, IPv4Address(peer))
        if instance_id is None:
            return _error(404)
        response = self._respond(request, path, instance_id)
        ok = response.status_code == 200
        self._requests.setdefault(instance_id, Counter())[
            f"{request.method} {path}" if ok else str(response.status_code)
        ] += 1
        return response

    def _respond(self, request: Request, path: str, instance_id: str) -> Response:
        hop_limit = self._vpc.state.instances[instance_id].metadata_hop_limit
        is_put = request.method == "PUT"
        _set_ip_ttl(request, hop_limit if is_put else _DEFAULT_IP_TTL)
        if is_put and path == TOKEN_PATH:
            return self._grant_token(request, instance_id)
        if request.method not in {"GET", "HEAD"}:
            return _error(405)
        token = self._tokens.get(request.headers.get(TOKEN_HEADER, ""))
        if token is None or token.instance_id != instance_id or token.expires_s <= self._clock():
            return _error(401)
        text = self._read(path, instance_id)
        return _error(404) if text is None else _text(text)

    def _grant_token(self, request: Request, instance_id: str) -> Response:
        if "x-forwarded-for" in request.headers:
            return _error(403)
        ttl = request.headers.get(TOKEN_TTL_HEADER, "")
        if not (ttl.isascii() and ttl.isdecimal() and len(ttl) <= 5 and 1 <= int(ttl) <= MAX_TOKEN_TTL_S):
            return _error(400)
        now_s = self._clock()
        self._tokens = {text: token for text, token in self._tokens.items() if token.expires_s > now_s}
        text = secrets.token_urlsafe(40) + "=="
        self._tokens[text] = Token(instance_id=instance_id, expires_s=now_s + int(ttl))
        return _text(text, {TOKEN_TTL_HEADER: ttl})

    def _read(self, path: str, instance_id: str) -> str | None:
        if not path:
            return "\n".join(VERSIONS)
        version, _, rest = path.partition("/")
        now_s = self._clock()
        view = self._vpc.imds_view(instance_id, now_s)
        if version not in VERSIONS or view is None:
            return None
        return lookup(instance_tree(view, now_s=now_s), rest)


def _text(text: str, headers: Mapping[str, str] | None = None) -> Response:
    return PlainTextResponse(text, headers={"server": "EC2ws", **(headers or {})})


def _error(status: int) -> Response:
    page = _ERROR_PAGE.format(title=f"{status} - {_REASONS[status]}")
    return Response(page, status_code=status, media_type="text/html", headers={"server": "EC2ws"})


def _set_ip_ttl(request: Request, ttl: int) -> None:
    client = cast("socket.socket", request.scope[_CLIENT_SOCKET])
    client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)


class MetadataProtocol(H11Protocol):
    """uvicorn's HTTP protocol, which also tells the application the socket of the client's connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        application = self.app
        client = transport.get_extra_info("socket")

        async def with_socket(scope: dict[str, Any], receive: Any, send: Any) -> None:
            await cast("Awaitable[None]", application({**scope, _CLIENT_SOCKET: client}, receive, send))

        self.app = with_socket
