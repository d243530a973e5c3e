"""The pool when EC2 or the kernel fails: who retries, when, and what is never lost."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from agent.errors import Cause, CloudGone, CloudLimit, KernelFailed
from agent.ipam.model import AddressState
from agent.ipam.plan import PoolPolicy, Surroundings
from tests.ipam_builders import M5_LARGE, OTHER_SUBNET, SUBNET, T3_SMALL, an_eni, eni_id, ip
from tests.pool_world import MemoryEc2, denied, pool_world, reason_of, throttled, unavailable
from tests.virtual_time import virtual_time

IP_TARGETS = PoolPolicy(warm_ip_target=5, minimum_ip_target=10)
LEAN = PoolPolicy(warm_ip_target=0, minimum_ip_target=1)

FREE, HELD, COOLING = AddressState.FREE, AddressState.HELD, AddressState.COOLING
QUARANTINED, RETIRING = AddressState.QUARANTINED, AddressState.RETIRING


@virtual_time
async def test_throttling_backs_off_and_no_wake_defeats_it() -> None:
    async with pool_world(LEAN) as world:
        world.ec2.always["assign"] = throttled()
        waiting = [asyncio.create_task(world.start_pod(f"pod-{n}", deadline_s=300.0)) for n in range(5)]
        for _ in range(300):
            world.loop.wake()
            await asyncio.sleep(0.2)
        assert world.ec2.count("assign") <= 9
        gaps = [b.at_s - a.at_s for a, b in zip(world.ec2.calls, world.ec2.calls[1:], strict=False)]
        assert gaps == sorted(gaps)
        world.ec2.always.clear()
        await asyncio.gather(*waiting)
        assert world.pool.view().failure is None


@virtual_time
async def test_ec2s_hint_is_a_lower_bound() -> None:
    async with pool_world(LEAN) as world:
        world.ec2.failures["assign"] = deque([throttled(45.0)])
        began_s = world.now_s()
        await world.start_pod("web", deadline_s=100.0)
        assert world.now_s() - began_s == pytest.approx(45.6)


@virtual_time
async def test_free_addresses_are_handed_out_whatever_fails() -> None:
    async with pool_world(IP_TARGETS) as world:
        await asyncio.sleep(1.0)
        world.ec2.always["assign"] = throttled()
        world.ec2.always["create"] = throttled()
        began_s = world.now_s()
        for number in range(10):
            await world.start_pod(f"pod-{number}")
        assert world.now_s() == began_s


@virtual_time
async def test_an_unknown_outcome_of_an_assign_is_looked_up() -> None:
    async with pool_world(LEAN) as world:
        world.ec2.lost_replies.append(unavailable())
        await world.start_pod("web")
        # The subnets are looked up beside the first growth, for the ENI that may come next.
        assert [call.action for call in world.ec2.calls] == ["subnets", "assign", "describe"]


@virtual_time
async def test_an_eni_that_is_gone_is_looked_up_again() -> None:
    def enis(ec2: MemoryEc2) -> None:
        ec2.attach(an_eni(0, [ip(1), ip(2), ip(3)]))
        ec2.attach(an_eni(1))

    async with pool_world(LEAN, limits=T3_SMALL, ec2=enis) as world:
        await asyncio.gather(*(world.start_pod(f"pod-{number}") for number in range(3)))
        world.ec2.failures["assign"] = deque([CloudGone(Cause.EC2_GONE, "no such ENI")])
        del world.ec2.enis[eni_id(1)]
        reservation = await world.start_pod("late")
        assert [call.action for call in world.ec2.calls] == ["subnets", "assign", "describe", "create"]
        assert reservation.eni_id in world.ec2.enis


@virtual_time
async def test_a_denied_release_keeps_the_addresses_and_asks_rarely() -> None:
    async with pool_world(IP_TARGETS, ec2=lambda ec2: ec2.attach(an_eni(0, [ip(n) for n in range(1, 20)]))) as world:
        world.ec2.always["unassign"] = denied()
        await asyncio.sleep(3 * 3_600.0)
        assert world.ec2.count("unassign") <= 25
        assert world.count(FREE) == 19
        world.ec2.always.clear()
        await asyncio.sleep(3_600.0)
        assert world.count(FREE) == 10


@virtual_time
async def test_a_release_with_an_unknown_outcome_is_never_handed_out_unseen() -> None:
    async with pool_world(IP_TARGETS, ec2=lambda ec2: ec2.attach(an_eni(0, [ip(n) for n in range(1, 20)]))) as world:
        world.ec2.lost_replies.append(unavailable())
        while not world.ec2.count("unassign"):
            await asyncio.sleep(10.0)
        assert world.count(RETIRING) == 9
        await asyncio.sleep(60.0)
        assert world.count(RETIRING) == 0
        assert {view.address for view in world.pool.view().addresses} == {
            block.network.network_address for block in world.ec2.enis[eni_id(0)].blocks
        }


@virtual_time
async def test_a_full_subnet_costs_a_handful_of_refused_writes_an_hour() -> None:
    def full(ec2: MemoryEc2) -> None:
        ec2.subnet_free[SUBNET] = 0

    async with pool_world(IP_TARGETS, ec2=full) as world:
        error = await reason_of(asyncio.create_task(world.start_pod("web")))
        assert error.cause is Cause.SUBNET_EXHAUSTED
        await asyncio.sleep(3_600.0)
        assert sum(call.refused for call in world.ec2.calls) <= 2
        assert world.ec2.count("subnets") <= 12
        world.ec2.subnet_free[SUBNET] = 1_000
        await asyncio.sleep(3_600.0)
        assert world.count(FREE) == 10
        assert world.pool.view().failure is None


@virtual_time
async def test_a_short_subnet_is_emptied_to_the_last_address() -> None:
    def short(ec2: MemoryEc2) -> None:
        ec2.subnet_free[SUBNET] = 7

    async with pool_world(IP_TARGETS, ec2=short) as world:
        await asyncio.gather(*(world.start_pod(f"pod-{number}") for number in range(7)))
        assert world.ec2.subnet_free[SUBNET] == 0
        assert sum(call.refused for call in world.ec2.calls) <= 2


@virtual_time
async def test_another_subnet_is_tried_at_once() -> None:
    def two(ec2: MemoryEc2) -> None:
        ec2.subnet_free = {SUBNET: 0, OTHER_SUBNET: 500}

    async with pool_world(IP_TARGETS, ec2=two) as world:
        await world.start_pod("web")
        assert {eni.subnet_id for eni in world.ec2.enis.values()} == {SUBNET, OTHER_SUBNET}


@virtual_time
async def test_an_instance_that_takes_fewer_enis_than_believed_is_not_asked_in_a_loop() -> None:
    async with pool_world(LEAN, limits=T3_SMALL) as world:
        world.ec2.always["create"] = CloudLimit(Cause.EC2_LIMIT, "AttachmentLimitExceeded")
        await asyncio.gather(*(world.start_pod(f"pod-{number}") for number in range(3)))
        error = await reason_of(asyncio.create_task(world.start_pod("late", deadline_s=1_800.0)))
        assert error.cause is Cause.EC2_LIMIT
        assert world.ec2.count("create") <= 8


# ---- Failures of the kernel


@virtual_time
async def test_an_eni_without_a_link_is_worked_around() -> None:
    async with pool_world(LEAN, limits=M5_LARGE) as world:
        await asyncio.gather(*(world.start_pod(f"pod-{number}") for number in range(9)))
        world.ec2.link_delay_s = 7_200.0
        request = asyncio.create_task(world.start_pod("late", deadline_s=120.0))
        await asyncio.sleep(10.0)
        world.ec2.link_delay_s = 1.0
        reservation = await request
        assert len(world.ec2.enis) == 3
        assert reservation.eni_id == list(world.ec2.enis)[-1]


@virtual_time
async def test_a_set_up_that_fails_is_tried_again() -> None:
    async with pool_world(LEAN, limits=T3_SMALL) as world:
        await asyncio.gather(*(world.start_pod(f"pod-{number}") for number in range(3)))
        world.kernel.failures.append(KernelFailed(Cause.KERNEL_REFUSED, "no"))
        await world.start_pod("late")
        assert not world.kernel.failures


@virtual_time
async def test_addresses_of_an_eni_being_set_up_are_counted_once() -> None:
    async with pool_world(LEAN, limits=T3_SMALL) as world:
        await asyncio.gather(*(world.start_pod(f"pod-{number}") for number in range(3)))
        world.ec2.link_delay_s = 25.0
        late = [asyncio.create_task(world.start_pod("late-1", deadline_s=60.0))]
        await asyncio.sleep(5.0)
        assert [len(eni.blocks) for eni in world.ec2.enis.values()] == [3, 1]
        late += [asyncio.create_task(world.start_pod(f"late-{n}", deadline_s=60.0)) for n in (2, 3, 4)]
        await asyncio.sleep(5.0)
        assert [len(eni.blocks) for eni in world.ec2.enis.values()] == [3, 3, 1]
        await asyncio.gather(*late)


@virtual_time
async def test_at_start_every_eni_is_set_up_and_a_broken_one_does_not_hold_the_others_up() -> None:
    def enis(ec2: MemoryEc2) -> None:
        ec2.attach(an_eni(1, [ip(1)]))
        broken = an_eni(2, [ip(2)])
        ec2.enis[broken.eni_id] = broken

    async with pool_world(LEAN, limits=M5_LARGE, ec2=enis) as world:
        assert world.kernel.ensured == [eni_id(0), eni_id(1)]
        reservation = await world.start_pod("web")
        assert reservation.eni_id == eni_id(1)


@virtual_time
async def test_a_bug_in_an_action_ends_the_loop() -> None:
    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012 - leaving the world is what raises
        async with pool_world(LEAN) as world:

            async def broken(*_: object) -> None:
                raise ZeroDivisionError

            world.ec2.assign_blocks = broken  # type: ignore[method-assign, assignment]
            await asyncio.sleep(5.0)
    assert isinstance(caught.value.exceptions[0], ZeroDivisionError)


@virtual_time
async def test_a_full_instance_is_exhausted_as_long_as_pods_lack_an_address() -> None:
    """Also while nobody asks: the runtime gives up, and asks again later, for a pod that is bound all the time."""
    async with pool_world(LEAN, limits=T3_SMALL) as world:
        for number in range(9):
            await world.start_pod(f"pod-{number}")
        await asyncio.sleep(60.0)
        assert world.pool.exhausted() is None
        waiting = asyncio.create_task(world.start_pod("late", deadline_s=5.0))
        await asyncio.sleep(1.0)
        exhausted = world.pool.exhausted()
        assert exhausted is not None
        assert exhausted.cause is Cause.INSTANCE_LIMIT
        assert (await reason_of(waiting)).cause is Cause.INSTANCE_LIMIT
        assert world.pool.exhausted() is None

        world.pool.tell(Surroundings(announced=frozenset({("default", "late")})))
        await asyncio.sleep(1.0)
        exhausted = world.pool.exhausted()
        assert exhausted is not None
        assert exhausted.cause is Cause.INSTANCE_LIMIT
        world.stop_pod("pod-0")
        await asyncio.sleep(60.0)
        assert world.pool.exhausted() is None
