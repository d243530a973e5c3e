"""EC2's answers as values of the model, and the bundled table of limits."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from agent.cloud import answers
from agent.cloud.limits import bundled_limits
from agent.cloud.policy import CloudPolicy
from agent.ipam.model import Block, Eni, EniId, Instance, InstanceLimits, Mac, SubnetId
from scripts.instance_limits import TARGET
from scripts.instance_limits import limits as limits_of_source

CIDR = IPv4Network("10.0.0.0/24")


def described(**changes: Any) -> Any:
    return {
        "NetworkInterfaceId": "eni-1",
        "MacAddress": "02:AB:00:00:00:01",
        "SubnetId": "subnet-1",
        "PrivateIpAddress": "10.0.0.9",
        "PrivateIpAddresses": [
            {"PrivateIpAddress": "10.0.0.12", "Primary": False},
            {"PrivateIpAddress": "10.0.0.9", "Primary": True},
            {"PrivateIpAddress": "10.0.0.11", "Primary": False},
        ],
        "Groups": [{"GroupId": "sg-1", "GroupName": "default"}, {"GroupId": "sg-2", "GroupName": "x"}],
        "InterfaceType": "interface",
        "Attachment": {
            "AttachmentId": "eni-attach-1",
            "DeviceIndex": 2,
            "NetworkCardIndex": 0,
            "Status": "attached",
            "DeleteOnTermination": True,
        },
        "TagSet": [],
    } | changes


def eni(answer: Any, *, manage_untagged: bool = True) -> Eni:
    attached = answers.attachment(answer)
    assert attached is not None
    policy = CloudPolicy(manage_untagged_eni=manage_untagged)
    return answers.eni(answer, attached, subnet_cidr=CIDR, instance_id="i-me", policy=policy)


def test_an_eni_keeps_ec2s_order_and_leaves_its_own_address_out() -> None:
    assert eni(described(Ipv4Prefixes=[{"Ipv4Prefix": "10.0.0.32/28"}])) == Eni(
        eni_id=EniId("eni-1"),
        mac=Mac("02:ab:00:00:00:01"),
        card=0,
        device=2,
        subnet_id=SubnetId("subnet-1"),
        subnet_cidr=CIDR,
        primary_address=IPv4Address("10.0.0.9"),
        blocks=tuple(Block(network=IPv4Network(n)) for n in ("10.0.0.12", "10.0.0.11", "10.0.0.32/28")),
        attachment_id="eni-attach-1",
        security_groups=("sg-1", "sg-2"),
        delete_on_termination=True,
        managed=True,
    )


@pytest.mark.parametrize(
    ("status", "counts"), [("attaching", True), ("attached", True), ("detaching", False), ("detached", False)]
)
def test_an_eni_that_is_leaving_is_not_attached(*, status: str, counts: bool) -> None:
    answer = described()
    answer["Attachment"]["Status"] = status
    assert (answers.attachment(answer) is not None) is counts


def test_an_eni_without_attachment_is_not_attached() -> None:
    answer = described()
    del answer["Attachment"]
    assert answers.attachment(answer) is None


@pytest.mark.parametrize(
    ("interface_type", "managed"),
    [("interface", True), ("efa", True), ("trunk", False), ("branch", False), ("efa-only", False), ("lambda", False)],
)
def test_pods_get_addresses_only_of_plain_interfaces(*, interface_type: str, managed: bool) -> None:
    assert eni(described(InterfaceType=interface_type)).managed is managed


def test_an_eni_without_ipv4_counts_and_is_nobody_we_know() -> None:
    answer = described(PrivateIpAddresses=[])
    del answer["PrivateIpAddress"]
    found = eni(answer)
    assert (found.primary_address, found.blocks, found.managed) == (answers.NO_ADDRESS, (), False)


def test_tags_decide_who_manages_it() -> None:
    assert not eni(described(), manage_untagged=False).managed
    mine = described(TagSet=[{"Key": "node.k8s.amazonaws.com/instance_id", "Value": "i-me"}])
    assert eni(mine, manage_untagged=False).managed


INSTANCE = Instance(
    instance_id="i-me",
    account_id="123456789012",
    instance_type="m5.large",
    region="us-west-2",
    zone="us-west-2a",
    primary_mac=Mac("02:00:00:00:00:01"),
    primary_address=IPv4Address("10.0.0.9"),
    vpc_id="vpc-1",
    vpc_cidrs=(IPv4Network("10.0.0.0/16"),),
)


def subnet(subnet_id: str, cidr: str, free: int, role: str = "1") -> Any:
    tags = [{"Key": "kubernetes.io/role/cni", "Value": role}]
    return {"SubnetId": subnet_id, "CidrBlock": cidr, "AvailableIpAddressCount": free, "Tags": tags}


def test_the_emptiest_subnet_is_best_and_ties_are_settled_by_id() -> None:
    found = [
        subnet("subnet-c", "10.0.3.0/24", 7),
        subnet("subnet-b", "10.0.2.0/24", 7),
        subnet("subnet-own", "10.0.0.0/24", 3),
        subnet("subnet-full", "10.0.4.0/24", 0),
        subnet("subnet-out", "10.0.5.0/24", 200, role="0"),
        {"SubnetId": "subnet-six", "AvailableIpAddressCount": 0, "Tags": []},
    ]
    usable = answers.usable_subnets(found, instance=INSTANCE, policy=CloudPolicy())
    assert [one.subnet_id for one in usable] == ["subnet-b", "subnet-c", "subnet-own", "subnet-full"]


def test_the_nodes_subnet_is_the_one_its_address_is_in() -> None:
    found = [subnet("subnet-own", "10.0.0.0/24", 3, role=""), subnet("subnet-near", "10.0.1.0/24", 200, role="")]
    usable = answers.usable_subnets(found, instance=INSTANCE, policy=CloudPolicy())
    assert [one.subnet_id for one in usable] == ["subnet-own"]


def test_limits_are_those_of_network_card_0() -> None:
    answer: Any = {
        "InstanceType": "p9.big",
        "Hypervisor": "nitro",
        "NetworkInfo": {
            "MaximumNetworkInterfaces": 64,
            "Ipv4AddressesPerInterface": 50,
            "NetworkCards": [
                {"NetworkCardIndex": 1, "MaximumNetworkInterfaces": 1},
                {"NetworkCardIndex": 0, "MaximumNetworkInterfaces": 2},
            ],
        },
    }
    assert answers.limits(answer) == InstanceLimits(instance_type="p9.big", eni_count=2, addresses_per_eni=50)


@pytest.mark.parametrize(
    # EC2 User Guide, "IP addresses per network interface per instance type".
    ("instance_type", "eni_count", "addresses_per_eni"),
    [
        ("t3.small", 3, 4),
        ("m5.large", 3, 10),
        ("m5.4xlarge", 8, 30),
        ("c5n.18xlarge", 15, 50),
        ("p4d.24xlarge", 15, 50),
    ],
)
def test_the_bundled_table_knows_common_types(instance_type: str, eni_count: int, addresses_per_eni: int) -> None:
    assert bundled_limits(instance_type) == InstanceLimits(
        instance_type=instance_type, eni_count=eni_count, addresses_per_eni=addresses_per_eni
    )


def test_the_bundled_table_does_not_guess() -> None:
    assert bundled_limits("m5.gigantic") is None


def test_the_bundled_table_is_what_its_source_says() -> None:
    expected = limits_of_source()
    assert len(expected) > 1000
    assert json.loads(TARGET.read_text(encoding="utf-8"))["types"] == expected, "run python -m scripts.instance_limits"
