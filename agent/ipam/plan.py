"""Values of planning: what the planner sees, what it wants, and what it answers. Frozen, almost without behaviour.

They are apart from `model` because only the planner and the pool loop speak of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from agent.errors import AgentError
from agent.ipam.model import Block, BlockKind, EniId, EniUsage, InstanceLimits, Subnet, SubnetId
from agent.ipam.placement import PlacementPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPolicy:
    """How many addresses to hold. The names and meanings of the AWS plugin's settings.

    prefix_delegation: hold /28 prefixes instead of secondary addresses.
    warm_eni_target: ENIs' worth of free addresses; used only while both IP targets are 0, and not with prefixes.
    warm_prefix_target: prefixes' worth of free addresses; used in its place with prefixes.
    warm_ip_target: free addresses; 0 is unset.
    minimum_ip_target: addresses in all; 0 is unset.
    max_eni: ENIs in all, those of others included; None: what the instance type allows.
    reserves_trunk: leave room for one ENI, the trunk of pods with security groups of their own, while there is none.
    custom_networking: new ENIs go where the node's ENIConfig says, and the primary ENI serves no pods.
    settle_addresses_s, settle_enis_s: how long something must have been idle before it is given back.
    """

    prefix_delegation: bool = False
    warm_eni_target: int = 1
    warm_prefix_target: int = 1
    warm_ip_target: int = 0
    minimum_ip_target: int = 0
    max_eni: int | None = None
    reserves_trunk: bool = False
    custom_networking: bool = False
    settle_addresses_s: float = 600.0
    settle_enis_s: float = 900.0

    @property
    def has_ip_targets(self) -> bool:
        return self.warm_ip_target > 0 or self.minimum_ip_target > 0

    @property
    def counts_addresses(self) -> bool:
        """The target is a number of addresses; otherwise it is whole ENIs, and single blocks are never given back."""
        return self.has_ip_targets or self.prefix_delegation

    @property
    def kind(self) -> BlockKind:
        """The kind of block to hold."""
        return BlockKind.IPV4_PREFIX if self.prefix_delegation else BlockKind.IPV4_ADDRESS

    @property
    def placement(self) -> PlacementPolicy:
        """What it means for the choice of a pod's address."""
        return PlacementPolicy(preferred=self.kind, primary_is_open=not self.custom_networking)

    def on(self, limits: InstanceLimits) -> PoolPolicy:
        """The policy as far as an instance type can follow it: without prefixes on one that takes none."""
        return self if limits.is_nitro else replace(self, prefix_delegation=False)


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
class EniSite:
    """Where new ENIs go with custom networking: an ENIConfig. No security groups: those of the primary ENI."""

    subnet_id: SubnetId
    security_groups: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What somebody else knows of this node, and the pool only hears: see the fields of `Observation`.

    announced: (namespace, name) of pods bound to this node that will ask for an address, if they have not yet.
    site_problem: why nobody knows the site, with custom networking.
    """

    announced: frozenset[tuple[str, str]] = frozenset()
    site: EniSite | None = None
    site_problem: AgentError | None = None
    is_schedulable: bool = True
    is_provisioning: bool = True
    max_pods: int | None = None


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
    fragmented_subnets: subnets in which EC2 refused a single prefix a moment ago: ask for secondary addresses.
    scarce_subnets: subnets in which EC2 refused several prefixes at once: ask for one at a time.
    site: where a new ENI must go; None: in any of `subnets`, unless the policy asks for custom networking.
    is_schedulable: False for a cordoned node, whose ENIs and addresses are left as they are.
    is_provisioning: False when somebody else gives this node its ENIs and addresses.
    max_pods: what the kubelet takes, None when unknown.
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
    fragmented_subnets: frozenset[SubnetId] = frozenset()
    scarce_subnets: frozenset[SubnetId] = frozenset()
    site: EniSite | None = None
    is_schedulable: bool = True
    is_provisioning: bool = True
    max_pods: int | None = None
    in_flight: tuple[Action, ...] = ()
    setting_up: frozenset[EniId] = frozenset()
    growth_held: bool = False
    shrink_held: bool = False


def touched(seen: Observation) -> set[EniId]:
    """ENIs that an action in flight works on."""
    return {action.eni_id for action in seen.in_flight if not isinstance(action, CreateEni)}


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
