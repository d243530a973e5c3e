"""The HTTP application: routes, error forms and the OpenAPI document, around a `NodeService`."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from api import cni_documents, cni_routes, problem_responses
from api.cni_routes import cni_router, error_response
from api.door import Door
from api.event_routes import event_router
from api.explain_routes import explain_router
from api.log_routes import log_router
from api.node_routes import node_router
from api.problems import CniCode, CniError, Problem
from api.service import NodeService

MOST_SHOWN = 200
"""Characters of a value that is refused."""
TITLE = "Enoki node agent"
VERSION = "1"
DESCRIPTION = """\
Enoki gives the pods of a Kubernetes node addresses of the VPC: it holds a pool of addresses on the node's network
interfaces (ENIs), and hands them out when the container runtime calls its CNI plugin. This is the API of the agent that
does so, one on each node, on a Unix socket that only root may open:

    curl --unix-socket /run/enoki/agent.sock http://localhost/v1/explain/node

Whatever changes something is for root alone, by the credentials the kernel gives of the caller; a second socket, for
reading only, can be opened to a group. Times are in UTC, durations in seconds. A failure has the name of its cause, out
of a closed set, wherever it is told; docs/operations.md has a section for each.

The CNI plugin speaks to `/v1/cni`; the body of every answer there is exactly what the container runtime reads on the
plugin's standard output. Everywhere else errors are problem details (RFC 9457)."""


TAGS = [
    {"name": "cni", "description": "What the CNI plugin calls. For root only."},
    {"name": "node", "description": "What the agent holds, whether it is well, and what it would do."},
    {"name": "explain", "description": "Why something is as it is, and what to do."},
    {"name": "events", "description": "What happens, as it happens."},
    {"name": "logs", "description": "The agent's log: its latest lines, and which are written."},
]


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The document with the schemas that hand-written parts of it refer to, in a stable order."""
        if self.openapi_schema is None:
            document = get_openapi(
                title=self.title, version=self.version, description=self.description, routes=self.routes, tags=TAGS
            )
            schemas: dict[str, Any] = document["components"]["schemas"]
            schemas.update(cni_documents.component_schemas())
            schemas.update(problem_responses.component_schemas())
            document["components"]["schemas"] = dict(sorted(schemas.items()))
            self.openapi_schema = document
        return self.openapi_schema


def create_app(service: NodeService) -> FastAPI:
    """The application. The document is served at `/openapi.json`; Swagger UI, from our own files, is in `api.dev`."""
    app = _App(
        title=TITLE,
        version=VERSION,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.include_router(cni_router(service))
    app.include_router(node_router(service))
    app.include_router(explain_router(service))
    app.include_router(event_router(service))
    app.include_router(log_router(service))
    app.add_middleware(Door)
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameters)
    app.add_exception_handler(Exception, _on_bug)
    return app


def _problem(status: int, title: str, detail: str = "", **extensions: Any) -> Response:
    body = {"type": "about:blank", "title": title, "status": status} | ({"detail": detail} if detail else {})
    return Response(json.dumps(extensions | body), status, media_type=problem_responses.PROBLEM)


def _is_cni(request: Request) -> bool:
    return request.url.path.startswith(cni_routes.PREFIX)


async def _on_problem(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, Problem)  # noqa: S101 - registered for this class
    return _problem(exc.status, exc.title, exc.detail, **exc.extensions)


async def _on_http_exception(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)  # noqa: S101 - registered for this class
    if _is_cni(request):
        words = f"{request.method} {request.url.path} is not a CNI command of this agent"
        error = CniError(CniCode.ENVIRONMENT_INVALID, words, http_status=exc.status_code)
        response = error_response(error)
    else:
        response = _problem(exc.status_code, HTTPStatus(exc.status_code).phrase, f"{request.method} {request.url.path}")
    response.headers.update(exc.headers or {})
    return response


async def _on_invalid_parameters(_: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)  # noqa: S101 - registered for this class
    by_name: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for error in exc.errors():
        place, name, *_rest = (*(str(step) for step in error["loc"]), "")
        by_name.setdefault((place, name), []).append(error)
    words = [_in_words(place, name, errors) for (place, name), errors in by_name.items()]
    return _problem(422, "Invalid parameters", "; ".join(words))


_NO_ADDRESS = {"ip_v4_address", "ip_v6_address"}
"""A value that may be either is refused once for each."""


def _in_words(place: str, name: str, errors: list[dict[str, Any]]) -> str:
    """Which parameter, what it was, and what is allowed."""
    subject = {"body": f'body member "{name}"'}.get(place, f'{place} parameter "{name}"')
    match errors[0]["type"]:
        case "missing":
            return f"{subject} is missing" if name else "the body is missing"
        case "extra_forbidden":
            return f"{subject} is unknown"
        case "json_invalid":
            return "the body is not JSON"
    kinds = {error["type"] for error in errors}
    allowed = "not an IPv4 or IPv6 address" if kinds == _NO_ADDRESS else "; ".join(error["msg"] for error in errors)
    given = json.dumps(errors[0]["input"], default=str)[:MOST_SHOWN]
    return f"{subject} is {given}: {allowed}" if name else f"the body is {given}: {allowed}"


async def _on_bug(request: Request, _: Exception) -> Response:
    # Starlette raises the exception again after this answer; the server logs it with its traceback.
    if _is_cni(request):
        return error_response(CniError(CniCode.INTERNAL, "internal error", "the agent's log has more"))
    return _problem(500, "Internal error", "the agent's log has more")
