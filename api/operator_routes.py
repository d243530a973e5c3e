"""The routes for operators: ask, understand, and one that changes something (the log level)."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from api.adoption_schemas import AdoptionView
from api.doctor_schemas import DoctorView
from api.names import Namespace, Pod, QueryNamespace, QueryPod, QueryRequestId
from api.operator_schemas import (
    BudgetView,
    ConfigView,
    ExplainView,
    HistoryView,
    LogLevel,
    LogLevelName,
    LogView,
    PlanView,
    TraceView,
)
from api.operators import Operators
from api.schemas import Address
from api.view_routes import problem_response

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_Responses = dict[int | str, dict[str, Any]]

_STARTING: _Responses = {503: problem_response("The agent is starting; `/v1/startup` says where it is.")}
_INVALID: _Responses = {422: problem_response("A parameter is unknown or malformed.")}
_FORBIDDEN: _Responses = {403: problem_response("The caller is not root, or asks on the readers' socket.")}
_UNKNOWN_POD: _Responses = {404: problem_response("This node knows nothing of such a pod.")}


class TraceQuery(BaseModel):
    """From which pod, to which address."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", max_length=63)]
    """Kubernetes namespace of the pod."""
    pod: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$", max_length=253)]
    """Pod name."""
    to: Address
    """Destination address."""


class HistoryQuery(BaseModel):
    """Of which address."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    address: Address
    """A pod's IPv4 or IPv6 address."""


def operator_router(service: Operators) -> APIRouter:
    """The routes, bound to `service`."""
    router = APIRouter(responses={"default": problem_response("Any other problem (RFC 9457).")})
    _ask(router, service)
    _understand(router, service)
    _logs(router, service)
    return router


def _ask(router: APIRouter, service: Operators) -> None:
    @router.get(
        "/v1/pool/plan",
        tags=["node"],
        summary="What the pool would do now, and why (a dry run)",
        description="Runs the planner on what the agent knows at this moment and shows its decision. Nothing is "
        "started: the pool's own loop decides anew whenever something happens.",
        responses=_STARTING,
    )
    async def plan() -> PlanView:
        return service.plan()

    @router.get(
        "/v1/config",
        tags=["node"],
        summary="The effective settings and where they come from",
        description="Every setting of the agent with the value in force, its default, and whether the environment set "
        "it. Secrets are left out.",
    )
    async def config() -> ConfigView:
        return service.config()

    @router.get(
        "/v1/budget",
        tags=["node"],
        summary="Requests to EC2 by action and outcome",
        description="Counts since the agent started. EC2 throttles per account and region, so a node that asks too "
        "often takes from all others.",
    )
    async def budget() -> BudgetView:
        return service.budget()

    @router.get(
        "/metrics",
        tags=["node"],
        summary="Metrics in Prometheus' text format",
        description="Names that start with `awscni_` are those of the AWS VPC CNI plugin, with its meaning; ours start "
        "with `enoki_`.",
        response_class=Response,
        responses={
            200: {
                "description": "The metrics.",
                "content": {METRICS_TYPE: {"schema": {"type": "string"}}},
            }
        },
    )
    async def metrics() -> Response:
        return Response(service.metrics(), media_type=METRICS_TYPE)


def _understand(router: APIRouter, service: Operators) -> None:
    @router.get(
        "/v1/explain/pods/{namespace}/{pod}",
        tags=["explain"],
        summary="Why a pod has its address, or why not",
        description="A tree of steps in the order of a pod's start: the agent, the runtime's request, the address, the "
        "kernel. Each says since when it stands so, with evidence, a remedy, and when the next try comes.",
        responses=_UNKNOWN_POD | _INVALID,
    )
    async def explain_pod(namespace: Namespace, pod: Pod) -> ExplainView:
        return await service.explain_pod(namespace, pod)

    @router.get(
        "/v1/explain/node",
        tags=["explain"],
        summary="Whether this node can serve pods, and why not",
        description="The same tree for the node: its start, its loops, its pool and what EC2 answered, its ENIs.",
    )
    async def explain_node() -> ExplainView:
        return service.explain_node()

    @router.get(
        "/v1/doctor",
        tags=["explain"],
        summary="Read-only checks, each with what to do",
        description="Looks at sysctls, systemd-networkd, udev, policy rules, nftables, links, files and limits, asks "
        "EC2 by DryRun for the actions that are called, and compares with what the agent knows. Changes nothing. EC2 "
        "is asked at most every 30 s; its last answers count until then. Takes up to some seconds.",
    )
    async def doctor() -> DoctorView:
        return await service.doctor()

    @router.get(
        "/v1/adoption",
        tags=["explain"],
        summary="What taking the node over from aws-node would do (a dry run)",
        description="Reads aws-node's file and the kernel, and shows the commands or every reason against it. The "
        "take-over itself is a command on the node, while no agent runs there; `next_steps` has it.",
        responses=_STARTING,
    )
    async def adoption() -> AdoptionView:
        return await service.adoption()

    @router.get(
        "/v1/trace",
        tags=["explain"],
        summary="Where a packet of a pod to an address goes",
        description="Policy rule, routing table, packet mark, link, address translation and ENI. The kernel is asked "
        "for the route (RTM_GETROUTE) with the mark that the installed nftables table would set; nothing is sent.",
        responses=_UNKNOWN_POD | _INVALID | _STARTING,
    )
    async def trace(query: Annotated[TraceQuery, Query()]) -> TraceView:
        return await service.trace(query.namespace, query.pod, query.to)

    @router.get(
        "/v1/history",
        tags=["explain"],
        summary="Who held an address, and when",
        description="From the events this node remembers: some thousand in memory, and more on disk when "
        "`ENOKI_EVENT_LOG_DIRECTORY` is set.",
        responses=_INVALID,
    )
    async def history(query: Annotated[HistoryQuery, Query()]) -> HistoryView:
        return await service.history(query.address)


def _logs(router: APIRouter, service: Operators) -> None:
    @router.get(
        "/v1/logs",
        tags=["logs"],
        summary="The latest log lines, of one pod or one request",
        description="From memory: every line that names the pod, and every line of the CNI calls that do. The log "
        "itself goes to standard error and, when set, to a file.",
        responses=_INVALID,
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
        tags=["logs"],
        summary="The log level in force",
        description="The least severe lines that are logged now: what the settings say, unless it was changed since.",
    )
    async def log_level() -> LogLevel:
        return service.log_level()

    @router.put(
        "/v1/log-level",
        tags=["logs"],
        summary="Change the log level now",
        description="For root only. Holds until the agent stops; its next start goes by the settings again.",
        responses=_FORBIDDEN | _INVALID,
    )
    async def set_log_level(level: Annotated[LogLevelName, Body(embed=True, examples=["debug"])]) -> LogLevel:
        return service.set_log_level(LogLevel(level=level))
