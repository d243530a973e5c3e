"""A node in memory for tests of the planner: the real ledger and planner, an EC2 that keeps its rules, and no time.

Actions take effect at once. Whatever breaks a rule of EC2, or takes an address from somebody, is an AssertionError.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import assert_never

from agent.ipam.demand import DemandHistory
from agent.ipam.model import AddressState, Eni, EniId, InstanceLimits, Subnet
from agent.ipam.plan import (
    Action,
    AssignBlocks,
    CreateEni,
    Observation,
    Plan,
    PoolPolicy,
    ReleaseEni,
    UnassignBlocks,
)
from agent.ipam.planner import account, eni_limit, plan
from tests.ipam_builders import SUBNET, a_holder, a_ledger, an_eni, ip, single

COOLDOWN_S = 30.0


class SimulatedNode:
    """One node. `subnet_free_count` is what the subnet has left for everybody."""

    def __init__(
        self, limits: InstanceLimits, policy: PoolPolicy, *, subnet_free_count: int = 50_000, foreign_enis: int = 0
    ) -> None:
        self.limits = limits
        self.policy = policy
        self.now_s = 0.0
        self.subnet_free_count = subnet_free_count
        self.calls: Counter[str] = Counter()
        self.waiting: list[str] = []
        self.running: list[str] = []
        self._next_address = 10
        self._next_eni = 0
        self._started = 0
        foreign = [an_eni(limits.eni_count - 1 - n, managed=False) for n in range(foreign_enis)]
        self.enis: dict[EniId, Eni] = {eni.eni_id: eni for eni in [an_eni(0), *foreign]}
        self.ledger = a_ledger(*self.enis.values())
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
                self._next_eni += 1
                granted = self._take(action.count + 1)[1:]
                eni = an_eni(action.device, granted, name=self._next_eni)
                self.enis[eni.eni_id] = eni
                self.ledger.inventory.add_eni(eni, self.now_s)
                self.ledger.inventory.eni_ready(eni.eni_id, action.device + 1)
            case AssignBlocks():
                self.calls.update(["assign"])
                eni = self.enis[action.eni_id]
                assert eni.managed
                assert action.count >= 1
                assert len(eni.blocks) + action.count <= self.limits.slots, "more addresses than the ENI can have"
                granted = self._take(action.count)
                blocks = tuple(single(address) for address in granted)
                self.enis[action.eni_id] = replace(eni, blocks=eni.blocks + blocks)
                self.ledger.inventory.granted(action.eni_id, blocks, self.now_s)
            case UnassignBlocks():
                self.calls.update(["unassign"])
                self.ledger.inventory.retire(action.blocks, self.now_s)  # raises unless they are free
                eni = self.enis[action.eni_id]
                left = tuple(block for block in eni.blocks if block not in action.blocks)
                assert len(left) == len(eni.blocks) - len(action.blocks), "not an address of this ENI"
                self.enis[action.eni_id] = replace(eni, blocks=left)
                self.subnet_free_count += len(action.blocks)
                self.ledger.inventory.retired(action.blocks, self.now_s)
            case ReleaseEni():
                self.calls.update(["detach", "delete"])
                self.ledger.inventory.retire_eni(action.eni_id, self.now_s)  # raises when anybody uses it
                self.subnet_free_count += len(self.enis.pop(action.eni_id).blocks) + 1
                self.ledger.inventory.eni_gone(action.eni_id, self.now_s)
            case _:
                assert_never(action)

    def _take(self, count: int) -> list[IPv4Address]:
        assert self.subnet_free_count >= count, "the subnet has not that many addresses"
        self.subnet_free_count -= count
        self._next_address += count
        return [ip(self._next_address - n) for n in range(count)]

    # ---- what came of it

    @property
    def total_count(self) -> int:
        return sum(len(eni.blocks) for eni in self.enis.values() if eni.managed)

    @property
    def free_count(self) -> int:
        return self.ledger.inventory.count(AddressState.FREE)
