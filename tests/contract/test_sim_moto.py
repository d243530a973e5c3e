"""One body, two subjects: the simulated EC2 and moto's server answer the same questions alike.

moto is an independent reading of the same API. Where it is known to be laxer than EC2 (instance limits, addresses that
two ENIs hold, asynchronous attachment) there is nothing to compare; the simulator's own tests hold it to the AWS
documentation there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
import botocore.exceptions
import pytest
from moto.server import ThreadedMotoServer

from tests.contract.sim_endpoint import REGION, running_sim


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An EC2 with one subnet 10.0.0.0/24 and one m5.large in it."""

    ec2: Any
    subnet_id: str
    instance_id: str


@contextmanager
def simulated() -> Iterator[Subject]:
    with running_sim() as sim:
        yield Subject(ec2=sim.boto3(), subnet_id=sim.subnets[0], instance_id=sim.launch())


@contextmanager
def moto() -> Iterator[Subject]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        ec2 = boto3.client(
            "ec2",
            endpoint_url=f"http://{host}:{port}",
            region_name=REGION,
            aws_access_key_id="AKIDMOTO",
            aws_secret_access_key="secret",
        )
        vpc_id = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet = ec2.create_subnet(VpcId=vpc_id, CidrBlock="10.0.0.0/24", AvailabilityZone="us-west-2a")["Subnet"]
        image_id = ec2.describe_images()["Images"][0]["ImageId"]
        instance = ec2.run_instances(
            ImageId=image_id, InstanceType="m5.large", SubnetId=subnet["SubnetId"], MinCount=1, MaxCount=1
        )["Instances"][0]
        yield Subject(ec2=ec2, subnet_id=subnet["SubnetId"], instance_id=instance["InstanceId"])
    finally:
        server.stop()


@pytest.fixture(scope="module")
def subjects() -> Iterator[dict[str, Subject]]:
    with simulated() as ours, moto() as theirs:
        yield {"sim": ours, "moto": theirs}


@pytest.fixture(params=["sim", "moto"])
def subject(request: pytest.FixtureRequest, subjects: dict[str, Subject]) -> Subject:
    return subjects[request.param]


def create(subject: Subject, **parameters: Any) -> dict[str, Any]:
    return dict(subject.ec2.create_network_interface(SubnetId=subject.subnet_id, **parameters)["NetworkInterface"])


def describe(subject: Subject, eni_id: str) -> dict[str, Any]:
    return dict(subject.ec2.describe_network_interfaces(NetworkInterfaceIds=[eni_id])["NetworkInterfaces"][0])


def code_of(call: Any, **parameters: Any) -> str:
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**parameters)
    return str(caught.value.response["Error"]["Code"])


def test_create_attach_detach_delete(subject: Subject) -> None:
    made = create(subject, SecondaryPrivateIpAddressCount=2, Description="d")
    eni_id = made["NetworkInterfaceId"]
    assert [each["Primary"] for each in made["PrivateIpAddresses"]] == [True, False, False]
    assert made["Status"] in {"pending", "available"}  # moto answers when it is available; EC2 and sim before
    assert (made["Description"], made["SourceDestCheck"]) == ("d", True)
    attached = subject.ec2.attach_network_interface(
        NetworkInterfaceId=eni_id, InstanceId=subject.instance_id, DeviceIndex=1
    )
    seen = describe(subject, eni_id)
    assert seen["Status"] == "in-use"
    assert seen["Attachment"]["AttachmentId"] == attached["AttachmentId"]
    assert (seen["Attachment"]["DeviceIndex"], seen["Attachment"]["InstanceId"]) == (1, subject.instance_id)
    listed = subject.ec2.describe_network_interfaces(
        Filters=[{"Name": "attachment.instance-id", "Values": [subject.instance_id]}]
    )["NetworkInterfaces"]
    assert eni_id in {each["NetworkInterfaceId"] for each in listed}
    assert len(listed) == 2
    subject.ec2.detach_network_interface(AttachmentId=attached["AttachmentId"])
    subject.ec2.delete_network_interface(NetworkInterfaceId=eni_id)
    describe_all = subject.ec2.describe_network_interfaces
    assert code_of(describe_all, NetworkInterfaceIds=[eni_id]) == "InvalidNetworkInterfaceID.NotFound"


