"""`GET /v1/events`: server-sent events (WHATWG HTML, section 9.2), resumable, at no cost for slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse

from api.event_schemas import EventView
from api.operators import EventBatch, Operators
from api.problem_responses import ANY_OTHER, problem_response
from api.problems import Problem

EVENT_STREAM = "text/event-stream"
MAX_STREAM_COUNT = 16
"""Readers at the same time. Each costs a connection and a task."""
KEEP_ALIVE_S = 15.0
"""A comment goes out when nothing has happened for this long, so that a reader that has gone is noticed (the HTML
standard advises about 15 s)."""
MAX_ID = 2**53 - 1

_EXAMPLE = """\
id: 1795599000000042
event: address
data: {"id":1795599000000042,"at":"2026-11-24T09:30:00.125Z","kind":"address","request_id":"5f0c2a9be113",\
"fields":{"address":"10.0.1.9","eni":"eni-0123456789abcdef0","before":"free","after":"held","change":"hold"}}

"""


def event_router(service: Operators, *, keep_alive_s: float = KEEP_ALIVE_S) -> APIRouter:
    """The route, bound to `service`."""
    router = APIRouter(tags=["events"], responses=ANY_OTHER)
    streams = _Streams(service, keep_alive_s)

    @router.get(
        "/v1/events",
        summary="What happens on this node, as it happens",
        description=(
            "Server-sent events. Each has an id; a reader that comes back sends the last one it saw as `Last-Event-ID` "
            "(a browser does so by itself) or as `after`, and misses nothing that is still in memory. When something "
            "is not, an event named `missed` comes first. Without either, the stream begins with what happens next; "
            "`after=0` begins with the oldest event in memory. `follow=false` ends after what is known."
        ),
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "The stream. `data` is an EventView; comments keep the connection alive.",
                "content": {EVENT_STREAM: {"schema": {"type": "string"}, "example": _EXAMPLE}},
            },
            422: problem_response("A parameter is malformed."),
            503: problem_response("Too many readers at the same time."),
        },
    )
    async def events(
        after: Annotated[int | None, Query(ge=0, le=MAX_ID, description="Begin after the event with this id.")] = None,
        follow: Annotated[bool, Query(description="false: end after what is known now.")] = True,  # noqa: FBT002
        last_event_id: Annotated[
            str | None, Header(max_length=20, description="As `after`; counts more than it. Anything odd is ignored.")
        ] = None,
    ) -> StreamingResponse:
        begin = after
        if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
            begin = min(int(last_event_id), MAX_ID)
        return streams.open(service.newest_event_id() if begin is None else begin, follow=follow)

    return router


class _Streams:
    def __init__(self, service: Operators, keep_alive_s: float) -> None:
        self._service = service
        self._keep_alive_s = keep_alive_s
        self._open_count = 0

    def open(self, last_id: int, *, follow: bool) -> StreamingResponse:
        if self._open_count >= MAX_STREAM_COUNT:
            raise Problem(503, "Too many readers", f"{MAX_STREAM_COUNT} streams of events are open already")
        headers = {"cache-control": "no-store"}
        return StreamingResponse(self._lines(last_id, follow=follow), media_type=EVENT_STREAM, headers=headers)

    async def _lines(self, last_id: int, *, follow: bool) -> AsyncIterator[str]:
        # The reader's only state is the id: `yield` waits as long as its connection is full, and nothing piles up.
        self._open_count += 1
        try:
            yield ": enoki\n\n"
            while True:
                batch = self._service.events_after(last_id)
                if not batch.events:
                    if not follow:
                        return
                    waited = await self._wait(last_id)
                    if waited is None:
                        return
                    if not waited.events:
                        yield ": still here\n\n"
                        continue
                    batch = waited
                if batch.missed:
                    yield f'event: missed\ndata: {{"after":{last_id}}}\n\n'
                for event in batch.events:
                    yield _as_text(event)
                last_id = batch.events[-1].id
        finally:
            self._open_count -= 1

    async def _wait(self, last_id: int) -> EventBatch | None:
        try:
            async with asyncio.timeout(self._keep_alive_s):
                return await self._service.next_events(last_id)
        except TimeoutError:
            return EventBatch(events=(), missed=False)


def _as_text(event: EventView) -> str:
    return f"id: {event.id}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n"
