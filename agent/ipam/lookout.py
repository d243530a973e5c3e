"""When to ask EC2 what there is, and what its answers mean: describes of ENIs and of subnets.

An idle node asks for its ENIs four times an hour and for its subnets once, together with one of those. A node that
begins to grow asks for subnets while EC2 assigns the first addresses. So an ENI hardly ever waits for the list.

A full subnet is found out by EC2's refusal; from then on the list of subnets is asked for again, ever more rarely,
instead of the addresses: a read is cheaper than a refused write. A subnet without a free /28 does not show in the list:
after a refusal single addresses come from it, and prefixes are tried one at a time, ever more rarely.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

from agent.errors import AgentError, Cause, CloudLimit
from agent.events.model import Kind, Publish, publish_nowhere
from agent.ipam.breakers import Breakers
from agent.ipam.ledger import Ledger
from agent.ipam.model import AddressState, BlockKind, Finding, Subnet, SubnetId
from agent.ipam.plan import CreateEni, Plan
from agent.ipam.trouble import DESCRIBE_ENIS, DESCRIBE_SUBNETS, prefix_scope, subnet_scope
from agent.ports.cloud import Cloud
from agent.runtime.log import event_logger
from agent.runtime.purpose import purpose

log = event_logger(__name__)

DESCRIBE_EVERY_S = 900.0
"""How old the last describe of ENIs may get: four an hour on an idle node."""
SECOND_LOOK_S = 60.0
"""When to describe again after a describe that contradicts the kernel: well after EC2's own lag."""
SUBNETS_EVERY_S = 3300.0
"""How old the list of subnets must be for a describe of ENIs to bring a new one along: with every fourth."""
SUBNETS_FRESH_S = 5400.0
"""How long a list of subnets is good enough to choose one for a new ENI. EC2's refusal tells when one is full."""
SCARCE_S = 600.0
"""How long prefixes are asked for one at a time after EC2 refused several."""


