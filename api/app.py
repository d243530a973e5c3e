"""The HTTP application: routes, error forms and the OpenAPI document, around a `NodeService`."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException

from api import cni_documents, cni_routes, view_routes
from api.cni_routes import cni_router, error_response
from api.door import Door
from api.event_routes import event_router
from api.operator_routes import operator_router
from api.problems import CniCode, CniError, Problem
from api.service import NodeService
from api.view_routes import view_router

TITLE = "Enoki node agent"
VERSION = "1"
DESCRIPTION = """\
The API of the node agent, on a Unix socket that only root may open. Whatever changes something is for root alone, by
the credentials the kernel gives of the caller; a second socket, for reading only, can be opened to a group.

The CNI plugin speaks to `/v1/cni`; the body of every answer there is exactly what the container runtime reads on the
plugin's standard output. Everywhere else errors are problem details (RFC 9457)."""


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The document with the schemas that hand-written parts of it refer to, in a stable order."""
        if self.openapi_schema is None:
            document = get_openapi(
                title=self.title, version=self.version, description=self.description, routes=self.routes
            )
            schemas: dict[str, Any] = document["components"]["schemas"]
            schemas.update(cni_documents.component_schemas())
            schemas.update(view_routes.component_schemas())
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
    app.include_router(view_router(service))
    app.include_router(operator_router(service))
    app.include_router(event_router(service))
    app.add_middleware(Door)
    app.add_exception_handler(Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_invalid_parameters)
    app.add_exception_handler(Exception, _on_bug)
    return app


def _problem(status: int, title: str, detail: str = "", **extensions: Any) -> Response:
    body = {"type": "about:blank", "title": title, "status": status} | ({"detail": detail} if detail else {})
    return Response(json.dumps(extensions | body), status, media_type=view_routes.PROBLEM)


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
    detail = "; ".join(f"{'.'.join(str(step) for step in error['loc'])}: {error['msg']}" for error in exc.errors())
    return _problem(422, "Invalid parameters", detail)


async def _on_bug(request: Request, _: Exception) -> Response:
    # Starlette raises the exception again after this answer; the server logs it with its traceback.
    if _is_cni(request):
        return error_response(CniError(CniCode.INTERNAL, "internal error", "the agent's log has more"))
    return _problem(500, "Internal error", "the agent's log has more")
