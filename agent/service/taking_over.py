"""`/v1/adoption`: the dry run of a take-over from aws-node. Imported when somebody asks.

The take-over itself is a command of its own, while no agent runs (docs/decisions/0074).
"""

from __future__ import annotations

import asyncio

from agent.adoption import executor
from agent.adoption.command import nat_settings
from agent.adoption.executor import Places
from agent.adoption.model import Plan
from agent.node import Node
from api.adoption_schemas import AdoptionView

NEXT_STEPS = (
    "keep both DaemonSets off the node, and stop this agent",
    "python -m agent adopt --apply",
    "start the agent",
)


async def dry_run(node: Node, places: Places = Places()) -> AdoptionView:  # noqa: B008 - frozen
    """Reads the node and the AWS plugin's file. Raises: KernelFailed; TryAgain before the node knows who it is."""
    policy, instance = node.identified()
    plan = await asyncio.to_thread(lambda: executor.plan_adoption(places, nat_settings(policy, instance)))
    return view(plan)


def view(plan: Plan) -> AdoptionView:
    """Pure."""
    return AdoptionView(
        possible=not plan.refusals,
        refusals=list(plan.refusals),
        pod_count=len(plan.pods),
        eni_count=len(plan.enis),
        script="" if plan.refusals else executor.describe(plan),
        next_steps=list(NEXT_STEPS),
    )
