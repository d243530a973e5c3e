from __future__ import annotations

import asyncio
import io
import json
import logging
from dataclasses import replace

import pytest

from agent.errors import Cause, TryAgain
from agent.ipam.model import AddressState, BlockKind
from agent.ipam.plan import PoolPolicy, Surroundings
from agent.runtime.log import JsonFormatter
from tests.ipam_builders import M5_LARGE, T3_SMALL, a_holder, eni_id
from tests.pool_world import denied, pool_world, reason_of, throttled
from tests.virtual_time import virtual_time

IP_TARGETS = PoolPolicy(warm_ip_target=5, minimum_ip_target=10)
LEAN = PoolPolicy(warm_ip_target=0, minimum_ip_target=1)

FREE, HELD, COOLING = AddressState.FREE, AddressState.HELD, AddressState.COOLING
QUARANTINED, RETIRING = AddressState.QUARANTINED, AddressState.RETIRING


# ---- Serving


@virtual_time
async def test_a_pod_that_was_announced_and_now_waits_is_counted_once() -> None:
    async with pool_world(LEAN) as world:
        announced = frozenset(("default", f"pod-{number}") for number in range(9))
        world.pool.tell(Surroundings(announced=announced))
        await asyncio.sleep(2.0)
        assert world.count(FREE) == 10  # one quantum
        for _, pod in sorted(announced):
            await world.start_pod(pod)
        await asyncio.sleep(2.0)
        assert (world.count(HELD), world.count(FREE)) == (9, 1)


@virtual_time
async def test_the_pool_fills_to_its_target_and_serves_at_once() -> None:
    async with pool_world(IP_TARGETS) as world:
        await asyncio.sleep(1.0)
        assert world.count(FREE) == 10
        began_s = world.now_s()
        reservation = await world.start_pod("web")
        assert world.now_s() == began_s
        assert (reservation.eni_id, reservation.table_id) == (eni_id(0), 254)
        assert world.ec2.count("assign") == 1
        assert world.ec2.count() == world.ec2.count("assign", "subnets") == 2


@virtual_time
async def test_a_pod_waits_for_ec2_and_for_nothing_else() -> None:
    async with pool_world(LEAN) as world:
        began_s = world.now_s()
        await world.start_pod("web")
        # The first turn of the loop asked for the minimum already.
        assert world.now_s() - began_s == pytest.approx(world.ec2.delays_s["assign"])


@virtual_time
async def test_asking_again_gives_the_same_address() -> None:
    async with pool_world(IP_TARGETS) as world:
        first = await world.start_pod("web")
        assert await world.start_pod("web") == first
        assert world.count(HELD) == 1


@virtual_time
async def test_a_burst_is_one_step_and_first_come_first_served() -> None:
    async with pool_world(IP_TARGETS, limits=M5_LARGE) as world:
        await asyncio.sleep(5.0)
        world.ec2.calls.clear()
        served: list[int] = []

        async def pod(number: int) -> None:
            await world.start_pod(f"pod-{number}")
            served.append(number)

        began_s = world.now_s()
        await asyncio.gather(*(pod(number) for number in range(20)))
        assert served == sorted(served)
        assert world.now_s() - began_s <= world.ec2.delays_s["create"] + world.ec2.link_delay_s + 0.5
        assert world.ec2.count("create") == 1
        assert world.ec2.count("assign") <= 2


@virtual_time
async def test_an_address_is_handed_over_before_slower_actions_end() -> None:
    async with pool_world(LEAN, limits=T3_SMALL) as world:
        world.ec2.delays_s["create"] = 15.0
        began_s = world.now_s()
        waits: list[float] = []

        async def pod(number: int) -> None:
            await world.start_pod(f"pod-{number}", deadline_s=30.0)
            waits.append(world.now_s() - began_s)

        await asyncio.gather(*(pod(number) for number in range(5)))
        assert [wait < 2.0 for wait in waits] == [True, True, True, False, False]
        # Two ENIs at once are not needed; had they been, they would have come at once.
        assert max(waits) < 20.0


