"""The whole pool in virtual time: prefixes, subnets without them, and what Kubernetes says of the node."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agent.errors import Cause, TryAgain
from agent.ipam.model import AddressState, Block, BlockKind
from agent.ipam.plan import EniSite, PoolPolicy, Surroundings
from tests.ipam_builders import M5_LARGE, OTHER_SUBNET, a_holder, an_eni, eni_id, ip, prefix
from tests.pool_world import MemoryEc2, PoolWorld, pool_world, reason_of
from tests.virtual_time import virtual_time

PREFIX, SINGLE = BlockKind.IPV4_PREFIX, BlockKind.IPV4_ADDRESS
POLICY = PoolPolicy(prefix_delegation=True, warm_ip_target=5, minimum_ip_target=10)


def blocks(world: PoolWorld, kind: BlockKind) -> list[Block]:
    return [block for eni in world.ec2.enis.values() for block in eni.blocks if block.kind is kind]


def refused(world: PoolWorld) -> int:
    return sum(call.refused for call in world.ec2.calls)


async def start_pods(world: PoolWorld, count: int, name: str = "pod") -> None:
    await asyncio.gather(*(world.start_pod(f"{name}-{number}") for number in range(count)))


@virtual_time
async def test_pods_are_packed_into_the_fullest_prefix() -> None:
    async with pool_world(POLICY) as world:
        await start_pods(world, 50)
        assert (len(blocks(world, PREFIX)), len(blocks(world, SINGLE))) == (4, 0)
        held = [view.address for view in world.pool.view().addresses if view.state is AddressState.HELD]
        used = sorted(sum(address in block.network for address in held) for block in blocks(world, PREFIX))
        assert used == [2, 16, 16, 16]


@virtual_time
async def test_without_a_whole_prefix_single_addresses_serve_and_later_prefixes_do_again() -> None:
    def broken(ec2: MemoryEc2) -> None:
        ec2.prefixes_left = 1

    async with pool_world(POLICY, ec2=broken) as world:
        await start_pods(world, 20)
        assert (len(blocks(world, PREFIX)), refused(world)) == (1, 1)
        assert len(blocks(world, SINGLE)) >= 4
        failure = world.pool.view().failure
        assert failure is not None
        assert failure.cause == "subnet_fragmented"
        # Nobody comes and nobody goes: a prefix is tried for now and then, ever more rarely.
        before = len(world.ec2.calls)
        await asyncio.sleep(3 * 3_600.0)
        changes = [call for call in world.ec2.calls[before:] if call.action not in {"describe", "subnets"}]
        # But for one trim of the growth quantum, every change is a try that EC2 refuses.
        assert [call.action for call in changes if not call.refused] == ["unassign"]
        assert len(changes) <= 16
        assert world.count(AddressState.HELD) == 20
        world.ec2.prefixes_left = 100
        await asyncio.sleep(2 * 3_600.0)
        assert world.pool.view().failure is None
        for number in range(20):
            world.stop_pod(f"pod-{number}")
        await asyncio.sleep(2 * 3_600.0)
        assert (len(blocks(world, PREFIX)), len(blocks(world, SINGLE))) == (1, 0)


@virtual_time
async def test_a_pod_that_single_addresses_cannot_serve_is_told_of_the_fragmented_subnet() -> None:
    def broken(ec2: MemoryEc2) -> None:
        ec2.prefixes_left = 0

    async with pool_world(replace(POLICY, max_eni=1), limits=M5_LARGE, ec2=broken) as world:
        await start_pods(world, 9)
        with pytest.raises(TryAgain) as told:
            await world.start_pod("one-too-many", deadline_s=5.0)
        assert told.value.cause is Cause.SUBNET_FRAGMENTED


@virtual_time
async def test_the_last_prefixes_of_a_subnet_are_found_one_by_one() -> None:
    def scarce(ec2: MemoryEc2) -> None:
        ec2.prefixes_left = 3

    async with pool_world(POLICY, ec2=scarce) as world:
        await start_pods(world, 60)
        assert len(blocks(world, PREFIX)) == 3
        assert refused(world) <= 3


@virtual_time
async def test_a_switch_to_prefixes_gives_the_single_addresses_back_without_a_gap() -> None:
    def filled(ec2: MemoryEc2) -> None:
        ec2.attach(an_eni(0, [ip(100 + number) for number in range(9)]))

    async with pool_world(POLICY, limits=M5_LARGE, ec2=filled) as world:
        began_s = world.now_s()
        await world.start_pod("first")
        assert world.now_s() == began_s, "what is free serves, whatever its kind"
        await asyncio.sleep(3_600.0)
        assert (len(blocks(world, PREFIX)), len(blocks(world, SINGLE))) == (1, 1)
        world.stop_pod("first")
        await asyncio.sleep(3_600.0)
        assert (len(blocks(world, PREFIX)), len(blocks(world, SINGLE))) == (1, 0)
        assert len(world.ec2.enis) == 1


@virtual_time
async def test_a_switch_back_keeps_what_a_pod_holds_of_a_prefix() -> None:
    def filled(ec2: MemoryEc2) -> None:
        eni = an_eni(0, prefixes=[prefix(3_000), prefix(3_001)])
        ec2.attach(eni)

    single_addresses = PoolPolicy(warm_ip_target=5, minimum_ip_target=10)
    async with pool_world(single_addresses, ec2=filled) as world:
        reservation = await world.start_pod("first")
        (address,) = reservation.addresses
        await asyncio.sleep(3_600.0)
        [kept] = blocks(world, PREFIX)
        assert address in kept.network
        assert len(blocks(world, SINGLE)) == 9
        late = await world.start_pod("late")
        assert late.addresses[0] not in kept.network, "prefixes run empty"


@virtual_time
async def test_a_cordoned_node_is_left_alone_until_it_is_not() -> None:
    async with pool_world(POLICY) as world:
        await asyncio.sleep(1.0)
        world.pool.tell(Surroundings(is_schedulable=False))
        before = world.ec2.count("assign")
        await start_pods(world, 16)
        error = await reason_of(asyncio.create_task(world.start_pod("one-too-many", deadline_s=5.0)))
        assert error.cause is Cause.NODE_CORDONED
        assert "the node is cordoned" in error.message
        assert (error.evidence["held"], error.evidence["free"], error.evidence["waiting"]) == (16, 0, 1)
        assert "uncordon it" in error.remedy
        assert error.retry_after_s == 30.0
        world.stop_pod("pod-0")
        error = await reason_of(asyncio.create_task(world.start_pod("one-too-many", deadline_s=5.0)))
        assert error.cause is Cause.NODE_CORDONED
        assert error.retry_after_s == pytest.approx(25.0), "an address has cooled then"
        await asyncio.sleep(25.0)
        await world.start_pod("17")
        assert world.ec2.count("assign") == before
        waiting = asyncio.create_task(world.start_pod("patient"))
        await asyncio.sleep(1.0)
        world.pool.tell(Surroundings())
        await waiting
        assert world.ec2.count("assign") == before + 1


@virtual_time
async def test_announced_pods_find_their_addresses_ready() -> None:
    async with pool_world(POLICY) as world:
        await asyncio.sleep(1.0)
        announced = (a_holder(f"pod-{number}") for number in range(40))
        world.pool.tell(Surroundings(announced=frozenset((one.namespace, one.pod) for one in announced)))
        await asyncio.sleep(1.0)
        began_s = world.now_s()
        await start_pods(world, 40)
        assert world.now_s() == began_s


@virtual_time
async def test_with_custom_networking_enis_go_where_the_eniconfig_says() -> None:
    policy = PoolPolicy(warm_ip_target=5, minimum_ip_target=10, custom_networking=True)
    async with pool_world(policy) as world:
        world.ec2.subnet_free[OTHER_SUBNET] = 200
        with pytest.raises(TryAgain, match="no ENIConfig is known"):
            await world.start_pod("early", deadline_s=5.0)
        world.pool.tell(Surroundings(site=EniSite(subnet_id=OTHER_SUBNET)))
        reservation = await world.start_pod("web")
        assert world.ec2.enis[reservation.eni_id].subnet_id == OTHER_SUBNET
        assert reservation.eni_id != eni_id(0)