def test_assign_and_unassign(subject: Subject) -> None:
    eni_id = create(subject)["NetworkInterfaceId"]
    subject.ec2.assign_private_ip_addresses(NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=2)
    held = [each["PrivateIpAddress"] for each in describe(subject, eni_id)["PrivateIpAddresses"]]
    assert len(set(held)) == 3
    subject.ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni_id, PrivateIpAddresses=[held[1]])
    left = [each["PrivateIpAddress"] for each in describe(subject, eni_id)["PrivateIpAddresses"]]
    assert left == [held[0], held[2]]
    subject.ec2.delete_network_interface(NetworkInterfaceId=eni_id)


def test_tags_and_filters(subject: Subject) -> None:
    tags = [{"Key": "node.k8s.amazonaws.com/instance_id", "Value": subject.instance_id}]
    eni_id = create(subject, TagSpecifications=[{"ResourceType": "network-interface", "Tags": tags}])[
        "NetworkInterfaceId"
    ]
    subject.ec2.create_tags(Resources=[eni_id], Tags=[{"Key": "extra", "Value": "1"}])
    for filters in (
        [{"Name": "tag-key", "Values": ["extra"]}, {"Name": "status", "Values": ["available"]}],
        [{"Name": "tag:extra", "Values": ["1"]}, {"Name": "subnet-id", "Values": [subject.subnet_id]}],
    ):
        found = subject.ec2.describe_network_interfaces(Filters=filters)["NetworkInterfaces"]
        assert [each["NetworkInterfaceId"] for each in found] == [eni_id]
    subject.ec2.delete_tags(Resources=[eni_id], Tags=[{"Key": "extra"}])
    assert describe(subject, eni_id)["TagSet"] == tags
    subject.ec2.delete_network_interface(NetworkInterfaceId=eni_id)


def test_the_count_of_free_addresses_follows(subject: Subject) -> None:
    def free() -> int:
        subnet = subject.ec2.describe_subnets(SubnetIds=[subject.subnet_id])["Subnets"][0]
        return int(subnet["AvailableIpAddressCount"])

    before = free()
    eni_id = create(subject, SecondaryPrivateIpAddressCount=3)["NetworkInterfaceId"]
    assert before - free() == 4
    subject.ec2.delete_network_interface(NetworkInterfaceId=eni_id)
    assert free() == before


def test_errors_have_the_same_codes(subject: Subject) -> None:
    ec2 = subject.ec2
    unknown = "eni-0123456789abcdef0"
    assert code_of(ec2.delete_network_interface, NetworkInterfaceId=unknown) == "InvalidNetworkInterfaceID.NotFound"
    assert code_of(ec2.create_network_interface, SubnetId="subnet-0123456789abcdef0") == "InvalidSubnetID.NotFound"
    assert code_of(ec2.describe_instances, InstanceIds=["i-0123456789abcdef0"]) == "InvalidInstanceID.NotFound"
    assert code_of(ec2.detach_network_interface, AttachmentId="eni-attach-01234567") == "InvalidAttachmentID.NotFound"
    assert code_of(create, subject=subject, DryRun=True) == "DryRunOperation"


def test_answers_have_the_same_fields(subjects: dict[str, Subject]) -> None:
    """What moto tells of ENIs, the simulator tells too, under the same names."""
    fields: dict[str, set[str]] = {}
    for name, subject in subjects.items():
        eni = subject.ec2.describe_network_interfaces(
            Filters=[{"Name": "attachment.instance-id", "Values": [subject.instance_id]}]
        )["NetworkInterfaces"][0]
        subnet = subject.ec2.describe_subnets(SubnetIds=[subject.subnet_id])["Subnets"][0]
        fields[name] = {
            *(f"eni.{key}" for key in eni),
            *(f"eni.attachment.{key}" for key in eni["Attachment"]),
            *(f"eni.address.{key}" for key in eni["PrivateIpAddresses"][0]),
            *(f"subnet.{key}" for key in subnet),
        }
    not_simulated = {"eni.RequesterId"}  # an IAM identity, and the simulator knows none
    assert fields["moto"] - fields["sim"] == not_simulated
