"""When EC2 is asked for subnets: before an ENI needs them, and hardly ever otherwise."""

from __future__ import annotations

import asyncio

from agent.ipam.plan import PoolPolicy
from tests.ipam_builders import an_eni, ip
from tests.pool_world import MemoryEc2, pool_world
from tests.virtual_time import virtual_time

IP_TARGETS = PoolPolicy(warm_ip_target=5, minimum_ip_target=10)


def filled(ec2: MemoryEc2) -> None:
    """As a restarted agent finds it: nothing to do."""
    ec2.attach(an_eni(0, [ip(100 + number) for number in range(10)]))


@virtual_time
async def test_a_restart_with_nothing_to_do_asks_for_nothing() -> None:
    async with pool_world(IP_TARGETS, ec2=filled) as world:
        await asyncio.sleep(890.0)
        assert world.ec2.count() == 0


@virtual_time
async def test_an_idle_day_costs_five_reads_an_hour() -> None:
    async with pool_world(IP_TARGETS, ec2=filled) as world:
        await asyncio.sleep(24 * 3_600.0)
        assert world.ec2.count() == world.ec2.count("describe", "subnets")
        assert 95 <= world.ec2.count("describe") <= 96
        assert 23 <= world.ec2.count("subnets") <= 25


@virtual_time
async def test_a_first_start_looks_up_the_subnets_while_it_grows_and_an_eni_finds_them_known() -> None:
    async with pool_world(IP_TARGETS) as world:
        await asyncio.sleep(1.0)
        first_s = {call.action: call.at_s for call in world.ec2.calls}
        assert first_s["subnets"] == first_s["assign"], "neither waits for the other"
        await asyncio.sleep(100.0)  # away from the scheduled describes
        for hour in range(3):
            before = world.ec2.count("subnets")
            began_s = world.now_s()
            await asyncio.gather(*(world.start_pod(f"{hour}-{number}") for number in range(30)))
            assert world.ec2.count("create") == hour + 1
            assert world.ec2.count("subnets") == before, "the ENI waited for a list of subnets"
            await asyncio.sleep(3_600.0 - (world.now_s() - began_s))
