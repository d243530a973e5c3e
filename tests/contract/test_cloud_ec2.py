"""The EC2 adapter against two EC2s it knows nothing of: moto's server and the simulated VPC. One body, two subjects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from agent.errors import Cause, CloudGone
from agent.ipam.model import BlockKind, EniId, InstanceLimits, SubnetId
from tests.contract.cloud_worlds import (
    NODE_SUBNET,
    OTHER_SUBNET,
    FixedMetadata,
    World,
    adapter,
    moto_world,
    sdk_environment,
    second_eni,
    sim_world,
)


@pytest.fixture(scope="module", params=["moto", "sim"])
def served_world(request: pytest.FixtureRequest) -> Iterator[World]:
    with moto_world() if request.param == "moto" else sim_world() as world:
        yield world


@pytest.fixture
def world(served_world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    sdk_environment(monkeypatch, served_world.endpoint)
    yield served_world
    served_world.remove_secondary_enis()


async def test_a_new_instance_has_its_primary_eni_and_one_request_shows_it(world: World) -> None:
    async with adapter(world) as cloud:
        [primary] = await cloud.describe_enis()
    assert primary.is_primary
    assert primary.managed
    assert primary.mac == world.instance.primary_mac
    assert primary.primary_address == world.instance.primary_address
    assert primary.subnet_id == world.subnet_ids[0]
    assert primary.subnet_cidr == NODE_SUBNET
    assert primary.blocks == ()
    assert world.security_group in primary.security_groups
    assert cloud.calls == {("DescribeNetworkInterfaces", "ok"): 1}


async def test_a_subnet_imds_does_not_know_yet_is_looked_up_once(world: World) -> None:
    async with adapter(world, FixedMetadata(facts=world.instance)) as cloud:
        for _ in range(3):
            [primary] = await cloud.describe_enis()
            assert primary.subnet_cidr == NODE_SUBNET
    assert cloud.calls == {("DescribeNetworkInterfaces", "ok"): 3, ("DescribeSubnets", "ok"): 1}


async def test_subnets_are_the_nodes_own_and_the_tagged_emptiest_first(world: World) -> None:
    async with adapter(world) as cloud:
        own, other = await cloud.describe_subnets()
    assert (own.subnet_id, own.cidr) == (world.subnet_ids[0], NODE_SUBNET)
    assert (other.subnet_id, other.cidr) == (world.subnet_ids[1], OTHER_SUBNET)
    # 256 and 64 addresses less the five reserved; the node's own address is in the first.
    assert (own.free_address_count, other.free_address_count) == (250, 59)


async def test_an_eni_is_made_in_three_requests_and_removed_in_two(world: World) -> None:
    async with adapter(world) as cloud:
        await cloud.describe_subnets()
        before = cloud.calls.total()
        made = await second_eni(cloud, world, count=3)
        assert cloud.calls.total() - before == 3
        [_, seen] = await cloud.describe_enis()
        if world.name == "moto":  # it takes DeleteOnTermination and forgets it
            seen = replace(seen, delete_on_termination=True)
        assert seen == made
        before = cloud.calls.total()
        await cloud.delete_eni(made)
        assert cloud.calls.total() - before == 2
        [primary] = await cloud.describe_enis()
    assert primary.is_primary
    assert (made.card, made.device, made.managed, made.delete_on_termination) == (0, 1, True, True)
    assert made.subnet_cidr == OTHER_SUBNET
    assert made.security_groups == (world.security_group,)
    assert len(made.blocks) == 3
    assert all(not block.is_prefix and block.network.network_address in OTHER_SUBNET for block in made.blocks)
    if world.name != "moto":  # it draws addresses at random, the ENI's own one again too
        assert made.primary_address not in {block.network.network_address for block in made.blocks}


async def test_an_eni_carries_description_and_tags(world: World) -> None:
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world)
        [seen] = world.boto3.describe_network_interfaces(NetworkInterfaceIds=[made.eni_id])["NetworkInterfaces"]
        await cloud.delete_eni(made)
    assert seen["Description"] == f"aws-K8S-{world.instance.instance_id}"
    assert {tag["Key"]: tag["Value"] for tag in seen["TagSet"]} == {
        "node.k8s.amazonaws.com/instance_id": world.instance.instance_id,
        "node.k8s.amazonaws.com/createdAt": "2026-03-01T12:30:05Z",
        "cluster.k8s.amazonaws.com/name": "blue",
        "eks:eni:owner": "amazon-vpc-cni",
        "team": "net",
    }


async def test_an_eni_without_secondary_addresses_can_be_made(world: World) -> None:
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world, count=0)
        await cloud.delete_eni(made)
    assert made.blocks == ()


async def test_addresses_are_assigned_and_given_back(world: World) -> None:
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world, count=1)
        granted = await cloud.assign_blocks(made.eni_id, BlockKind.IPV4_ADDRESS, 2)
        [_, grown] = await cloud.describe_enis()
        held = set(grown.blocks)
        assert len(held) == 3
        new = held - set(made.blocks)
        assert new <= set(granted)
        if world.name == "sim":  # moto answers with every address of the ENI, EC2 with the new ones
            assert set(granted) == new
        await cloud.unassign_blocks(made.eni_id, list(new))
        [_, shrunk] = await cloud.describe_enis()
        await cloud.delete_eni(made)
    assert shrunk.blocks == made.blocks


async def test_giving_back_what_the_eni_does_not_have_is_success(world: World) -> None:
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world, count=2)
        first, second = made.blocks
        await cloud.unassign_blocks(made.eni_id, [first])
        await cloud.unassign_blocks(made.eni_id, [first, second])
        await cloud.unassign_blocks(made.eni_id, [first, second])
        [_, empty] = await cloud.describe_enis()
        await cloud.delete_eni(made)
    assert empty.blocks == ()


async def test_removing_an_eni_that_is_gone_is_success(world: World) -> None:
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world)
        world.boto3.detach_network_interface(AttachmentId=made.attachment_id)
        world.boto3.delete_network_interface(NetworkInterfaceId=made.eni_id)
        await cloud.delete_eni(made)
        await cloud.delete_eni(made)


async def test_an_eni_ec2_does_not_know_is_gone(world: World) -> None:
    stranger = EniId("eni-0123456789abcdef0")
    async with adapter(world) as cloud:
        with pytest.raises(CloudGone) as raised:
            await cloud.assign_blocks(stranger, BlockKind.IPV4_ADDRESS, 1)
    assert raised.value.cause is Cause.EC2_GONE
    assert raised.value.evidence["code"] == "InvalidNetworkInterfaceID.NotFound"
    assert raised.value.evidence["eni_id"] == stranger
    assert raised.value.evidence["aws_request_id"]
    assert cloud.calls == {("AssignPrivateIpAddresses", "ec2_gone"): 1}


async def test_a_subnet_ec2_does_not_know_makes_no_eni(world: World) -> None:
    async with adapter(world) as cloud:
        with pytest.raises(CloudGone):
            await cloud.create_eni(
                device=1,
                subnet_id=SubnetId("subnet-0123456789abcdef0"),
                security_groups=[world.security_group],
                kind=BlockKind.IPV4_ADDRESS,
                count=0,
            )
    assert not any(action == "CreateNetworkInterface" for action, _ in cloud.calls)


async def test_limits_come_from_the_table_without_a_request(world: World) -> None:
    async with adapter(world) as cloud:
        assert await cloud.limits("m5.4xlarge") == InstanceLimits(
            instance_type="m5.4xlarge", eni_count=8, addresses_per_eni=30
        )
        assert not cloud.calls
        with pytest.raises(CloudGone):
            await cloud.limits("m5.gigantic")
    assert cloud.calls.total() == 1


async def test_somebody_elses_enis_are_seen_and_left_alone(world: World) -> None:
    made = world.boto3.create_network_interface(
        SubnetId=world.subnet_ids[1],
        TagSpecifications=[
            {
                "ResourceType": "network-interface",
                "Tags": [{"Key": "node.k8s.amazonaws.com/no_manage", "Value": "true"}],
            }
        ],
    )["NetworkInterface"]["NetworkInterfaceId"]
    attachment_id = world.boto3.attach_network_interface(
        NetworkInterfaceId=made, InstanceId=world.instance.instance_id, DeviceIndex=2
    )["AttachmentId"]
    async with adapter(world) as cloud:
        [primary, other] = await cloud.describe_enis()
        for eni in (primary, other):
            with pytest.raises(ValueError, match=eni.eni_id):
                await cloud.delete_eni(eni)
    world.boto3.detach_network_interface(AttachmentId=attachment_id)
    world.boto3.delete_network_interface(NetworkInterfaceId=made)
    assert (other.eni_id, other.device, other.managed) == (made, 2, False)


async def test_an_eni_in_a_subnet_that_tags_close_is_excluded_once_its_subnet_is_described(world: World) -> None:
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world)
        closed = [{"Key": "kubernetes.io/role/cni", "Value": "0"}]
        world.boto3.create_tags(Resources=[made.subnet_id], Tags=closed)
        try:
            assert [one.subnet_id for one in await cloud.describe_subnets()] == [world.subnet_ids[0]]
            assert [eni.excluded for eni in await cloud.describe_enis()] == [False, True]
        finally:
            world.boto3.create_tags(Resources=[made.subnet_id], Tags=[{"Key": "kubernetes.io/role/cni", "Value": "1"}])
        await cloud.describe_subnets()
        assert [eni.excluded for eni in await cloud.describe_enis()] == [False, False]
        await cloud.delete_eni(made)


async def test_security_groups_and_the_end_of_an_eni_are_set_by_one_request_each(world: World) -> None:
    group = (
        world.boto3.create_security_group(GroupName="another", Description="another", VpcId=world.instance.vpc_id)
        if world.name == "moto"
        else None
    )
    other = group["GroupId"] if group else world.security_group
    async with adapter(world) as cloud:
        made = await second_eni(cloud, world)
        before = cloud.calls.total()
        await cloud.set_security_groups(made.eni_id, [other])
        await cloud.delete_with_instance(made)
        assert cloud.calls.total() - before == 2
        [_, seen] = await cloud.describe_enis()
        await cloud.delete_eni(made)
    assert seen.security_groups == (other,)
