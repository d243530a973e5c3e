"""The simulated EC2, driven by an unmodified boto3 over loopback HTTP."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import botocore.exceptions
import pytest

from tests.contract.sim_endpoint import Endpoint, running_sim


@pytest.fixture
def sim() -> Iterator[Endpoint]:
    with running_sim() as endpoint:
        yield endpoint


@pytest.fixture
def ec2(sim: Endpoint) -> Any:
    return sim.boto3()


@pytest.fixture(scope="module")
def described() -> Iterator[Any]:
    """A client of an EC2 with one ENI to look for: 10.0.0.4 and 10.0.0.5, described and tagged."""
    with running_sim() as endpoint:
        client = endpoint.boto3()
        create(
            client,
            endpoint,
            Description="a*b",
            SecondaryPrivateIpAddressCount=1,
            TagSpecifications=[{"ResourceType": "network-interface", "Tags": [{"Key": "role", "Value": "pods"}]}],
        )
        yield client


def refusal(call: Any, **parameters: Any) -> tuple[str, int, str]:
    """Code, HTTP status and message of a call that must fail."""
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**parameters)
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Message"]


def create(ec2: Any, sim: Endpoint, **parameters: Any) -> dict[str, Any]:
    return dict(ec2.create_network_interface(SubnetId=sim.subnets[0], **parameters)["NetworkInterface"])


def secondary(eni: dict[str, Any]) -> list[str]:
    return [each["PrivateIpAddress"] for each in eni["PrivateIpAddresses"] if not each["Primary"]]


def describe(ec2: Any, eni_id: str) -> dict[str, Any]:
    return dict(ec2.describe_network_interfaces(NetworkInterfaceIds=[eni_id])["NetworkInterfaces"][0])


def test_an_instance_comes_with_its_primary_eni(sim: Endpoint, ec2: Any) -> None:
    instance_id = sim.launch()
    instance = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]
    eni = instance["NetworkInterfaces"][0]
    assert re.fullmatch(r"i-[0-9a-f]{17}", instance_id)
    assert instance["State"] == {"Code": 16, "Name": "running"}
    assert instance["PrivateIpAddress"] == eni["PrivateIpAddress"] == "10.0.0.4"
    assert instance["PrivateDnsName"] == "ip-10-0-0-4.us-west-2.compute.internal"
    assert (eni["Attachment"]["DeviceIndex"], eni["Attachment"]["Status"]) == (0, "attached")
    assert eni["Attachment"]["DeleteOnTermination"] is True
    assert datetime.now(tz=UTC) - instance["LaunchTime"] < timedelta(minutes=1)


def test_the_life_of_an_eni(sim: Endpoint, ec2: Any) -> None:
    instance_id = sim.launch()
    made = create(
        ec2,
        sim,
        SecondaryPrivateIpAddressCount=3,
        Description="second",
        TagSpecifications=[{"ResourceType": "network-interface", "Tags": [{"Key": "owner", "Value": "me & <you>"}]}],
    )
    eni_id = made["NetworkInterfaceId"]
    assert (made["Status"], made["PrivateIpAddress"], secondary(made)) == (
        "pending",
        "10.0.0.5",
        ["10.0.0.6", "10.0.0.7", "10.0.0.8"],
    )
    assert made["TagSet"] == [{"Key": "owner", "Value": "me & <you>"}]

    attached = ec2.attach_network_interface(NetworkInterfaceId=eni_id, InstanceId=instance_id, DeviceIndex=1)
    ec2.modify_network_interface_attribute(
        NetworkInterfaceId=eni_id,
        Attachment={"AttachmentId": attached["AttachmentId"], "DeleteOnTermination": True},
    )
    seen = describe(ec2, eni_id)
    assert seen["Status"] == "in-use"
    assert seen["Attachment"]["InstanceId"] == instance_id
    assert (seen["Attachment"]["Status"], seen["Attachment"]["DeleteOnTermination"]) == ("attached", True)

    granted = ec2.assign_private_ip_addresses(NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=2)
    addresses = [each["PrivateIpAddress"] for each in granted["AssignedPrivateIpAddresses"]]
    assert addresses == ["10.0.0.9", "10.0.0.10"]
    ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni_id, PrivateIpAddresses=["10.0.0.7", "10.0.0.10"])
    assert secondary(describe(ec2, eni_id)) == ["10.0.0.6", "10.0.0.8", "10.0.0.9"]

    code, _, message = refusal(ec2.delete_network_interface, NetworkInterfaceId=eni_id)
    assert (code, message) == ("InvalidParameterValue", f"Network interface '{eni_id}' is currently in use.")
    ec2.detach_network_interface(AttachmentId=attached["AttachmentId"])
    assert describe(ec2, eni_id)["Status"] == "available"
    ec2.delete_network_interface(NetworkInterfaceId=eni_id)
    code, status, message = refusal(ec2.describe_network_interfaces, NetworkInterfaceIds=[eni_id])
    assert (code, status) == ("InvalidNetworkInterfaceID.NotFound", 400)
    assert f"'{eni_id}'" in message


def test_prefixes_take_a_slot_each_and_sixteen_addresses(sim: Endpoint, ec2: Any) -> None:
    eni_id = create(ec2, sim)["NetworkInterfaceId"]
    before = ec2.describe_subnets(SubnetIds=[sim.subnets[0]])["Subnets"][0]["AvailableIpAddressCount"]
    granted = ec2.assign_private_ip_addresses(NetworkInterfaceId=eni_id, Ipv4PrefixCount=2)
    prefixes = [each["Ipv4Prefix"] for each in granted["AssignedIpv4Prefixes"]]
    assert prefixes == ["10.0.0.16/28", "10.0.0.32/28"]
    after = ec2.describe_subnets(SubnetIds=[sim.subnets[0]])["Subnets"][0]["AvailableIpAddressCount"]
    assert before - after == 32
    ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni_id, Ipv4Prefixes=["10.0.0.16/28"])
    assert [each["Ipv4Prefix"] for each in describe(ec2, eni_id)["Ipv4Prefixes"]] == ["10.0.0.32/28"]


def test_ipv6_addresses_and_prefixes(sim: Endpoint, ec2: Any) -> None:
    eni = create(ec2, sim, Ipv6AddressCount=1)
    eni_id = eni["NetworkInterfaceId"]
    assert eni["Ipv6Addresses"][0]["Ipv6Address"].startswith("2600:1f13:a:b00:")
    granted = ec2.assign_ipv6_addresses(NetworkInterfaceId=eni_id, Ipv6PrefixCount=1)
    prefix = granted["AssignedIpv6Prefixes"][0]
    assert prefix.endswith("/80")
    taken = ec2.unassign_ipv6_addresses(NetworkInterfaceId=eni_id, Ipv6Prefixes=[prefix])
    assert taken["UnassignedIpv6Prefixes"] == [prefix]
    assert describe(ec2, eni_id)["Ipv6Prefixes"] == []


def test_an_exhausted_and_a_fragmented_subnet_answer_differently(sim: Endpoint, ec2: Any) -> None:
    small = sim.subnets[1]  # a /27: 27 addresses, and no whole /28 because both ends have reserved ones
    eni_id = ec2.create_network_interface(SubnetId=small)["NetworkInterface"]["NetworkInterfaceId"]
    code, _, _ = refusal(ec2.assign_private_ip_addresses, NetworkInterfaceId=eni_id, Ipv4PrefixCount=1)
    assert code == "InsufficientCidrBlocks"
    ec2.assign_private_ip_addresses(NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=20)
    code, _, message = refusal(ec2.assign_private_ip_addresses, NetworkInterfaceId=eni_id, Ipv4PrefixCount=1)
    assert (code, message) == ("InvalidParameterValue", "There aren't sufficient free Ipv4 addresses or prefixes")
    code, _, _ = refusal(ec2.assign_private_ip_addresses, NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=7)
    assert code == "InsufficientFreeAddressesInSubnet"
    ec2.assign_private_ip_addresses(NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=6)
    assert ec2.describe_subnets(SubnetIds=[small])["Subnets"][0]["AvailableIpAddressCount"] == 0


def test_the_limits_of_an_m5_large(sim: Endpoint, ec2: Any) -> None:
    instance_id = sim.launch("m5.large")  # 3 ENIs with 10 addresses each
    eni_id, other = (create(ec2, sim)["NetworkInterfaceId"] for _ in range(2))
    ec2.attach_network_interface(NetworkInterfaceId=eni_id, InstanceId=instance_id, DeviceIndex=1)
    ec2.attach_network_interface(NetworkInterfaceId=other, InstanceId=instance_id, DeviceIndex=2)
    code, _, message = refusal(
        ec2.assign_private_ip_addresses, NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=10
    )
    assert (code, message) == ("PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit.")
    ec2.assign_private_ip_addresses(NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=9)
    spare = create(ec2, sim)["NetworkInterfaceId"]
    code, _, message = refusal(
        ec2.attach_network_interface, NetworkInterfaceId=spare, InstanceId=instance_id, DeviceIndex=3
    )
    assert (code, message) == ("AttachmentLimitExceeded", "Interface count 4 exceeds the limit for m5.large")
    code, _, message = refusal(
        ec2.attach_network_interface, NetworkInterfaceId=spare, InstanceId=instance_id, DeviceIndex=1
    )
    assert code == "InvalidParameterValue"
    assert message == f"Instance '{instance_id}' already has an interface attached at device index '1'."


def test_limits_match_describe_instance_types(ec2: Any) -> None:
    network = ec2.describe_instance_types(InstanceTypes=["m5.4xlarge"])["InstanceTypes"][0]["NetworkInfo"]
    assert (network["MaximumNetworkInterfaces"], network["Ipv4AddressesPerInterface"]) == (8, 30)
    names = [
        each["InstanceType"]
        for page in ec2.get_paginator("describe_instance_types").paginate(PaginationConfig={"PageSize": 100})
        for each in page["InstanceTypes"]
    ]
    assert len(names) == len(set(names)) > 1300
    assert refusal(ec2.describe_instance_types, InstanceTypes=["m5.huge"])[0] == "InvalidInstanceType"


def test_an_instance_takes_enis_of_its_own_zone_only(sim: Endpoint, ec2: Any) -> None:
    instance_id = sim.launch()
    elsewhere = ec2.create_network_interface(SubnetId=sim.subnets[2])["NetworkInterface"]["NetworkInterfaceId"]
    code, _, _ = refusal(
        ec2.attach_network_interface, NetworkInterfaceId=elsewhere, InstanceId=instance_id, DeviceIndex=1
    )
    assert code == "InvalidParameterCombination"


def test_explicit_addresses(sim: Endpoint, ec2: Any) -> None:
    made = create(
        ec2,
        sim,
        PrivateIpAddresses=[
            {"PrivateIpAddress": "10.0.0.4", "Primary": False},
            {"PrivateIpAddress": "10.0.0.77", "Primary": True},
        ],
    )
    assert (made["PrivateIpAddress"], secondary(made)) == ("10.0.0.77", ["10.0.0.4"])
    assert refusal(create, ec2=ec2, sim=sim, PrivateIpAddress="10.0.0.77")[0] == "InvalidIPAddress.InUse"
    assert refusal(create, ec2=ec2, sim=sim, PrivateIpAddress="10.0.9.1")[0] == "InvalidParameterValue"
    assert refusal(create, ec2=ec2, sim=sim, PrivateIpAddress="10.0.0.1")[0] == "InvalidParameterValue"
    beside = create(ec2, sim, PrivateIpAddresses=[{"PrivateIpAddress": "10.0.0.5", "Primary": False}])
    assert (beside["PrivateIpAddress"], secondary(beside)) == ("10.0.0.6", ["10.0.0.5"])
    other = create(ec2, sim)["NetworkInterfaceId"]
    code, _, message = refusal(
        ec2.assign_private_ip_addresses, NetworkInterfaceId=other, PrivateIpAddresses=["10.0.0.4"]
    )
    assert (code, message) == ("InvalidParameterValue", "Some of [10.0.0.4] are assigned but move is not allowed.")
    ec2.assign_private_ip_addresses(NetworkInterfaceId=other, PrivateIpAddresses=["10.0.0.4"], AllowReassignment=True)
    assert secondary(describe(ec2, other)) == ["10.0.0.4"]
    assert secondary(describe(ec2, made["NetworkInterfaceId"])) == []


def test_the_primary_eni_stays_and_its_address_too(sim: Endpoint, ec2: Any) -> None:
    eni = ec2.describe_network_interfaces(Filters=[{"Name": "attachment.instance-id", "Values": [sim.launch()]}])[
        "NetworkInterfaces"
    ][0]
    code, _, _ = refusal(ec2.detach_network_interface, AttachmentId=eni["Attachment"]["AttachmentId"])
    assert code == "OperationNotPermitted"
    code, _, _ = refusal(
        ec2.unassign_private_ip_addresses,
        NetworkInterfaceId=eni["NetworkInterfaceId"],
        PrivateIpAddresses=[eni["PrivateIpAddress"]],
    )
    assert code == "InvalidParameterValue"


def test_a_client_token_makes_one_eni(sim: Endpoint, ec2: Any) -> None:
    token = str(uuid.uuid4())
    first = create(ec2, sim, ClientToken=token, Description="one")
    again = create(ec2, sim, ClientToken=token, Description="one")
    assert first["NetworkInterfaceId"] == again["NetworkInterfaceId"]
    code, _, _ = refusal(create, ec2=ec2, sim=sim, ClientToken=token, Description="two")
    assert code == "IdempotentParameterMismatch"
    assert len(ec2.describe_network_interfaces()["NetworkInterfaces"]) == 1


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("status", "available", True),
        ("status", "in-use", False),
        ("tag-key", "role", True),
        ("tag-key", "rol", False),
        ("tag:role", "po?s", True),
        ("tag:role", "p*", True),
        ("tag:role", "P*", False),
        ("tag:absent", "*", False),
        ("addresses.private-ip-address", "10.0.0.5", True),
        ("private-ip-address", "10.0.0.5", False),
        ("private-ip-address", "10.0.0.*", True),
        ("mac-address", "02:*", True),
        ("attachment.instance-id", "*", False),
        ("description", "a\\*b", True),
        ("description", "a\\?b", False),
    ],
)
def test_filters(described: Any, name: str, value: str, *, found: bool) -> None:
    answer = described.describe_network_interfaces(Filters=[{"Name": name, "Values": ["nothing", value]}])
    assert bool(answer["NetworkInterfaces"]) == found


def test_all_filters_must_match_and_unknown_ones_are_refused(sim: Endpoint, ec2: Any) -> None:
    eni_id = create(ec2, sim)["NetworkInterfaceId"]
    mine, wrong = {"Name": "subnet-id", "Values": [sim.subnets[0]]}, {"Name": "status", "Values": ["in-use"]}
    assert describe(ec2, eni_id)
    assert len(ec2.describe_network_interfaces(Filters=[mine])["NetworkInterfaces"]) == 1
    assert not ec2.describe_network_interfaces(Filters=[mine, wrong])["NetworkInterfaces"]
    code, _, message = refusal(ec2.describe_network_interfaces, Filters=[{"Name": "colour", "Values": ["red"]}])
    assert (code, message) == ("InvalidParameterValue", "The filter 'colour' is invalid")


def test_pages_hold_everything_once(sim: Endpoint, ec2: Any) -> None:
    made = {create(ec2, sim)["NetworkInterfaceId"] for _ in range(12)}
    pages = list(ec2.get_paginator("describe_network_interfaces").paginate(PaginationConfig={"PageSize": 5}))
    assert [len(page["NetworkInterfaces"]) for page in pages] == [5, 5, 2]
    assert {each["NetworkInterfaceId"] for page in pages for each in page["NetworkInterfaces"]} == made


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"MaxResults": 1001}, "InvalidParameterValue"),
        ({"MaxResults": 10, "NetworkInterfaceIds": ["eni-0123456789abcdef0"]}, "InvalidParameterCombination"),
        ({"NextToken": "nonsense"}, "InvalidPaginationToken"),
        ({"NetworkInterfaceIds": ["eni-x"]}, "InvalidNetworkInterfaceId.Malformed"),
        ({"NetworkInterfaceIds": ["eni-0123456789abcdef0"]}, "InvalidNetworkInterfaceID.NotFound"),
    ],
)
def test_describes_that_cannot_be(described: Any, parameters: dict[str, Any], code: str) -> None:
    assert refusal(described.describe_network_interfaces, **parameters)[0] == code


def test_tags(sim: Endpoint, ec2: Any) -> None:
    eni_id = create(ec2, sim)["NetworkInterfaceId"]
    ec2.create_tags(Resources=[eni_id, sim.subnets[0]], Tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])
    ec2.create_tags(Resources=[eni_id], Tags=[{"Key": "a", "Value": "3"}])
    rows = ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [eni_id]}])["Tags"]
    assert {(row["Key"], row["Value"], row["ResourceType"]) for row in rows} == {
        ("a", "3", "network-interface"),
        ("b", "2", "network-interface"),
    }
    ec2.delete_tags(Resources=[eni_id], Tags=[{"Key": "a", "Value": "other"}, {"Key": "b"}])
    assert describe(ec2, eni_id)["TagSet"] == [{"Key": "a", "Value": "3"}]
    ec2.delete_tags(Resources=[eni_id], Tags=[{"Key": "a", "Value": "3"}])
    assert describe(ec2, eni_id)["TagSet"] == []
    code, _, _ = refusal(ec2.create_tags, Resources=[eni_id], Tags=[{"Key": "aws:x", "Value": ""}])
    assert code == "InvalidParameterValue"
    many = [{"Key": f"k{n}", "Value": ""} for n in range(51)]
    assert refusal(ec2.create_tags, Resources=[eni_id], Tags=many)[0] == "TagLimitExceeded"
    at_once = [{"ResourceType": "network-interface", "Tags": many}]
    assert refusal(create, ec2=ec2, sim=sim, TagSpecifications=at_once)[0] == "TagLimitExceeded"
    at_once[0]["Tags"] = many[:50]
    assert len(create(ec2, sim, TagSpecifications=at_once)["TagSet"]) == 50
    twice = [{"Key": "k", "Value": "1"}, {"Key": "k", "Value": "2"}]
    assert refusal(ec2.create_tags, Resources=[eni_id], Tags=twice)[0] == "InvalidParameterValue"


def test_an_identifier_that_has_not_the_form_is_malformed(sim: Endpoint, ec2: Any) -> None:
    """Error codes for the Amazon EC2 API; names of another kind's form are not better."""
    for strange in ("nonsense", "i-0123456789abcdef0", "vpc-xyz", "subnet-0123456789ABCDEF0", ""):
        assert refusal(ec2.describe_subnets, SubnetIds=[strange])[0] == "InvalidSubnetID.Malformed"
        assert refusal(ec2.describe_security_groups, GroupIds=[strange])[0] == "InvalidGroupId.Malformed"
        assert refusal(ec2.describe_vpcs, VpcIds=[strange])[0] == "InvalidVpcID.Malformed"
    assert refusal(create, ec2=ec2, sim=sim, Groups=["sg-1"])[0] == "InvalidGroupId.Malformed"
    assert refusal(ec2.describe_vpcs, VpcIds=["vpc-0123456789abcdef0"])[0] == "InvalidVpcID.NotFound"


