"""One call, as an action's handler sees it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sim.ec2.parameters import Parameters
from sim.ec2.render import Body
from sim.model.vpc import Vpc


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What an action needs.

    now_s: seconds since the Unix epoch.
    grant_limit_count: how many addresses or prefixes to grant at most, by a scripted fault; None for all.
    """

    action: str
    parameters: Parameters
    vpc: Vpc
    now_s: float
    dry_run: bool
    grant_limit_count: int | None = None


Handler = Callable[[Call], Body]
"""Reads its parameters, calls `finish` on them, acts, and answers. Raises Ec2Error."""
