"""Values of planning: what the planner sees, what it wants, and what it answers. Frozen, without behaviour.

They are apart from `model` because only the planner and the pool loop speak of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.ipam.model import Block, BlockKind, EniId, EniUsage, InstanceLimits, Subnet, SubnetId


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPolicy:
    """How many addresses to hold. The names and meanings of the AWS plugin's settings.

    warm_eni_target: ENIs' worth of free addresses; used only while both IP targets are 0.
    warm_ip_target: free addresses; 0 is unset.
    minimum_ip_target: addresses in all; 0 is unset.
    max_eni: ENIs in all, those of others included; None: what the instance type allows.
    settle_addresses_s, settle_enis_s: how long something must have been idle before it is given back.
    """

    warm_eni_target: int = 1
    warm_ip_target: int = 0
    minimum_ip_target: int = 0
    max_eni: int | None = None
    settle_addresses_s: float = 600.0
    settle_enis_s: float = 900.0

    @property
    def has_ip_targets(self) -> bool:
        return self.warm_ip_target > 0 or self.minimum_ip_target > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateEni:
    """Make and attach an ENI with `count` blocks on network card 0. security_groups: None for those of the primary."""

    device: int
    subnet_id: SubnetId
    kind: BlockKind
    count: int
    reason: str
    security_groups: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignBlocks:
    """Ask for `count` more blocks on an ENI."""

    eni_id: EniId
    kind: BlockKind
    count: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnassignBlocks:
    """Give blocks of an ENI back, all of one kind, whose every address is free."""

    eni_id: EniId
    blocks: tuple[Block, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseEni:
    """Detach and delete an ENI that nobody uses."""

    eni_id: EniId
    reason: str


Action = CreateEni | AssignBlocks | UnassignBlocks | ReleaseEni
"""Everything a plan can ask for. Independent of each other: they may run at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the planner knows of the world, at one moment.

    enis: all of the instance, other people's and other cards' included: they count against the limits.
    waiter_count: requests that wait for an address now.
    announced_count: pods bound to this node which have not asked yet.
    peak_demand_count: the largest demand during the last `settle_addresses_s`.
    peak_eni_demand_count: the largest demand during the last `settle_enis_s`.
    quiet_s: seconds since demand last rose.
    watched_s: seconds demand has been watched: a peak before that is unknown, and nothing is given back.
    subnets: where a new ENI may go, best first; empty when nobody has asked EC2.
    blocked_subnets: nothing can be had there for now.
    short_subnets: subnets in which EC2 refused a request, with the addresses left: ask for no more than needed.
    in_flight: actions that have been started and whose result is not in `enis` yet.
    setting_up: ENIs whose link is being configured.
    growth_held, shrink_held: EC2 refused such an action a moment ago; do not try now.
    """

    now_s: float
    limits: InstanceLimits
    enis: tuple[EniUsage, ...]
    waiter_count: int = 0
    announced_count: int = 0
    peak_demand_count: int = 0
    peak_eni_demand_count: int = 0
    quiet_s: float = 0.0
    watched_s: float = 0.0
    subnets: tuple[Subnet, ...] = ()
    blocked_subnets: frozenset[SubnetId] = frozenset()
    short_subnets: Mapping[SubnetId, int] = field(default_factory=dict)
    in_flight: tuple[Action, ...] = ()
    setting_up: frozenset[EniId] = frozenset()
    growth_held: bool = False
    shrink_held: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do now, and why.

    reason: one sentence with the numbers; it explains an empty plan too.
    short_count: addresses missing, those in flight counted as there, whether or not `actions` can fetch them.
    recheck_after_s: when time alone may change the plan.
    """

    actions: tuple[Action, ...]
    reason: str
    short_count: int
    recheck_after_s: float