class Lookout:
    """What EC2 said last, and when to ask again. Errors open breakers; nothing here raises an AgentError."""

    def __init__(
        self,
        *,
        cloud: Cloud,
        ledger: Ledger,
        breakers: Breakers,
        clock: Callable[[], float],
        publish: Publish = publish_nowhere,
    ) -> None:
        self._cloud = cloud
        self._publish = publish
        self._ledger = ledger
        self._breakers = breakers
        self._clock = clock
        self.described_s = clock()
        self.describe_at_s = self.described_s + DESCRIBE_EVERY_S
        self.subnets: tuple[Subnet, ...] = ()
        self.is_distrusted = False
        """The ledger may lack what EC2 granted: nothing more must be asked for before the next describe."""
        self.findings: deque[Finding] = deque(maxlen=32)
        self._doubt_count = 0
        self._subnets_s = float("-inf")
        self._short: dict[SubnetId, int] = {}
        self._scarce: dict[SubnetId, float] = {}

    @property
    def short_subnets(self) -> dict[SubnetId, int]:
        """Subnets that refused a request lately, and how many addresses they had left then; at least 1."""
        return {one: left for one, left in self._short.items() if self._breakers.is_failing(subnet_scope(one))}

    @property
    def blocked_subnets(self) -> frozenset[SubnetId]:
        """Subnets that had nothing left when last looked at, until the next look.

        That is when their breaker is half-open: a read shows what a refused write would. While EC2 does not let us
        read, a write is the probe.
        """
        is_blind = self._breakers.is_open(DESCRIBE_SUBNETS)
        is_shut = self._breakers.is_open if is_blind else self._breakers.is_failing
        return frozenset(one for one in self._known_subnets() - set(self.short_subnets) if is_shut(subnet_scope(one)))

    @property
    def fragmented_subnets(self) -> frozenset[SubnetId]:
        """Subnets that refused a single prefix, for as long as their breaker is open."""
        return frozenset(one for one in self._known_subnets() if self._breakers.is_open(prefix_scope(one)))

    @property
    def scarce_subnets(self) -> frozenset[SubnetId]:
        """Subnets to ask for one prefix at a time: they refused several, or are tried again after refusing one."""
        now_s = self._clock()
        refused = {one for one in self._known_subnets() if self._breakers.is_failing(prefix_scope(one))}
        return frozenset(refused | {one for one, until_s in self._scarce.items() if now_s < until_s})

    @property
    def is_due(self) -> bool:
        """The last describe of ENIs is old, or doubted, and EC2 may be asked."""
        return self._clock() >= self.describe_at_s and not self._breakers.is_open(DESCRIBE_ENIS)

    async def look_at_enis(self) -> None:
        """Describe the ENIs and reconcile the ledger."""
        doubts_before = self._doubt_count
        is_scheduled = self._clock() - self.described_s >= DESCRIBE_EVERY_S
        try:
            with purpose("observe" if is_scheduled else "confirm"):
                enis = await self._cloud.describe_enis()
        except AgentError as error:
            self._breakers.trip(DESCRIBE_ENIS, error)
            return
        self._breakers.reset(DESCRIBE_ENIS)
        self.described_s = self._clock()
        findings = self._ledger.observe_enis(enis, self.described_s)
        for finding in findings:
            log.warning("finding", kind=finding.kind, message=finding.message, **finding.evidence)
            self._publish(
                Kind.FINDING, **{**finding.evidence, "finding": str(finding.kind), "message": finding.message}
            )
        self.findings.extend(findings)
        if self._doubt_count == doubts_before:
            # Otherwise a doubt came up while EC2 answered: this answer does not settle it.
            self.is_distrusted = False
            unsettled = bool(findings) or self._ledger.inventory.count(AddressState.RETIRING) > 0
            self.describe_at_s = self.described_s + (SECOND_LOOK_S if unsettled else DESCRIBE_EVERY_S)
        if self._clock() - self._subnets_s >= SUBNETS_EVERY_S:
            await self.look_at_subnets()

    def describe_soon(self, after_s: float) -> None:
        """Have the ENIs described no later than `after_s` from now."""
        self._doubt_count += 1
        self.describe_at_s = min(self.describe_at_s, self._clock() + after_s)

    def distrust(self) -> None:
        """The ledger may not know what EC2 has: describe at once, and grow only after that."""
        self.is_distrusted = True
        self.describe_soon(0.0)

    def wants_subnets(self, decided: Plan) -> bool:
        """Whether a plan needs a new list of subnets, and EC2 may be asked.

        It does when it makes an ENI by an old list, when it may be time to try a full subnet again, and when the pool
        grows and nobody has asked yet: its next step may be an ENI.
        """
        if self._breakers.is_open(DESCRIBE_SUBNETS) or not decided.short_count:
            return False
        creates = any(isinstance(action, CreateEni) for action in decided.actions)
        is_first = bool(decided.actions) and math.isinf(self._subnets_s)
        return is_first or (creates and self.is_list_old) or bool(self._half_open_subnets())

    @property
    def is_list_old(self) -> bool:
        """The list of subnets is too old to choose one for a new ENI."""
        return self._clock() - self._subnets_s >= SUBNETS_FRESH_S

    def prefixes_refused(self, subnet_id: SubnetId, count: int, error: AgentError) -> None:
        """EC2 refused `count` prefixes in a subnet: try one at a time; single addresses when there is not one."""
        error.evidence["subnet"] = subnet_id
        self._scarce[subnet_id] = self._clock() + SCARCE_S
        if count == 1:
            self._breakers.trip(prefix_scope(subnet_id), error)

    async def subnet_refused(self, subnet_id: SubnetId, asked_count: int, error: AgentError) -> None:
        """EC2 refused `asked_count` addresses in a subnet: find out how many there are, to ask for exactly that.

        The subnet's breaker opens in any case: it says when to look again.
        """
        error.evidence["subnet"] = subnet_id  # EC2 was asked for an ENI and does not say which subnet was full
        self._breakers.trip(subnet_scope(subnet_id), error)
        if not await self.look_at_subnets():
            self._short.pop(subnet_id, None)
        elif self._free_count(subnet_id) >= asked_count:
            # EC2 contradicts itself (its count lags, or the rest is reserved): do not ask for the same again.
            self._short.pop(subnet_id, None)

    def subnet_granted(self, subnet_id: SubnetId, kind: BlockKind) -> None:
        """EC2 granted all that was asked for in a subnet."""
        if kind is BlockKind.IPV4_PREFIX:
            self._breakers.reset(prefix_scope(subnet_id))
        self._short.pop(subnet_id, None)
        self._breakers.reset(subnet_scope(subnet_id))

    async def look_at_subnets(self) -> bool:
        """Describe the subnets; whether EC2 answered."""
        if self._breakers.is_open(DESCRIBE_SUBNETS):
            return False
        half_open = self._half_open_subnets()
        try:
            with purpose("subnets"):
                self.subnets = await self._cloud.describe_subnets()
        except AgentError as error:
            self._breakers.trip(DESCRIBE_SUBNETS, error)
            return False
        self._breakers.reset(DESCRIBE_SUBNETS)
        self._subnets_s = self._clock()
        for subnet_id in half_open:
            self._breakers.trip(subnet_scope(subnet_id), exhausted(subnet_id, self._free_count(subnet_id)))
        tripped = {subnet_id for subnet_id in self._known_subnets() if self._breakers.is_open(subnet_scope(subnet_id))}
        self._short = {one: self._free_count(one) for one in tripped if self._free_count(one) > 0}
        return True

    def _free_count(self, subnet_id: SubnetId) -> int:
        return next((one.free_address_count for one in self.subnets if one.subnet_id == subnet_id), 0)

    def _half_open_subnets(self) -> list[SubnetId]:
        return [one for one in self._known_subnets() if self._breakers.is_half_open(subnet_scope(one))]

    def _known_subnets(self) -> set[SubnetId]:
        return {usage.eni.subnet_id for usage in self._ledger.enis()} | {one.subnet_id for one in self.subnets}


def exhausted(subnet_id: SubnetId, free_count: int) -> CloudLimit:
    """The error of a subnet that has fewer addresses than were asked for."""
    return CloudLimit(
        Cause.SUBNET_EXHAUSTED,
        f"subnet {subnet_id} has {free_count} free addresses, fewer than needed",
        evidence={"subnet": subnet_id, "free": free_count},
        remedy="free addresses in the subnet, or tag another subnet of this zone for pods",
    )
