"""`POST /v1/cni/{add,del,check,status,gc}`: the body of every answer is what the runtime reads on standard output."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
from collections.abc import Coroutine
from typing import TypeVar, assert_never

from fastapi import APIRouter, Request, Response
from starlette.types import Receive

from api import cni_documents
from api.cni_body import MAX_BODY_BYTES, decode
from api.cni_call import NEWEST_VERSION, answer_version, names_in, parse_call, valid_attachments
from api.cni_output import render_error, render_result
from api.problems import CAUSES, CniCode, CniError
from api.service import Attachment, CniCall, NodeService, RefusedCall, Verb

PREFIX = "/v1/cni/"

_REQUEST_ID = re.compile(r"[A-Za-z0-9\-]{1,64}")

log = logging.getLogger(__name__)

T = TypeVar("T")


class _ClientGone(Exception):
    pass


def cni_router(service: NodeService) -> APIRouter:
    """The five routes, bound to `service`."""
    router = APIRouter(tags=["cni"])
    for verb in Verb:
        router.add_api_route(
            f"{PREFIX}{verb.lower()}",
            _Endpoint(service, verb).answer,
            methods=["POST"],
            name=f"cni_{verb.lower()}",
            summary=cni_documents.SUMMARIES[verb],
            description=cni_documents.description(verb),
            response_class=Response,
            status_code=200 if verb is Verb.ADD else 204,
            responses=cni_documents.responses(verb),
            openapi_extra=cni_documents.request_body(verb),
        )
    return router


def error_response(error: CniError, cni_version: str = NEWEST_VERSION) -> Response:
    """The error as the plugin prints it."""
    return Response(render_error(error, cni_version), error.http_status, media_type="application/json")


class _Endpoint:
    def __init__(self, service: NodeService, verb: Verb) -> None:
        self._service = service
        self._verb = verb

    async def answer(self, request: Request) -> Response:
        """Read, check, ask the service, render. Never raises but for cancellation."""
        version = NEWEST_VERSION
        request_id = _request_id(request)
        names = RefusedCall(verb=self._verb, request_id=request_id)
        try:
            try:
                envelope = decode(await _read_body(request))
                version = answer_version(envelope.config)
                names = names_in(self._verb, envelope, request_id)
                call = parse_call(self._verb, envelope, request_id)
                valid = valid_attachments(call.config) if self._verb is Verb.GC else frozenset()
            except CniError as exc:
                return error_response(self._refused(names, exc), version)
            return await self._run(call, valid, request.receive)
        except CniError as exc:
            return error_response(exc, version)
        except _ClientGone:
            # Nobody reads this answer.
            return Response(status_code=400)
        except Exception:
            log.exception("cni_request_failed", extra={"fields": {"verb": self._verb, "request_id": request_id}})
            return error_response(CniError(CniCode.INTERNAL, "internal error", "the agent's log has more"), version)

    def _refused(self, names: RefusedCall, error: CniError) -> CniError:
        """Have the service know; the error with the name of its cause, as those of the service have."""
        cause = CAUSES[error.code]
        self._service.refused(names, cause, f"{error.msg}: {error.details}" if error.details else error.msg)
        return CniError(error.code, f"{cause}: {error.msg}", error.details, error.http_status)

    async def _run(self, call: CniCall, valid: frozenset[Attachment], receive: Receive) -> Response:
        match self._verb:
            case Verb.ADD:
                result = await _unless_disconnected(receive, self._service.add(call))
                return Response(render_result(result, call.cni_version), media_type="application/json")
            case Verb.DEL:
                await self._service.delete(call)
            case Verb.CHECK:
                await self._service.check(call)
            case Verb.STATUS:
                await self._service.status(call)
            case Verb.GC:
                await self._service.gc(call, valid)
            case _:
                assert_never(self._verb)
        return Response(status_code=204)


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(6)


async def _read_body(request: Request) -> bytes:
    # Not `request.body()`: that would hold a body of any size in memory before anyone could refuse it.
    chunks: list[bytes] = []
    size_bytes = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        chunk = message.get("body", b"")
        size_bytes += len(chunk)
        if size_bytes > MAX_BODY_BYTES:
            raise CniError(
                CniCode.CONTENT_UNDECODABLE, f"the request is larger than {MAX_BODY_BYTES} bytes", http_status=413
            )
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


async def _unless_disconnected(receive: Receive, work: Coroutine[None, None, T]) -> T:
    """Run `work`, but cancel it when the client goes away: a parked ADD must not take an address for nobody."""
    task = asyncio.ensure_future(work)
    # The body has been read, so the next message can only be the disconnect.
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
    if task.cancelled():
        raise _ClientGone
    return task.result()
