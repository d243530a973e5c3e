"""The leak sweep against the simulated VPC, over the wire: what it asks, what it deletes, and what it never touches."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from agent.cloud.sweep import DELETED_AT_ONCE_COUNT, LeakSweep
from sim.faults import ErrorEffect, Fault
from tests.contract.cloud_worlds import NOW, POLICY, SimWorld, adapter, sdk_environment, sim_world

OLD = "2026-03-01T12:00:00Z"
YOUNG = "2026-03-01T12:29:00Z"
INSTANCE, CREATED = "node.k8s.amazonaws.com/instance_id", "node.k8s.amazonaws.com/createdAt"


@pytest.fixture(scope="module")
def served_world() -> Iterator[SimWorld]:
    with sim_world() as world:
        yield world


@pytest.fixture
def world(served_world: SimWorld, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimWorld]:
    sdk_environment(monkeypatch, served_world.endpoint)
    served_world.calls.clear()
    yield served_world
    served_world.faults.clear()
    for eni in served_world.enis():
        if "Attachment" not in eni:
            served_world.boto3.delete_network_interface(NetworkInterfaceId=eni["NetworkInterfaceId"])


class Time:
    """Monotonic seconds and the wall clock, moved by the test."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def wall(self) -> datetime:
        return NOW + timedelta(seconds=self.now_s)


def a_leak(world: SimWorld, owner: str | None = None, created: str | None = OLD, **more: Any) -> str:
    owner = owner or world.instance.instance_id
    tags = {INSTANCE: owner, "cluster.k8s.amazonaws.com/name": "blue"} | ({CREATED: created} if created else {})
    made = world.boto3.create_network_interface(
        SubnetId=world.subnet_ids[0],
        Description=more.get("description", f"aws-K8S-{owner}"),
        TagSpecifications=[
            {
                "ResourceType": "network-interface",
                "Tags": [{"Key": key, "Value": value} for key, value in {**tags, **more.get("tags", {})}.items()],
            }
        ],
    )
    return str(made["NetworkInterface"]["NetworkInterfaceId"])


def available(world: SimWorld) -> set[str]:
    return {eni["NetworkInterfaceId"] for eni in world.enis() if "Attachment" not in eni}


def asked(world: SimWorld) -> list[str]:
    return [call.action for call in world.calls.listed()]


async def sweeps(world: SimWorld, count: int = 1, at: Time | None = None, account_id: str | None = None) -> list[float]:
    """Turn until `count` sweeps were made; the pauses after each. account_id: the node's, if it is not EC2's."""
    at = at or Time()
    pauses: list[float] = []
    async with adapter(world) as cloud:
        cloud._calls.budget._draw = lambda: 0.0  # the shortest pause after a throttle
        sweep = LeakSweep(
            client=cloud._client,
            calls=cloud._calls,
            instance=replace(world.instance, account_id=account_id or world.instance.account_id),
            policy=POLICY,
            clock=at.clock,
            now=at.wall,
            draw=lambda: 0.5,
        )
        at.now_s += await sweep.step()
        assert asked(world).count("DescribeNetworkInterfaces") == 0, "swept before its time"
        for _ in range(count):
            pauses.append(await sweep.step())
            at.now_s += pauses[-1]
    return pauses


async def test_nothing_leaked_costs_one_read_an_hour(world: SimWorld) -> None:
    assert all(pause_s >= 3600 for pause_s in await sweeps(world, 3))
    assert asked(world) == ["DescribeNetworkInterfaces"] * 3


async def test_our_own_leak_goes_and_what_is_attached_stays(world: SimWorld) -> None:
    leaked = a_leak(world)
    world.calls.clear()
    await sweeps(world)
    assert asked(world) == ["DescribeNetworkInterfaces", "DeleteNetworkInterface"]
    assert leaked not in available(world)
    assert len(world.enis()) == 1


async def test_leaks_of_a_terminated_and_of_an_unknown_instance_go_and_those_of_a_running_one_stay(
    world: SimWorld,
) -> None:
    running = world.vpc.run_instance("m5.large", world.subnet_ids[0], now_s=time.time()).instance_id
    ended = world.vpc.run_instance("m5.large", world.subnet_ids[0], now_s=time.time()).instance_id
    world.vpc.terminate_instance(ended, now_s=time.time())
    kept = a_leak(world, running)
    gone = {a_leak(world, ended), a_leak(world, "i-0123456789abcdef0")}
    world.calls.clear()
    await sweeps(world)
    assert asked(world).count("DescribeInstances") == 1
    assert available(world) == {kept}
    assert not gone & available(world)
    world.vpc.terminate_instance(running, now_s=time.time())


async def test_malformed_tags_young_ones_and_strangers_stay(world: SimWorld) -> None:
    kept = {
        a_leak(world, created="soon"),
        a_leak(world, created=YOUNG),
        a_leak(world, tags={INSTANCE: "me"}),
        a_leak(world, description="somebody's"),
        a_leak(world, tags={"cluster.k8s.amazonaws.com/name": "green"}),
        a_leak(world, tags={"node.k8s.amazonaws.com/no_manage": "true"}),
    }
    await sweeps(world)
    assert available(world) == kept


async def test_what_another_account_has_in_a_shared_vpc_stays(world: SimWorld) -> None:
    kept = {a_leak(world), a_leak(world, "i-0123456789abcdef0")}
    world.calls.clear()
    await sweeps(world, account_id="210987654321")
    assert asked(world) == ["DescribeNetworkInterfaces"]
    assert available(world) == kept


async def test_a_young_one_is_looked_at_again_soon_and_then_goes(world: SimWorld) -> None:
    leaked = a_leak(world, created="2026-03-01T12:30:05Z")
    [first_s, second_s] = await sweeps(world, 2)
    assert first_s < 900
    assert second_s >= 3600
    assert leaked not in available(world)


async def test_one_without_a_time_goes_at_the_second_sighting(world: SimWorld) -> None:
    leaked = a_leak(world, created=None)
    await sweeps(world)
    assert leaked in available(world)
    world.calls.clear()
    await sweeps(world, 2)
    assert leaked not in available(world)


async def test_denied_instances_are_no_proof(world: SimWorld) -> None:
    kept = a_leak(world, "i-0123456789abcdef0")
    world.faults.add(
        Fault(action="DescribeInstances", effect=ErrorEffect(code="UnauthorizedOperation", http_status=403))
    )
    [pause_s] = await sweeps(world)
    assert available(world) == {kept}
    assert pause_s >= 3600


async def test_a_throttle_ends_the_sweep_and_the_next_one_goes_on(world: SimWorld) -> None:
    leaked = {a_leak(world), a_leak(world)}
    world.faults.add(
        Fault(action="DeleteNetworkInterface", effect=ErrorEffect(code="RequestLimitExceeded", http_status=503))
    )
    world.calls.clear()
    await sweeps(world, 2)
    assert asked(world).count("DeleteNetworkInterface") == 3
    assert not leaked & available(world)


async def test_many_leaks_go_a_few_at_a_time(world: SimWorld) -> None:
    for _ in range(DELETED_AT_ONCE_COUNT + 2):
        a_leak(world)
    [first_s] = await sweeps(world)
    assert len(available(world)) == 2
    assert first_s < 900


async def test_one_that_was_attached_meanwhile_stays(world: SimWorld) -> None:
    leaked = a_leak(world)
    world.faults.add(Fault(action="DeleteNetworkInterface", effect=ErrorEffect(code="InvalidNetworkInterface.InUse")))
    await sweeps(world)
    assert leaked in available(world)
