"""The whole pool in random walks: pods come and go, EC2 and the kernel fail, hours pass.

No address is ever handed out twice, none that a pod uses is ever given back, and when everything works again, the pool
finds back to its target.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import (
    AgentError,
    Cause,
    CloudDenied,
    CloudFailed,
    CloudGone,
    CloudLimit,
    CloudThrottled,
    KernelFailed,
    TryAgain,
)
from agent.ipam.model import Address, AddressState
from agent.ipam.plan import PoolPolicy
from tests.ipam_builders import M5_LARGE, OTHER_SUBNET, SUBNET, T3_SMALL
from tests.pool_world import PoolWorld, pool_world
from tests.virtual_time import virtual_time

CLOUD_ERRORS: list[AgentError] = [
    CloudThrottled(Cause.EC2_THROTTLED, "throttled", retry_after_s=3.0),
    CloudFailed(Cause.EC2_UNAVAILABLE, "no answer"),
    CloudGone(Cause.EC2_GONE, "gone"),
    CloudDenied(Cause.IAM_DENIED, "denied"),
    CloudLimit(Cause.EC2_LIMIT, "limit"),
    CloudLimit(Cause.SUBNET_EXHAUSTED, "full"),
]


class Walk:
    """One walk. Every pod that got an address has it for itself until it stops."""

    def __init__(self, world: PoolWorld, seed: int) -> None:
        self.world = world
        self.dice = random.Random(seed)
        self.running: dict[str, Address] = {}
        self.names = 0
        self.refusals: list[TryAgain] = []

    async def pod(self, name: str) -> None:
        try:
            reservation = await self.world.start_pod(name, deadline_s=self.dice.uniform(0.5, 60.0))
        except TryAgain as error:
            self.refusals.append(error)
            return
        (address,) = reservation.addresses
        assert address not in self.running.values(), "one address, two pods"
        self.running[name] = address

    def step(self, group: asyncio.TaskGroup) -> None:
        dice, world = self.dice, self.world
        match dice.randrange(7):
            case 0 | 1 | 2:
                for _ in range(dice.randint(1, 8)):
                    self.names += 1
                    group.create_task(self.pod(f"pod-{self.names}"))
            case 3 | 4:
                for name in dice.sample(sorted(self.running), k=min(len(self.running), dice.randint(1, 8))):
                    del self.running[name]
                    world.stop_pod(name)
            case 5:
                action = dice.choice(["assign", "create", "delete", "unassign", "describe", "subnets"])
                world.ec2.failures.setdefault(action, deque()).append(dice.choice(CLOUD_ERRORS))
            case _:
                if dice.random() < 0.5:
                    world.kernel.failures.append(KernelFailed(Cause.KERNEL_REFUSED, "refused"))
                else:
                    world.ec2.lost_replies.append(CloudFailed(Cause.EC2_UNAVAILABLE, "the reply was lost"))

    async def check_the_end(self, policy: PoolPolicy) -> None:
        """When everything works again, the pool finds back to its target and to what EC2 has."""
        world = self.world
        assert all(error.evidence and error.retry_after_s is not None for error in self.refusals)
        world.ec2.failures.clear()
        world.ec2.lost_replies.clear()
        world.kernel.failures.clear()
        await asyncio.sleep(4 * 3_600.0)
        view = world.pool.view()
        assert view.failure is None
        assert view.waiter_count == 0
        assert {one.address for one in view.addresses} == {
            block.network.network_address for eni in world.ec2.enis.values() for block in eni.blocks
        }
        assert sorted(str(one.address) for one in view.addresses if one.state is AddressState.HELD) == sorted(
            str(address) for address in self.running.values()
        )
        assert all(usage.ready for usage in view.enis)
        needed = max(len(self.running) + policy.warm_ip_target, policy.minimum_ip_target)
        assert len(view.addresses) == min(needed, world.limits.eni_count * world.limits.slots)


@virtual_time
async def walk(seed: int, policy: PoolPolicy, *, is_small: bool) -> None:
    dice = random.Random(seed)
    async with pool_world(policy, limits=T3_SMALL if is_small else M5_LARGE, draw=dice.random) as world:
        world.ec2.subnet_free[OTHER_SUBNET] = 200
        journey = Walk(world, seed)
        async with asyncio.TaskGroup() as pods:
            for _ in range(60):
                journey.step(pods)
                await asyncio.sleep(dice.choice([0.0, 0.1, 0.5, 5.0, 40.0, 1_000.0]))
        world.ec2.subnet_free[SUBNET] = max(world.ec2.subnet_free[SUBNET], 100)
        await journey.check_the_end(policy)


@pytest.mark.parametrize("is_small", [True, False], ids=["t3.small", "m5.large"])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), warm=st.integers(0, 5), minimum=st.integers(1, 12))
def test_a_walk_ends_where_it_should(is_small: bool, seed: int, warm: int, minimum: int) -> None:  # noqa: FBT001
    walk(seed, PoolPolicy(warm_ip_target=warm, minimum_ip_target=minimum), is_small=is_small)
