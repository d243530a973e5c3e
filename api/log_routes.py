"""The routes about the agent's log; one of them changes something."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query

from api.log_schemas import LogLevel, LogLevelName, LogView
from api.names import QueryNamespace, QueryPod, QueryRequestId
from api.operators import Operators
from api.problem_responses import ANY_OTHER, FORBIDDEN, INVALID

NewLevel = Annotated[LogLevelName, Body(embed=True, description="The new level.", examples=["debug"])]


def log_router(service: Operators) -> APIRouter:
    """The routes, bound to `service`."""
    router = APIRouter(tags=["logs"], responses=ANY_OTHER)

    @router.get(
        "/v1/logs",
        summary="The latest log lines, of one pod or one request",
        response_description="The lines that match; none when nothing does.",
        description="From memory: every line that names the pod, and every line of the CNI calls that do. The log "
        "itself goes to standard error and, when set, to a file.",
        responses=INVALID,
    )
    async def logs(
        namespace: QueryNamespace = None,
        pod: QueryPod = None,
        request_id: QueryRequestId = None,
        limit: Annotated[int, Query(ge=1, le=2000, description="The most lines to answer with.")] = 200,
    ) -> LogView:
        return service.logs(namespace=namespace, pod=pod, request_id=request_id, limit=limit)

    @router.get(
        "/v1/log-level",
        summary="The log level in force",
        response_description="The level.",
        description="The least severe lines that are logged now: what the settings say, unless it was changed since.",
    )
    async def log_level() -> LogLevel:
        return service.log_level()

    @router.put(
        "/v1/log-level",
        summary="Change the log level now",
        response_description="The level that is in force now.",
        description="For root only. Holds until the agent stops; its next start goes by the settings again.",
        responses=FORBIDDEN | INVALID,
    )
    async def set_log_level(
        level: NewLevel,
    ) -> LogLevel:
        return service.set_log_level(LogLevel(level=level))

    return router
