"""What answers on the simulated internet: the address it saw, so that a test can tell who a packet came from."""

from __future__ import annotations

import asyncio
from typing import cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

HTTP_PORT = 80
UDP_PORT = 7777


async def _peer(request: Request) -> PlainTextResponse:
    client = request.client
    return PlainTextResponse(f"{client.host}:{client.port}\n" if client else "\n")


peer_app = Starlette(routes=[Route("/", _peer)])
"""`GET /` answers `<address>:<port>` of the peer and a newline."""


class PeerEcho(asyncio.DatagramProtocol):
    """Answers every datagram with `<address>:<port>` of its sender and a newline."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:  # noqa: ARG002 - asyncio's signature
        self._transport.sendto(f"{addr[0]}:{addr[1]}\n".encode(), addr)
