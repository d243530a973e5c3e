"""The EC2 adapter when EC2 fails, is slow, or loses its answers: the simulated VPC with scripted faults."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from ipaddress import IPv4Network
from typing import Any

import pytest

from agent.cloud import calls, ec2
from agent.errors import Cause, CloudDenied, CloudFailed, CloudLimit, CloudThrottled
from agent.ipam.model import BlockKind, EniId
from sim.faults import DelayEffect, DropEffect, Effect, ErrorEffect, Fault, HangEffect, PartialEffect
from sim.model.config import SubnetConfig, Timings
from tests.contract.cloud_worlds import (
    OTHER_SUBNET,
    OTHER_SUBNET_TAGS,
    SimWorld,
    adapter,
    sdk_environment,
    second_eni,
    sim_world,
)


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
    served_world.vpc.timings = Timings()
    served_world.vpc.advance(float("inf"))
    served_world.remove_secondary_enis()


def strike(world: SimWorld, action: str, effect: Effect, *, times: int = 1) -> None:
    world.faults.add(Fault(action=action, effect=effect, times=times))


def asked(world: SimWorld) -> list[str]:
    return [call.action for call in world.calls.listed()]


@pytest.mark.parametrize(
    ("code", "status", "kind", "cause"),
    [
        ("RequestLimitExceeded", 503, CloudThrottled, Cause.EC2_THROTTLED),
        ("InsufficientFreeAddressesInSubnet", 400, CloudLimit, Cause.SUBNET_EXHAUSTED),
        ("InsufficientCidrBlocks", 400, CloudLimit, Cause.SUBNET_FRAGMENTED),
        ("UnauthorizedOperation", 403, CloudDenied, Cause.IAM_DENIED),
        ("InternalError", 500, CloudFailed, Cause.EC2_UNAVAILABLE),
        ("Unavailable", 503, CloudFailed, Cause.EC2_UNAVAILABLE),
    ],
)
async def test_a_failure_is_told_once_because_the_pool_retries_not_the_sdk(
    world: SimWorld, code: str, status: int, kind: type[CloudFailed], cause: Cause
) -> None:
    strike(world, "AssignPrivateIpAddresses", ErrorEffect(code=code, http_status=status))
    async with adapter(world) as cloud:
        with pytest.raises(kind) as raised:
            await cloud.assign_blocks(EniId("eni-1"), BlockKind.IPV4_ADDRESS, 2)
    assert raised.value.cause is cause
    assert raised.value.evidence["code"] == code
    assert raised.value.retry_after_s
    assert asked(world) == ["AssignPrivateIpAddresses"]
    assert cloud.calls == {("AssignPrivateIpAddresses", cause.value): 1}


async def test_a_full_subnet_says_so(world: SimWorld) -> None:
    filler = world.boto3.create_network_interface(SubnetId=world.subnet_ids[1], SecondaryPrivateIpAddressCount=49)[
        "NetworkInterface"
    ]
    async with adapter(world) as cloud:
        # 64 addresses less five reserved, less fifty.
        made = await second_eni(cloud, world, count=8)
        with pytest.raises(CloudLimit) as raised:
            await cloud.assign_blocks(made.eni_id, BlockKind.IPV4_ADDRESS, 1)
    world.boto3.delete_network_interface(NetworkInterfaceId=filler["NetworkInterfaceId"])
    assert raised.value.cause is Cause.SUBNET_EXHAUSTED


async def test_a_full_eni_says_so(world: SimWorld) -> None:
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world, count=9)
        with pytest.raises(CloudLimit) as raised:
            await cloud.assign_blocks(made.eni_id, BlockKind.IPV4_ADDRESS, 1)
    assert raised.value.cause is Cause.EC2_LIMIT


async def test_prefixes_are_granted_described_and_given_back(world: SimWorld) -> None:
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world, kind=BlockKind.IPV4_PREFIX, count=1)
        more = await cloud.assign_blocks(made.eni_id, BlockKind.IPV4_PREFIX, 1)
        single = await cloud.assign_blocks(made.eni_id, BlockKind.IPV4_ADDRESS, 1)
        [_, seen] = await cloud.describe_enis()
        before = cloud.calls.total()
        await cloud.unassign_blocks(made.eni_id, [*more, *single])
        assert cloud.calls.total() - before == 2, "one request per kind"
        # EC2 refuses a request that names a prefix the ENI does not have; what is still there goes all the same.
        await cloud.unassign_blocks(made.eni_id, [*made.blocks, *more])
        [_, empty] = await cloud.describe_enis()
    assert [block.kind for block in (*made.blocks, *more)] == [BlockKind.IPV4_PREFIX] * 2
    assert all(len(block.addresses()) == 16 for block in more)
    assert set(seen.blocks) == {*made.blocks, *more, *single}
    assert empty.blocks == ()


async def test_a_fragmented_subnet_says_so(world: SimWorld) -> None:
    # 64 addresses: four /28, of which the first and the last have reserved addresses in them.
    world.boto3.create_network_interface(SubnetId=world.subnet_ids[1], PrivateIpAddress=str(OTHER_SUBNET[20]))
    async with adapter(world) as cloud:
        with pytest.raises(CloudLimit) as raised:
            await second_eni(cloud, world, kind=BlockKind.IPV4_PREFIX, count=2)
        with pytest.raises(CloudLimit) as full:
            await second_eni(cloud, world, kind=BlockKind.IPV4_PREFIX, count=9)
    assert raised.value.cause is Cause.SUBNET_FRAGMENTED
    # So many addresses are not free at all: EC2 says it with another code.
    assert full.value.evidence["code"] == "InvalidParameterValue"
    assert full.value.cause is Cause.SUBNET_FRAGMENTED


async def test_a_device_that_is_taken_leaves_no_eni_behind(world: SimWorld) -> None:
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world)
        with pytest.raises(CloudFailed) as raised:
            await second_eni(cloud, world)
        await cloud.delete_eni(made)
    assert raised.value.evidence["action"] == "AttachNetworkInterface"
    assert len(world.boto3.describe_network_interfaces()["NetworkInterfaces"]) == 1


async def test_a_partial_grant_is_what_it_is(world: SimWorld) -> None:
    strike(world, "AssignPrivateIpAddresses", PartialEffect(grant_count=2))
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world, count=0)
        assert len(await cloud.assign_blocks(made.eni_id, BlockKind.IPV4_ADDRESS, 5)) == 2


@pytest.mark.parametrize("effect", [DropEffect(), HangEffect()], ids=lambda effect: effect.kind)
async def test_no_answer_is_unavailable_within_the_deadline(
    world: SimWorld, effect: Effect, monkeypatch: pytest.MonkeyPatch
) -> None:
    strike(world, "DescribeNetworkInterfaces", effect)
    async with adapter(world) as cloud:
        with monkeypatch.context() as impatient:
            impatient.setattr(calls, "DEADLINE_S", 0.3)
            with pytest.raises(CloudFailed) as raised:
                await cloud.describe_enis()
        assert raised.value.cause is Cause.EC2_UNAVAILABLE
        assert len(await cloud.describe_enis()) == 1


@pytest.mark.parametrize("action", ["AttachNetworkInterface", "ModifyNetworkInterfaceAttribute"])
async def test_an_eni_that_cannot_be_set_up_is_deleted_and_the_first_cause_told(world: SimWorld, action: str) -> None:
    strike(world, action, ErrorEffect(code="AttachmentLimitExceeded"))
    async with adapter(world) as cloud:
        with pytest.raises(CloudLimit) as raised:
            await second_eni(cloud, world)
    assert raised.value.evidence["action"] == action
    assert len(world.enis()) == 1


@pytest.mark.parametrize("action", ["AttachNetworkInterface", "ModifyNetworkInterfaceAttribute"])
async def test_an_eni_whose_set_up_nobody_confirmed_is_deleted_although_attached(world: SimWorld, action: str) -> None:
    strike(world, action, DropEffect(after=True))
    async with adapter(world) as cloud:
        with pytest.raises(CloudFailed) as raised:
            await second_eni(cloud, world)
    assert raised.value.cause is Cause.EC2_UNAVAILABLE
    assert len(world.enis()) == 1
    assert asked(world).count("DetachNetworkInterface") == 1


async def test_a_failing_clean_up_does_not_hide_the_first_cause(world: SimWorld) -> None:
    strike(world, "AttachNetworkInterface", ErrorEffect(code="AttachmentLimitExceeded"))
    strike(world, "DeleteNetworkInterface", ErrorEffect(code="UnauthorizedOperation", http_status=403))
    async with adapter(world) as cloud:
        with pytest.raises(CloudLimit):
            await second_eni(cloud, world)
    assert len(world.enis()) == 2


async def test_an_eni_whose_creation_nobody_confirmed_is_found_again_by_its_token(world: SimWorld) -> None:
    strike(world, "CreateNetworkInterface", DropEffect(after=True))
    async with adapter(world) as cloud:
        with pytest.raises(CloudFailed):
            await second_eni(cloud, world)
        [_, orphan] = sorted(world.enis(), key=lambda eni: "Attachment" not in eni)
        made = await second_eni(cloud, world)
        assert made.eni_id == orphan["NetworkInterfaceId"]
        # Answered, so forgotten: the next one is another.
        await cloud.delete_eni(made)
        assert (await second_eni(cloud, world)).eni_id != made.eni_id


async def test_a_removal_goes_on_when_the_delete_is_refused(world: SimWorld) -> None:
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world)
        strike(world, "DeleteNetworkInterface", ErrorEffect(code="DependencyViolation"), times=3)
        await cloud.delete_eni(made)
    assert asked(world).count("DeleteNetworkInterface") == 4
    assert len(world.enis()) == 1


async def test_a_removal_waits_out_a_slow_detachment(world: SimWorld) -> None:
    world.vpc.timings = Timings(detach_s=0.5)
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world)
        await cloud.delete_eni(made)
        assert len(world.enis()) == 1
        # The metadata here never lists it, so the delete came too early, and was repeated.
        assert cloud.calls["DeleteNetworkInterface", "ec2_refused"] >= 1


async def test_an_eni_on_its_way_out_is_not_ours_any_more(world: SimWorld) -> None:
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world)
        world.vpc.timings = Timings(detach_s=3600)
        world.boto3.detach_network_interface(AttachmentId=made.attachment_id)
        assert [eni.device for eni in await cloud.describe_enis()] == [0]


async def test_an_eni_on_its_way_in_is_ours_already(world: SimWorld) -> None:
    world.vpc.timings = Timings(attach_s=3600)
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world)
        assert [eni.eni_id for eni in await cloud.describe_enis()][1:] == [made.eni_id]
    world.vpc.advance(time.time() + 7200)


async def test_a_cancelled_change_is_finished_before_the_adapter_closes(world: SimWorld) -> None:
    strike(world, "AttachNetworkInterface", DelayEffect(delay_s=0.3))
    async with adapter(world) as cloud:
        answered = world.calls.next_of("CreateNetworkInterface")
        creating = asyncio.create_task(second_eni(cloud, world))
        await answered
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
    [attachment] = [eni["Attachment"] for eni in world.enis() if eni["Attachment"]["DeviceIndex"] == 1]
    assert attachment["DeleteOnTermination"]


async def test_subnets_come_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    more = tuple(SubnetConfig(cidr=IPv4Network(f"10.0.{n}.0/24"), tags=OTHER_SUBNET_TAGS) for n in range(10, 20))
    monkeypatch.setattr(ec2, "_PAGE_SIZE", 5)
    with sim_world(more_subnets=more) as world:
        sdk_environment(monkeypatch, world.endpoint)
        async with adapter(world) as cloud:
            assert len(await cloud.describe_subnets()) == 12
    assert cloud.calls == {("DescribeSubnets", "ok"): 3}


async def test_every_request_is_one_line_in_the_log(world: SimWorld, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="agent")
    strike(world, "DescribeSubnets", ErrorEffect(code="RequestLimitExceeded", http_status=503))
    async with adapter(world) as cloud:
        await cloud.describe_enis()
        with pytest.raises(CloudThrottled):
            await cloud.describe_subnets()
    found: list[Any] = [record for record in caplog.records if record.message == "ec2_call"]
    fields = [record.fields for record in found]
    assert [(one["action"], one["outcome"]) for one in fields] == [
        ("DescribeNetworkInterfaces", "ok"),
        ("DescribeSubnets", "ec2_throttled"),
    ]
    assert [one["aws_request_id"] for one in fields] == [call.request_id for call in world.calls.listed()]
    assert all(0 <= one["duration_s"] < 60 for one in fields)
    assert [record.levelno for record in found] == [logging.INFO, logging.WARNING]


async def test_the_user_agent_says_who_asks(world: SimWorld) -> None:
    world.user_agents.clear()
    async with adapter(world) as cloud:
        await cloud.describe_enis()
    [user_agent] = world.user_agents
    assert user_agent.endswith(" enoki/0.0")


async def test_the_sdks_own_log_stays_quiet(world: SimWorld, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with adapter(world) as cloud:
        await cloud.describe_enis()
    assert not [record.name for record in caplog.records if "botocore" in record.name]
