"""A small ASGI layer around the application: two pages, their files, and who may speak to them.

There is no authentication. What stands in its place: the port is on loopback, nothing can be changed unless that was
asked for, and a web site that the same person has open elsewhere is kept out. Such a site can make a browser send
requests here (and, by DNS rebinding, even read the answers), so the Host header must be an address, which DNS cannot
lead elsewhere, and a request that changes something must not come from another origin. Nothing is loaded from
elsewhere: the files are in this package, and a content security policy (W3C CSP 3) forbids the rest.
"""

from __future__ import annotations

import json
import os
import re
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.responses import FileResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.door import PEER, READ_ONLY, SAFE_METHODS

STATIC = Path(__file__).parent / "static"
FILES = {
    "/": "index.html",
    "/docs": "docs.html",
    "/dev/page.css": "page.css",
    "/dev/page.js": "page.js",
    "/dev/events.js": "events.js",
    "/dev/icon.svg": "icon.svg",
    "/dev/docs.js": "docs.js",
    "/dev/swagger-ui.css": "swagger-ui/swagger-ui.css",
    "/dev/swagger-ui-bundle.js": "swagger-ui/swagger-ui-bundle.js",
    "/dev/swagger-ui.LICENSE": "swagger-ui/LICENSE",
    "/dev/swagger-ui-bundle.js.LICENSE.txt": "swagger-ui/swagger-ui-bundle.js.LICENSE.txt",
}
"""Path of a request -> file of this package. Nothing else of the disk can be asked for."""

_STRICT = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SWAGGER = _STRICT.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'").replace(
    "img-src 'self'", "img-src 'self' data:"
)
"""Swagger UI styles its elements inline and draws its icons from data: URLs."""


def dev_site(app: ASGIApp, *, writes: bool) -> ASGIApp:
    """The application with the pages around it. writes: whoever calls may do what root may."""

    async def site(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        policy = _SWAGGER if scope["path"] == "/docs" else _STRICT

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = policy
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                headers["cross-origin-resource-policy"] = "same-origin"
            await send(message)

        answer = _own_answer(scope) or app
        scope[READ_ONLY] = not writes
        if writes:
            # What the door asks for. Nobody on TCP has credentials; whoever switched this on vouches for them.
            scope[PEER] = (0, os.geteuid(), os.getegid())
        await answer(scope, receive, send_with_policy)

    return site


def _own_answer(scope: Scope) -> ASGIApp | None:
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    host = headers.get(b"host", "").lower()
    if not _needs_no_dns(host):
        return _refusal(421, f'Host is "{host[:100]}"; allowed: an IP address or localhost, perhaps with a port')
    if scope["method"] not in SAFE_METHODS:
        origin = headers.get(b"origin", "").lower()
        if origin and origin != f"http://{host}":
            return _refusal(403, f'a page of "{origin[:100]}" may change nothing here')
        return None
    name = FILES.get(scope["path"])
    if name is None:
        return None
    # Files change with the agent's version, which a browser does not see: it asks each time.
    return FileResponse(STATIC / name, headers={"cache-control": "no-cache"})


def _needs_no_dns(host: str) -> bool:
    name = re.sub(r":[0-9]{1,5}$", "", host)
    if name == "localhost":
        return True
    try:
        ip_address(name[1:-1] if name.startswith("[") and name.endswith("]") else name)
    except ValueError:
        return False
    return True


def _refusal(status: int, detail: str) -> Response:
    problem = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return Response(json.dumps(problem), status, media_type="application/problem+json")
