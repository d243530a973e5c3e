"""What a planner sees, and what it answers, for tests."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from agent.ipam.model import BlockKind, BlockUsage, EniUsage, InstanceLimits, SubnetId
from agent.ipam.plan import (
    AssignBlocks,
    CreateEni,
    Observation,
    PoolPolicy,
    UnassignBlocks,
)
from agent.ipam.planner import plan
from tests.ipam_builders import (
    M5_4XLARGE,
    SUBNET,
    an_eni,
    eni_id,
    ip,
    prefix,
    single,
)

IP_TARGETS = PoolPolicy(warm_ip_target=5, minimum_ip_target=10)
OLD_S = 10_000.0


def usage(
    device: int = 0,
    *,
    held: int = 0,
    free: int = 0,
    cooling: int = 0,
    prefixes: tuple[int, ...] = (),
    **changes: object,
) -> EniUsage:
    """An ENI with so many secondary addresses, and prefixes with so many of their addresses held."""
    start = 100 * (device + 1)
    singles = [single(ip(start + n)) for n in range(free + held + cooling)]
    slots = [
        BlockUsage(block=block, listed_count=1, busy_count=n >= free, free_count=n < free, changed_s=0.0)
        for n, block in enumerate(singles)
    ]
    slots += [
        BlockUsage(block=prefix(start + n), listed_count=16, busy_count=busy, free_count=16 - busy, changed_s=0.0)
        for n, busy in enumerate(prefixes)
    ]
    made = EniUsage(
        eni=an_eni(device),
        ready=True,
        leaving=False,
        since_s=0.0,
        held_count=held + sum(prefixes),
        cooling_count=cooling,
        quarantined_count=0,
        retiring_count=0,
        free=tuple(ip(start + n) for n in range(free))
        + tuple(address for n, busy in enumerate(prefixes) for address in prefix(start + n).addresses()[busy:]),
        blocks=tuple(slots),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def seen(*enis: EniUsage, limits: InstanceLimits = M5_4XLARGE, **changes: object) -> Observation:
    """Long quiet, with the present demand as the peak, unless `changes` say otherwise."""
    demand = sum(eni.busy_count for eni in enis)
    made = Observation(
        now_s=OLD_S,
        limits=limits,
        enis=enis,
        peak_demand_count=demand,
        peak_eni_demand_count=demand,
        quiet_s=OLD_S,
        watched_s=OLD_S,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def actions(observation: Observation, policy: PoolPolicy = IP_TARGETS) -> list[object]:
    """Without the reasons."""
    return [replace(action, reason="") for action in plan(observation, policy).actions]


def assign(device: int, count: int) -> AssignBlocks:
    return AssignBlocks(eni_id=eni_id(device), kind=BlockKind.IPV4_ADDRESS, count=count, reason="")


def unassign(device: int, *addresses: IPv4Address) -> UnassignBlocks:
    return UnassignBlocks(eni_id=eni_id(device), blocks=tuple(single(one) for one in addresses), reason="")


def create(device: int, count: int, subnet_id: SubnetId = SUBNET) -> CreateEni:
    return CreateEni(device=device, subnet_id=subnet_id, kind=BlockKind.IPV4_ADDRESS, count=count, reason="")