@virtual_time
async def test_several_enis_are_attached_at_the_same_time() -> None:
    async with pool_world(LEAN, limits=M5_LARGE) as world:
        began_s = world.now_s()
        await asyncio.gather(*(world.start_pod(f"pod-{number}") for number in range(27)))
        assert len(world.ec2.enis) == 3
        assert world.now_s() - began_s < 2 * world.ec2.delays_s["create"]


@virtual_time
async def test_a_slow_detach_does_not_keep_growth_waiting() -> None:
    policy = PoolPolicy(warm_ip_target=1, minimum_ip_target=1, settle_addresses_s=60.0, settle_enis_s=60.0)
    async with pool_world(policy, limits=T3_SMALL) as world:
        for number in range(4):
            await world.start_pod(f"pod-{number}")
        for number in range(4):
            world.stop_pod(f"pod-{number}")
        world.ec2.delays_s["delete"] = 300.0
        while not any(type(action).__name__ == "ReleaseEni" for action in world.pool.view().in_flight):
            await asyncio.sleep(10.0)
        began_s = world.now_s()
        await asyncio.gather(*(world.start_pod(f"new-{number}") for number in range(4)))
        assert world.now_s() - began_s < 10.0
        await asyncio.sleep(300.0)
        assert world.count(HELD) == 4


@virtual_time
async def test_who_waits_gets_a_cooled_address_when_the_instance_is_full() -> None:
    async with pool_world(PoolPolicy(warm_eni_target=1), limits=T3_SMALL) as world:
        await asyncio.gather(*(world.start_pod(f"pod-{number}") for number in range(9)))
        world.stop_pod("pod-4")
        began_s = world.now_s()
        reservation = await world.start_pod("late", deadline_s=60.0)
        assert world.now_s() - began_s == pytest.approx(30.0)
        assert reservation.addresses


@virtual_time
async def test_a_cancelled_waiter_leaves_nothing() -> None:
    async with pool_world(LEAN) as world:
        world.ec2.always["assign"] = throttled(3_600.0)
        waiting = asyncio.create_task(world.start_pod("web", deadline_s=600.0))
        await asyncio.sleep(5.0)
        assert world.pool.view().waiter_count == 1
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert world.pool.view().waiter_count == 0
        assert world.count(HELD) == 0


