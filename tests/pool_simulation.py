"""A node in memory for tests of the planner: the real ledger and planner, an EC2 that keeps its rules, and no time.

Actions take effect at once. Whatever breaks a rule of EC2, or takes an address from somebody, is an AssertionError.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Network
from typing import assert_never

from agent.ipam.account import account, eni_limit
from agent.ipam.demand import DemandHistory
from agent.ipam.model import AddressState, Block, BlockKind, Eni, EniId, InstanceLimits, Subnet
from agent.ipam.plan import (
    Action,
    AssignBlocks,
    CreateEni,
    EniSite,
    Observation,
    Plan,
    PoolPolicy,
    ReleaseEni,
    UnassignBlocks,
)
from agent.ipam.planner import plan
from tests.ipam_builders import SUBNET, a_holder, a_ledger, an_eni, ip, prefix, single

COOLDOWN_S = 30.0


class SimulatedNode:
    """One node. `subnet_free_count` is what the subnet has left for everybody."""

    def __init__(
        self,
        limits: InstanceLimits,
        policy: PoolPolicy,
        *,
        subnet_free_count: int = 50_000,
        subnet_prefix_count: int = 3_000,
        foreign_enis: int = 0,
    ) -> None:
        self.limits = limits
        self.policy = policy
        self.now_s = 0.0
        self.subnet_free_count = subnet_free_count
        self.subnet_prefix_count = subnet_prefix_count
        self.is_fragmented = False
        self.calls: Counter[str] = Counter()
        self.waiting: list[str] = []
        self.running: list[str] = []
        self._next_address = 10
        self._next_prefix = 1_000
        self._next_eni = 0
        self._started = 0
        foreign = [an_eni(limits.eni_count - 1 - n, managed=False) for n in range(foreign_enis)]
        self.site: EniSite | None = None
        self.is_schedulable = True
        self.enis: dict[EniId, Eni] = {eni.eni_id: eni for eni in [an_eni(0), *foreign]}
        self.ledger = a_ledger(*self.enis.values(), placement=policy.placement)
        self.demand = DemandHistory(max(policy.settle_addresses_s, policy.settle_enis_s), 0.0)
        self._next_eni = 1_000

    # ---- pods

    def start_pods(self, count: int) -> None:
        for _ in range(count):
            self._started += 1
            self.waiting.append(f"pod-{self._started}")
        self.serve()

    def stop_pod(self, index: int) -> None:
        self.ledger.release(a_holder(self.running.pop(index)).key, now_s=self.now_s, cooldown_s=COOLDOWN_S)

    def serve(self) -> None:
        self.ledger.cool(self.now_s)
        while self.waiting and self.ledger.reserve(a_holder(self.waiting[0]), self.now_s) is not None:
            self.running.append(self.waiting.pop(0))

    # ---- the pool

    def observe(self) -> Observation:
        short = {SUBNET: self.subnet_free_count} if 0 < self.subnet_free_count < 100 else {}
        fragmented = frozenset({SUBNET}) if self.is_fragmented and not self.subnet_prefix_count else frozenset()
        seen = Observation(
            now_s=self.now_s,
            limits=self.limits,
            enis=self.ledger.enis(),
            waiter_count=len(self.waiting),
            subnets=(
                Subnet(subnet_id=SUBNET, cidr=IPv4Network("10.0.0.0/16"), free_address_count=self.subnet_free_count),
            ),
            blocked_subnets=frozenset() if self.subnet_free_count else frozenset({SUBNET}),
            short_subnets=short,
            fragmented_subnets=fragmented,
            scarce_subnets=frozenset({SUBNET}) if self.is_fragmented else frozenset(),
            site=self.site,
            is_schedulable=self.is_schedulable,
        )
        self.demand.note(account(seen, self.policy).demand_count, self.now_s)
        return replace(
            seen,
            peak_demand_count=self.demand.peak_count(self.now_s, self.policy.settle_addresses_s),
            peak_eni_demand_count=self.demand.peak_count(self.now_s, self.policy.settle_enis_s),
            quiet_s=self.demand.quiet_s(self.now_s),
            watched_s=self.demand.watched_s(self.now_s),
        )

    def turn(self) -> Plan:
        """One turn of the pool's loop."""
        self.serve()
        decided = plan(self.observe(), self.policy)
        for action in decided.actions:
            self.apply(action)
        self.serve()
        return decided

    def turn_until_still(self, most: int = 12) -> int:
        """Turns until a plan is empty; how many had actions."""
        for count in range(most):
            if not self.turn().actions:
                return count
        raise AssertionError(f"no fixpoint after {most} turns: {self.turn()}")

    def settle(self) -> None:
        """Let the settle times pass with nothing happening."""
        self.turn_until_still()
        for _ in range(3):
            self.now_s += max(self.policy.settle_addresses_s, self.policy.settle_enis_s) + COOLDOWN_S
            self.turn_until_still()

    # ---- EC2

    def apply(self, action: Action) -> None:
        match action:
            case CreateEni():
                self.calls.update(["create", "attach", "modify"])
                assert len(self.enis) < eni_limit(self.limits, self.policy), "more ENIs than allowed"
                assert action.device not in {eni.device for eni in self.enis.values()}, "device index taken"
                assert 1 <= action.count <= self.limits.slots
                assert self.subnet_free_count >= action.count * action.kind.address_count + 1
                granted = self._take(action.kind, action.count)
                if granted is None:
                    return
                self._next_eni += 1
                self.subnet_free_count -= 1
                eni = replace(an_eni(action.device, name=self._next_eni), blocks=granted)
                self.enis[eni.eni_id] = eni
                self.ledger.inventory.add_eni(eni, self.now_s)
                self.ledger.inventory.eni_ready(eni.eni_id, action.device + 1)
            case AssignBlocks():
                self.calls.update(["assign"])
                eni = self.enis[action.eni_id]
                assert eni.managed
                assert action.count >= 1
                assert len(eni.blocks) + action.count <= self.limits.slots, "more addresses than the ENI can have"
                blocks = self._take(action.kind, action.count)
                if blocks is None:
                    return
                self.enis[action.eni_id] = replace(eni, blocks=eni.blocks + blocks)
                self.ledger.inventory.granted(action.eni_id, blocks, self.now_s)
            case UnassignBlocks():
                self.calls.update(["unassign"])
                self.ledger.inventory.retire(action.blocks, self.now_s)  # raises unless they are free
                eni = self.enis[action.eni_id]
                left = tuple(block for block in eni.blocks if block not in action.blocks)
                assert len(left) == len(eni.blocks) - len(action.blocks), "not an address of this ENI"
                self.enis[action.eni_id] = replace(eni, blocks=left)
                self._give_back(action.blocks)
                self.ledger.inventory.retired(action.blocks, self.now_s)
            case ReleaseEni():
                self.calls.update(["detach", "delete"])
                self.ledger.inventory.retire_eni(action.eni_id, self.now_s)  # raises when anybody uses it
                self.subnet_free_count += 1
                self._give_back(self.enis.pop(action.eni_id).blocks)
                self.ledger.inventory.eni_gone(action.eni_id, self.now_s)
            case _:
                assert_never(action)

    def _take(self, kind: BlockKind, count: int) -> tuple[Block, ...] | None:
        """Blocks as EC2 grants them, all or none; None when there are not so many whole /28."""
        assert self.subnet_free_count >= count * kind.address_count, "the subnet has not that many addresses"
        if kind is BlockKind.IPV4_PREFIX:
            if self.subnet_prefix_count < count:
                self.is_fragmented = True
                return None
            self.subnet_prefix_count -= count
            self._next_prefix += count
            blocks = tuple(prefix(self._next_prefix - n) for n in range(count))
        else:
            self._next_address += count
            blocks = tuple(single(ip(self._next_address - n)) for n in range(count))
        self.subnet_free_count -= count * kind.address_count
        return blocks

    def _give_back(self, blocks: Iterable[Block]) -> None:
        self.subnet_free_count += _address_count(blocks)
        self.subnet_prefix_count += sum(block.is_prefix for block in blocks)

    def switch(self, policy: PoolPolicy) -> None:
        """A restart with other settings."""
        self.policy = policy
        held, addresses = self.ledger.attachments(), self.ledger.addresses()
        self.ledger = a_ledger(*self.enis.values(), now_s=self.now_s, placement=policy.placement)
        for attachment in held:
            self.ledger.adopt(attachment.holder, attachment.addresses, self.now_s)
        for view in addresses:
            if view.state is AddressState.COOLING:
                self.ledger.rest(view.address, until_s=view.since_s + COOLDOWN_S, now_s=self.now_s)
        self.demand = DemandHistory(max(policy.settle_addresses_s, policy.settle_enis_s), self.now_s)

    # ---- what came of it

    @property
    def total_count(self) -> int:
        """Addresses EC2 has given to this node."""
        return sum(_address_count(eni.blocks) for eni in self.enis.values() if eni.managed)

    def block_count(self, kind: BlockKind) -> int:
        return sum(block.kind is kind for eni in self.enis.values() if eni.managed for block in eni.blocks)

    @property
    def free_count(self) -> int:
        return self.ledger.inventory.count(AddressState.FREE)


def _address_count(blocks: Iterable[Block]) -> int:
    return sum(block.kind.address_count for block in blocks)
