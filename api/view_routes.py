"""The GET routes: what the agent holds, and whether it is well."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from api.schemas import Address, AllocationView, EniView, HealthView, PoolView, ProblemView, StartupView
from api.service import NodeService

PROBLEM = "application/problem+json"


class AllocationQuery(BaseModel):
    """Each parameter narrows the answer; a misspelt one is an error, not the whole list."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    namespace: Annotated[str | None, Field(max_length=63)] = None
    """Kubernetes namespace."""
    pod: Annotated[str | None, Field(max_length=253)] = None
    """Pod name."""
    address: Address | None = None
    """A pod's IPv4 or IPv6 address."""


def problem_response(description: str) -> dict[str, Any]:
    """A problem details answer, for FastAPI's `responses`."""
    schema = {"$ref": "#/components/schemas/ProblemView"}
    return {"description": description, "content": {PROBLEM: {"schema": schema}}}


def view_router(service: NodeService) -> APIRouter:
    """The routes, bound to `service`."""
    router = APIRouter(tags=["node"], responses={"default": problem_response("Any other problem (RFC 9457).")})

    @router.get(
        "/v1/pool",
        summary="The pool by state and by ENI",
        description="Every address EC2 granted to this node and its state, what waits for one, and what keeps the pool "
        "from its targets. Empty while the agent starts.",
    )
    async def pool() -> PoolView:
        return service.pool()

    @router.get(
        "/v1/enis",
        summary="The ENIs of this node",
        description="Every network interface attached to the instance, primary first; those of others are counted and "
        "never touched. Empty while the agent starts.",
    )
    async def enis() -> list[EniView]:
        return service.enis()

    @router.get(
        "/v1/allocations",
        summary="Who holds which address",
        description="Every pod interface attached on this node with its addresses, ordered by address. Each parameter "
        "narrows the answer. Empty while the agent starts.",
        responses={422: problem_response("A parameter is unknown or malformed.")},
    )
    async def allocations(query: Annotated[AllocationQuery, Query()]) -> list[AllocationView]:
        return service.allocations(namespace=query.namespace, pod=query.pod, address=query.address)

    @router.get(
        "/v1/health",
        summary="Liveness",
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
        description="For a readiness or startup probe: 503 until ADD can be served. A stage that fails says why, and "
        "is tried again by itself.",
        responses={503: {"model": StartupView, "description": "Not ready yet; the stages say why."}},
    )
    async def startup(response: Response) -> StartupView:
        view = service.startup()
        response.status_code = 200 if view.ready else 503
        return view

    return router


def component_schemas() -> dict[str, Any]:
    """Schemas that `problem_response` refers to, for `components.schemas`."""
    return {"ProblemView": ProblemView.model_json_schema()}
