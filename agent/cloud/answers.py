"""EC2's answers as values of the model. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from agent.cloud.policy import CloudPolicy
from agent.cloud.tags import INSTANCE_ID, is_managed, subnet_is_usable
from agent.ipam.model import Block, Eni, EniId, Instance, InstanceLimits, Mac, Subnet, SubnetId

if TYPE_CHECKING:
    from types_aiobotocore_ec2.type_defs import (
        AssignPrivateIpAddressesResultTypeDef,
        InstanceTypeInfoTypeDef,
        NetworkInterfaceAttachmentTypeDef,
        NetworkInterfaceTypeDef,
        SubnetTypeDef,
        TagTypeDef,
    )

NO_ADDRESS = IPv4Address("0.0.0.0")
"""Primary address of an ENI that has no IPv4 address (EFA-only, IPv6-only); such an ENI is never managed."""

_POD_INTERFACE_TYPES = frozenset({"interface", "efa"})
"""Interface types whose addresses pods may have. Trunk, branch, EFA-only and service-owned ENIs are somebody else's."""


def attachment(answer: NetworkInterfaceTypeDef) -> NetworkInterfaceAttachmentTypeDef | None:
    """The attachment of an ENI that is attached, or on the way there; None when it is not, or is leaving."""
    found = answer.get("Attachment")
    return found if found is not None and found.get("Status") in {"attaching", "attached"} else None


def eni(
    answer: NetworkInterfaceTypeDef,
    attached: NetworkInterfaceAttachmentTypeDef,
    *,
    subnet_cidr: IPv4Network,
    instance_id: str,
    policy: CloudPolicy,
    excluded: bool = False,
) -> Eni:
    """One element of DescribeNetworkInterfaces, with the subnet's CIDR, which that answer does not have.

    excluded: the subnet's tags keep pods out.
    """
    card, device = attached.get("NetworkCardIndex", 0), attached["DeviceIndex"]
    found_tags = tags(answer.get("TagSet", ()))
    ours = is_managed(
        found_tags,
        instance_id=instance_id,
        is_primary=card == 0 and device == 0,
        manage_untagged=policy.manage_untagged_eni,
    )
    primary_address = IPv4Address(answer.get("PrivateIpAddress") or NO_ADDRESS)
    interface_type = answer.get("InterfaceType", "interface")
    return Eni(
        eni_id=EniId(answer["NetworkInterfaceId"]),
        mac=Mac(answer["MacAddress"].lower()),
        card=card,
        device=device,
        subnet_id=SubnetId(answer["SubnetId"]),
        subnet_cidr=subnet_cidr,
        primary_address=primary_address,
        blocks=blocks(answer),
        attachment_id=attached["AttachmentId"],
        security_groups=tuple(group["GroupId"] for group in answer.get("Groups", ())),
        delete_on_termination=attached.get("DeleteOnTermination", False),
        interface_type=interface_type,
        excluded=excluded,
        made_by_us=found_tags.get(INSTANCE_ID) == instance_id,
        managed=ours and primary_address != NO_ADDRESS and interface_type in _POD_INTERFACE_TYPES,
    )


def granted(answer: AssignPrivateIpAddressesResultTypeDef) -> tuple[Block, ...]:
    """What AssignPrivateIpAddresses granted: of the kind that was asked for."""
    addresses = (one["PrivateIpAddress"] for one in answer.get("AssignedPrivateIpAddresses", ()))
    prefixes = (one["Ipv4Prefix"] for one in answer.get("AssignedIpv4Prefixes", ()))
    return tuple(Block(network=IPv4Network(text)) for text in (*addresses, *prefixes))


def blocks(answer: NetworkInterfaceTypeDef) -> tuple[Block, ...]:
    """Secondary addresses, then /28 prefixes, each in EC2's order."""
    addresses = (
        address["PrivateIpAddress"] for address in answer.get("PrivateIpAddresses", ()) if not address.get("Primary")
    )
    prefixes = (prefix["Ipv4Prefix"] for prefix in answer.get("Ipv4Prefixes", ()))
    return tuple(Block(network=IPv4Network(text)) for text in (*addresses, *prefixes))


def usable_subnets(answers: Iterable[SubnetTypeDef], *, instance: Instance, policy: CloudPolicy) -> tuple[Subnet, ...]:
    """The subnets a new ENI may be made in, most free addresses first.

    The node's own subnet is the one its primary address is in: subnets of a VPC do not overlap.
    """
    usable = [
        subnet(answer)
        for answer in answers
        if answer.get("CidrBlock")  # an IPv6-only subnet has none
        and subnet_is_usable(
            tags(answer.get("Tags", ())),
            is_node_subnet=instance.primary_address in IPv4Network(answer["CidrBlock"]),
            policy=policy,
        )
    ]
    return tuple(sorted(usable, key=lambda one: (-one.free_address_count, one.subnet_id)))


def subnet(answer: SubnetTypeDef) -> Subnet:
    """One element of DescribeSubnets that has an IPv4 CIDR."""
    return Subnet(
        subnet_id=SubnetId(answer["SubnetId"]),
        cidr=IPv4Network(answer["CidrBlock"]),
        free_address_count=answer["AvailableIpAddressCount"],
    )


def limits(answer: InstanceTypeInfoTypeDef) -> InstanceLimits:
    """One element of DescribeInstanceTypes: what network card 0 allows."""
    network = answer["NetworkInfo"]
    on_card_0 = next(card for card in network["NetworkCards"] if card["NetworkCardIndex"] == 0)
    return InstanceLimits(
        instance_type=answer["InstanceType"],
        eni_count=on_card_0["MaximumNetworkInterfaces"],
        addresses_per_eni=network["Ipv4AddressesPerInterface"],
        is_nitro=answer.get("Hypervisor") == "nitro" or answer.get("BareMetal", False),
    )


def tags(answer: Iterable[TagTypeDef]) -> dict[str, str]:
    """A tag set as a mapping."""
    return {tag["Key"]: tag["Value"] for tag in answer}
