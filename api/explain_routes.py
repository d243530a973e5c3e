"""The routes that explain: why a pod or the node is as it is, where a packet goes, who held an address."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from api.adoption_schemas import AdoptionView
from api.doctor_schemas import DoctorView
from api.event_schemas import HistoryView
from api.explain_schemas import ExplainView, TraceView
from api.names import Namespace, Pod
from api.operators import Operators
from api.problem_responses import ANY_OTHER, INVALID, STARTING, UNKNOWN_POD
from api.schemas import Address


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


def explain_router(service: Operators) -> APIRouter:
    """The routes, bound to `service`."""
    router = APIRouter(tags=["explain"], responses=ANY_OTHER)
    _pods_and_node(router, service)
    _checks(router, service)
    _packets_and_addresses(router, service)
    return router


def _pods_and_node(router: APIRouter, service: Operators) -> None:
    @router.get(
        "/v1/explain/pods/{namespace}/{pod}",
        summary="Why a pod has its address, or why not",
        response_description="The tree.",
        description="A tree of steps in the order of a pod's start: the agent, the runtime's request, the address, the "
        "kernel. Each says since when it stands so, with evidence, a remedy, and when the next try comes.",
        responses=UNKNOWN_POD | INVALID,
    )
    async def explain_pod(namespace: Namespace, pod: Pod) -> ExplainView:
        return await service.explain_pod(namespace, pod)

    @router.get(
        "/v1/explain/node",
        summary="Whether this node can serve pods, and why not",
        response_description="The tree.",
        description="The same tree for the node: its start, its loops, its pool and what EC2 answered, its ENIs.",
    )
    async def explain_node() -> ExplainView:
        return service.explain_node()


def _checks(router: APIRouter, service: Operators) -> None:
    @router.get(
        "/v1/doctor",
        summary="Read-only checks, each with what to do",
        response_description="Every check, whatever it found.",
        description="Looks at sysctls, systemd-networkd, udev, policy rules, nftables, links, files and limits, asks "
        "EC2 by DryRun for the actions that are called, and compares with what the agent knows. Changes nothing. EC2 "
        "is asked at most every 30 s; its last answers count until then. Takes up to some seconds.",
    )
    async def doctor() -> DoctorView:
        return await service.doctor()

    @router.get(
        "/v1/adoption",
        summary="What taking the node over from aws-node would do (a dry run)",
        response_description="The commands, or the reasons against them.",
        description="Reads aws-node's file and the kernel, and shows the commands or every reason against it. The "
        "take-over itself is a command on the node, while no agent runs there; `next_steps` has it.",
        responses=STARTING,
    )
    async def adoption() -> AdoptionView:
        return await service.adoption()


def _packets_and_addresses(router: APIRouter, service: Operators) -> None:
    @router.get(
        "/v1/trace",
        summary="Where a packet of a pod to an address goes",
        response_description="The path; also one that ends on the node, with `refusal`.",
        description="Policy rule, routing table, packet mark, link, address translation and ENI. The kernel is asked "
        "for the route (RTM_GETROUTE) with the mark that the installed nftables table would set; nothing is sent.",
        responses=UNKNOWN_POD | INVALID | STARTING,
    )
    async def trace(query: Annotated[TraceQuery, Query()]) -> TraceView:
        return await service.trace(query.namespace, query.pod, query.to)

    @router.get(
        "/v1/history",
        summary="Who held an address, and when",
        response_description="Its holders, oldest first.",
        description="From the events this node remembers: some thousand in memory, and more on disk when "
        "`ENOKI_EVENT_LOG_DIRECTORY` is set.",
        responses=INVALID,
    )
    async def history(query: Annotated[HistoryQuery, Query()]) -> HistoryView:
        return await service.history(query.address)