def test_a_client_token_has_64_characters_at_most(sim: Endpoint, ec2: Any) -> None:
    create(ec2, sim, ClientToken="t" * 64)
    assert refusal(create, ec2=ec2, sim=sim, ClientToken="t" * 65)[0] == "InvalidParameterValue"


def test_security_groups_and_other_attributes_one_at_a_time(sim: Endpoint, ec2: Any) -> None:
    eni_id = create(ec2, sim)["NetworkInterfaceId"]
    group = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["default"]}])["SecurityGroups"][0]
    assert describe(ec2, eni_id)["Groups"] == [{"GroupId": group["GroupId"], "GroupName": "default"}]
    ec2.modify_network_interface_attribute(NetworkInterfaceId=eni_id, Groups=[group["GroupId"]])
    ec2.modify_network_interface_attribute(NetworkInterfaceId=eni_id, Description={"Value": "new"})
    ec2.modify_network_interface_attribute(NetworkInterfaceId=eni_id, SourceDestCheck={"Value": False})
    seen = describe(ec2, eni_id)
    assert (seen["Description"], seen["SourceDestCheck"]) == ("new", False)
    modify = ec2.modify_network_interface_attribute
    code, _, _ = refusal(modify, NetworkInterfaceId=eni_id, Groups=["sg-0123456789abcdef0"])
    assert code == "InvalidGroup.NotFound"
    code, _, _ = refusal(modify, NetworkInterfaceId=eni_id, Description={"Value": "x"}, SourceDestCheck={"Value": True})
    assert code == "InvalidParameterCombination"