@virtual_time
async def test_a_waiter_cancelled_in_the_instant_it_is_served_gives_the_address_back() -> None:
    async with pool_world(PoolPolicy(warm_eni_target=1), limits=T3_SMALL) as world:
        await asyncio.gather(*(world.start_pod(f"pod-{number}") for number in range(9)))
        waiting = asyncio.create_task(world.start_pod("late", deadline_s=60.0))
        next_one = asyncio.create_task(world.start_pod("next", deadline_s=60.0))
        await asyncio.sleep(0.0)
        world.pool.release(a_holder("pod-0").key, cooldown_s=0.0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        began_s = world.now_s()
        await next_one
        assert world.now_s() == began_s
        assert world.count(HELD) == 9


@virtual_time
async def test_an_address_nobody_used_is_free_at_once() -> None:
    async with pool_world(LEAN) as world:
        first = await world.start_pod("web")
        assert world.pool.release(a_holder("web").key, cooldown_s=0.0) == first.addresses
        assert world.count(COOLING) == 0
        assert world.pool.release(a_holder("web").key, cooldown_s=0.0) == ()


# ---- The reasons


@virtual_time
async def test_a_full_instance_says_so_with_numbers() -> None:
    async with pool_world(PoolPolicy(warm_eni_target=1), limits=T3_SMALL) as world:
        await asyncio.gather(*(world.start_pod(f"pod-{number}") for number in range(9)))
        began_s = world.now_s()
        error = await reason_of(asyncio.create_task(world.start_pod("late")))
        assert world.now_s() - began_s == pytest.approx(20.0)
        assert error.cause is Cause.INSTANCE_LIMIT
        assert error.evidence["held"] == 9
        assert error.evidence["capacity"] == 9
        assert "MAX_ENI" in error.remedy
        world.stop_pod("pod-0")
        error = await reason_of(asyncio.create_task(world.start_pod("late", deadline_s=10.0)))
        assert error.cause is Cause.POOL_EMPTY_COOLING
        assert error.retry_after_s == pytest.approx(20.0)


@virtual_time
async def test_an_eni_on_its_way_out_is_the_reason_while_another_must_wait_for_it() -> None:
    async with pool_world(PoolPolicy(warm_eni_target=0), limits=T3_SMALL) as world:
        await asyncio.gather(*(world.start_pod(f"pod-{number}") for number in range(9)))
        for number in range(3, 9):
            world.stop_pod(f"pod-{number}")
        while not (leaving := [usage for usage in world.pool.view().enis if usage.leaving]):
            await asyncio.sleep(1.0)
        pods = [asyncio.create_task(world.start_pod(f"late-{number}", deadline_s=5.0)) for number in range(6)]
        done, _ = await asyncio.wait(pods)
        error = next(error for error in (one.exception() for one in done) if isinstance(error, TryAgain))
        assert error.cause is Cause.ENI_DETACHING
        assert leaving[0].eni.eni_id in error.message
        assert error.evidence["detaching"] == len(leaving)
        assert error.retry_after_s == 5.0
        await asyncio.gather(*(world.start_pod(f"late-{number}", deadline_s=20.0) for number in range(6)))


@virtual_time
async def test_what_others_provision_is_said_to_be_theirs() -> None:
    async with pool_world(PoolPolicy(warm_ip_target=1)) as world:
        await world.start_pod("first")
        await asyncio.sleep(5.0)
        world.pool.tell(Surroundings(is_provisioning=False))
        free_count = world.count(FREE)
        await asyncio.gather(*(world.start_pod(f"pod-{number}") for number in range(free_count)))
        error = await reason_of(asyncio.create_task(world.start_pod("late")))
        assert error.cause is Cause.PROVISIONED_ELSEWHERE
        assert error.evidence["held"] == 1 + free_count


@virtual_time
async def test_what_ec2_refused_is_the_reason_and_the_next_try_is_told() -> None:
    async with pool_world(LEAN) as world:
        world.ec2.always["assign"] = denied()
        error = await reason_of(asyncio.create_task(world.start_pod("web")))
        assert error.cause is Cause.IAM_DENIED
        assert "ec2:AssignPrivateIpAddresses" in error.message
        assert error.remedy == "allow it"
        failure = world.pool.view().failure
        assert failure is not None
        assert failure.cause is Cause.IAM_DENIED
        assert failure.retry_after_s is not None
        assert failure.retry_after_s == error.retry_after_s


@virtual_time
async def test_an_eni_on_its_way_is_a_reason() -> None:
    async with pool_world(LEAN, limits=T3_SMALL) as world:
        world.ec2.delays_s["create"] = 60.0
        await asyncio.gather(*(world.start_pod(f"pod-{number}") for number in range(3)))
        error = await reason_of(asyncio.create_task(world.start_pod("late")))
        assert error.cause is Cause.ENI_ATTACHING


@virtual_time
async def test_the_log_of_a_growth_names_the_requests_it_serves() -> None:
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("agent.ipam")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        async with pool_world(LEAN, limits=T3_SMALL) as world:
            await asyncio.gather(world.start_pod("a"), world.start_pod("b"))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    logged = [json.loads(line) for line in lines.getvalue().splitlines()]
    actions = [one for one in logged if one["event"] == "pool_action"]
    # The first fetches the minimum; nobody had asked yet.
    assert [one.get("request_id") for one in actions] == [None, "req-b"]
    assert actions[-1]["action"] == "AssignBlocks"
    assert actions[-1]["reason"].startswith("demand 2, need 2, have 1")


# ---- Looking at EC2


@virtual_time
async def test_an_idle_hour_costs_at_most_six_reads_and_no_write() -> None:
    async with pool_world(IP_TARGETS) as world:
        await asyncio.sleep(3_600.0)
        world.ec2.calls.clear()
        await asyncio.sleep(3_600.0)
        assert world.ec2.count("describe", "subnets") == world.ec2.count()
        assert world.ec2.count() <= 6


@virtual_time
async def test_a_held_address_that_ec2_forgets_is_looked_at_again_soon_and_kept() -> None:
    async with pool_world(IP_TARGETS) as world:
        reservation = await world.start_pod("web")
        await asyncio.sleep(100.0)
        before = world.ec2.enis[eni_id(0)]
        left = tuple(b for b in before.blocks if b.network.network_address not in reservation.addresses)
        world.ec2.enis[eni_id(0)] = replace(before, blocks=left)
        while not world.count(QUARANTINED):
            await asyncio.sleep(1.0)
        assert [finding.kind for finding in world.pool.view().findings] == ["address_vanished"]
        assert (await world.start_pod("web")).addresses == reservation.addresses
        world.ec2.enis[eni_id(0)] = before
        await asyncio.sleep(65.0)
        assert world.count(HELD) == 1
        assert [finding.kind for finding in world.pool.view().findings] == ["address_vanished", "address_returned"]


@virtual_time
async def test_addresses_assigned_by_somebody_else_are_found() -> None:
    async with pool_world(LEAN) as world:
        await asyncio.sleep(1.0)
        have = world.count(FREE)
        await world.ec2.assign_blocks(eni_id(0), BlockKind.IPV4_ADDRESS, 1)
        await asyncio.sleep(905.0)
        assert {view.address for view in world.pool.view().addresses} >= {
            block.network.network_address for block in world.ec2.enis[eni_id(0)].blocks
        }
        assert world.count(FREE) <= have + 1


# ---- The cost in calls


@virtual_time
async def test_fifty_pods_one_by_one_cost_eight_calls_with_the_eni() -> None:
    async with pool_world(IP_TARGETS) as world:
        await asyncio.sleep(10.0)
        world.ec2.calls.clear()
        for number in range(50):
            await world.start_pod(f"pod-{number}")
            await asyncio.sleep(10.0)
        # One create is three requests: create, attach, modify.
        assert world.ec2.count("assign", "subnets") + 3 * world.ec2.count("create") <= 8
        assert world.ec2.count() == world.ec2.count("assign", "subnets", "create")
        world.ec2.calls.clear()
        await asyncio.sleep(2 * 3_600.0)
        assert world.ec2.count("unassign", "assign") + 2 * world.ec2.count("delete") <= 2
        assert world.count(FREE) == 5
        assert world.count(HELD) == 50


@virtual_time
async def test_after_the_pods_have_gone_the_second_eni_goes_too() -> None:
    async with pool_world(IP_TARGETS) as world:
        await asyncio.gather(*(world.start_pod(f"pod-{number}") for number in range(50)))
        for number in range(50):
            world.stop_pod(f"pod-{number}")
        await asyncio.sleep(590.0)
        assert world.ec2.count("unassign", "delete") == 0
        await asyncio.sleep(3_600.0)
        assert (len(world.ec2.enis), world.count(FREE)) == (1, 10)
        assert world.ec2.count("unassign") <= 2
        assert world.ec2.count("delete") == 1
        assert world.kernel.tables == {eni_id(0): 254}


@virtual_time
async def test_the_dry_run_is_what_the_loop_would_do() -> None:
    async with pool_world(IP_TARGETS) as world:
        world.ec2.always["assign"] = throttled(5.0)
        await asyncio.sleep(1.0)
        held_back = world.pool.plan_now()
        assert (held_back.actions, held_back.short_count) == ((), 10)
        await asyncio.sleep(20.0)
        view = world.pool.view()
        assert (view.short_count, view.waiter_count) == (10, 0)
        assert "short" in view.reason
