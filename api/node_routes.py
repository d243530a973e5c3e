"""The routes about the node: what the agent holds, whether it is well, and what it would do."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from api.node_schemas import BudgetView, ConfigView, PlanView
from api.problem_responses import ANY_OTHER, INVALID, STARTING
from api.schemas import Address, AllocationView, EniView, HealthView, PoolView, StartupView
from api.service import NodeService

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class AllocationQuery(BaseModel):
    """Each parameter narrows the answer; a misspelt one is an error, not the whole list."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    namespace: Annotated[str | None, Field(max_length=63)] = None
    """Kubernetes namespace."""
    pod: Annotated[str | None, Field(max_length=253)] = None
    """Pod name."""
    address: Address | None = None
    """A pod's IPv4 or IPv6 address."""


def node_router(service: NodeService) -> APIRouter:
    """The routes, bound to `service`."""
    router = APIRouter(tags=["node"], responses=ANY_OTHER)
    _what_it_holds(router, service)
    _whether_it_is_well(router, service)
    _what_it_does(router, service)
    return router


def _what_it_holds(router: APIRouter, service: NodeService) -> None:
    @router.get(
        "/v1/pool",
        summary="The pool by state and by ENI",
        response_description="The pool.",
        description="Every address EC2 granted to this node and its state, what waits for one, and what keeps the pool "
        "from its targets. Empty while the agent starts.",
    )
    async def pool() -> PoolView:
        return service.pool()

    @router.get(
        "/v1/enis",
        summary="The ENIs of this node",
        response_description="The ENIs, primary first.",
        description="Every network interface attached to the instance, primary first; those of others are counted and "
        "never touched. Empty while the agent starts.",
    )
    async def enis() -> list[EniView]:
        return service.enis()

    @router.get(
        "/v1/allocations",
        summary="Who holds which address",
        response_description="The attachments that match; an empty list when none does.",
        description="Every pod interface attached on this node with its addresses, ordered by address. Each parameter "
        "narrows the answer. Empty while the agent starts.",
        responses=INVALID,
    )
    async def allocations(query: Annotated[AllocationQuery, Query()]) -> list[AllocationView]:
        return service.allocations(namespace=query.namespace, pod=query.pod, address=query.address)


def _whether_it_is_well(router: APIRouter, service: NodeService) -> None:
    @router.get(
        "/v1/health",
        summary="Liveness",
        response_description="No restart would help.",
        description="For a liveness probe: 503 only when a restart would help. Loops that fail are named; they are "
        "tried again and do not make the agent unhealthy.",
        responses={503: {"model": HealthView, "description": "A restart would help."}},
    )
    async def health(response: Response) -> HealthView:
        view = service.health()
        response.status_code = 200 if view.healthy else 503
        return view

    @router.get(
        "/v1/startup",
        summary="Readiness, stage by stage",
        response_description="ADD can be served.",
        description="For a readiness or startup probe: 503 until ADD can be served. A stage that fails says why, and "
        "is tried again by itself.",
        responses={503: {"model": StartupView, "description": "Not ready yet; the stages say why."}},
    )
    async def startup(response: Response) -> StartupView:
        view = service.startup()
        response.status_code = 200 if view.ready else 503
        return view

    @router.get(
        "/metrics",
        summary="Metrics in Prometheus' text format",
        description="Names that start with `awscni_` are those of the AWS VPC CNI plugin, with its meaning; ours start "
        "with `enoki_`.",
        response_class=Response,
        responses={
            200: {"description": "The metrics.", "content": {METRICS_TYPE: {"schema": {"type": "string"}}}},
        },
    )
    async def metrics() -> Response:
        return Response(service.metrics(), media_type=METRICS_TYPE)


def _what_it_does(router: APIRouter, service: NodeService) -> None:
    @router.get(
        "/v1/pool/plan",
        summary="What the pool would do now, and why (a dry run)",
        response_description="The decision.",
        description="Runs the planner on what the agent knows at this moment and shows its decision. Nothing is "
        "started: the pool's own loop decides anew whenever something happens.",
        responses=STARTING,
    )
    async def plan() -> PlanView:
        return service.plan()

    @router.get(
        "/v1/config",
        summary="The effective settings and where they come from",
        response_description="All settings.",
        description="Every setting of the agent with the value in force, its default, and who set it. Secrets are "
        "left out.",
    )
    async def config() -> ConfigView:
        return service.config()

    @router.get(
        "/v1/budget",
        summary="Requests to EC2 by action and outcome",
        response_description="The counts.",
        description="Counts since the agent started. EC2 throttles per account and region, so a node that asks too "
        "often takes from all others.",
    )
    async def budget() -> BudgetView:
        return service.budget()