def test_dry_run_changes_nothing(sim: Endpoint, ec2: Any) -> None:
    code, status, _ = refusal(create, ec2=ec2, sim=sim, DryRun=True)
    assert (code, status) == ("DryRunOperation", 412)
    assert ec2.describe_network_interfaces()["NetworkInterfaces"] == []
    assert sim.state()["subnets"][sim.subnets[0]]["free_address_count"] == 251
    assert refusal(ec2.describe_network_interfaces, DryRun=True)[0] == "DryRunOperation"
    code, _, _ = refusal(ec2.delete_network_interface, NetworkInterfaceId="eni-0123456789abcdef0", DryRun=True)
    assert code == "InvalidNetworkInterfaceID.NotFound"


def test_vpc_and_subnets(sim: Endpoint, ec2: Any) -> None:
    vpc = ec2.describe_vpcs()["Vpcs"][0]
    assert vpc["CidrBlockAssociationSet"][0]["CidrBlock"] == vpc["CidrBlock"] == "10.0.0.0/16"
    found = ec2.describe_subnets(
        Filters=[
            {"Name": "vpc-id", "Values": [vpc["VpcId"]]},
            {"Name": "availability-zone", "Values": ["us-west-2a"]},
        ]
    )["Subnets"]
    assert {each["CidrBlock"]: each["AvailableIpAddressCount"] for each in found} == {
        "10.0.0.0/24": 251,
        "10.0.1.0/27": 27,
    }
    assert refusal(ec2.describe_subnets, SubnetIds=["subnet-0123456789abcdef0"])[0] == "InvalidSubnetID.NotFound"


def test_termination_takes_only_enis_that_are_marked(sim: Endpoint, ec2: Any) -> None:
    instance_id = sim.launch()
    kept = create(ec2, sim)["NetworkInterfaceId"]
    ec2.attach_network_interface(NetworkInterfaceId=kept, InstanceId=instance_id, DeviceIndex=1)
    sim.control.delete(f"/instances/{instance_id}").raise_for_status()
    left = ec2.describe_network_interfaces()["NetworkInterfaces"]
    assert [(each["NetworkInterfaceId"], each["Status"]) for each in left] == [(kept, "available")]
    instance = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"][0]["Instances"][0]
    assert instance["State"]["Name"] == "terminated"
