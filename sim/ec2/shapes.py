"""Records as the structures of the EC2 API reference.

Element names are those of the service model that every AWS SDK is made from; a test holds them to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address

from sim.ec2.render import Body, timestamp
from sim.model.catalog import InstanceType
from sim.model.records import (
    AttachmentRecord,
    EniRecord,
    InstanceRecord,
    InstanceState,
    SecurityGroupRecord,
    State,
    SubnetRecord,
    VpcRecord,
)

_INSTANCE_STATE_CODES = {InstanceState.RUNNING: 16, InstanceState.TERMINATED: 48}


def tag_set(tags: Mapping[str, str]) -> list[Body]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def group_set(state: State, group_ids: tuple[str, ...]) -> list[Body]:
    return [{"groupId": g, "groupName": state.security_groups[g].name} for g in group_ids]


def network_interface(state: State, eni: EniRecord) -> Body:
    """`NetworkInterface`, as DescribeNetworkInterfaces and CreateNetworkInterface answer it."""
    return {
        **_interface(state, eni),
        "attachment": _attachment(state, eni.attachment) if eni.attachment else None,
        "availabilityZone": eni.availability_zone,
        "availabilityZoneId": state.subnets[eni.subnet_id].availability_zone_id,
        "requesterManaged": False,
        "tagSet": tag_set(eni.tags),
    }


def instance(state: State, record: InstanceRecord) -> Body:
    """`Instance`; a terminated one keeps its identity and loses its network."""
    enis = state.enis_of(record.instance_id)
    primary = enis[0] if enis else None
    name = {"privateDnsName": "", "dnsName": ""}
    if primary is not None:
        name |= {"privateDnsName": private_dns_name(state.vpc, primary.primary_address)}
    return {
        "instanceId": record.instance_id,
        "imageId": record.image_id,
        "instanceState": {"code": _INSTANCE_STATE_CODES[record.state], "name": record.state},
        **name,
        "amiLaunchIndex": 0,
        "instanceType": record.instance_type,
        "launchTime": timestamp(record.launch_time_s),
        "placement": {"availabilityZone": record.availability_zone, "groupName": "", "tenancy": "default"},
        "monitoring": {"state": "disabled"},
        "subnetId": record.subnet_id if primary else None,
        "vpcId": record.vpc_id if primary else None,
        "privateIpAddress": str(primary.primary_address) if primary else None,
        "sourceDestCheck": primary.source_dest_check if primary else None,
        "groupSet": group_set(state, primary.security_group_ids) if primary else [],
        "architecture": "x86_64",
        "rootDeviceType": "ebs",
        "virtualizationType": "hvm",
        "tagSet": tag_set(record.tags),
        "networkInterfaceSet": [_instance_interface(state, each) for each in enis],
        "metadataOptions": {
            "state": "applied",
            "httpTokens": "required",
            "httpPutResponseHopLimit": record.metadata_hop_limit,
            "httpEndpoint": "enabled",
        },
    }


def instance_type(limits: InstanceType) -> Body:
    """`InstanceTypeInfo`, as far as it is about the network."""
    cards = [
        {"networkCardIndex": index, "maximumNetworkInterfaces": count}
        for index, count in enumerate(limits.interfaces_per_card)
    ]
    return {
        "instanceType": limits.name,
        "bareMetal": limits.bare_metal,
        "hypervisor": limits.hypervisor or None,
        "networkInfo": {
            "maximumNetworkInterfaces": limits.interface_count,
            "maximumNetworkCards": len(cards),
            "defaultNetworkCardIndex": 0,
            "networkCards": cards,
            "ipv4AddressesPerInterface": limits.ipv4_per_interface,
            "ipv6AddressesPerInterface": limits.ipv6_per_interface,
            "ipv6Supported": limits.ipv6_per_interface > 0,
        },
    }


def subnet(state: State, record: SubnetRecord) -> Body:
    """`Subnet`."""
    arn = f"arn:aws:ec2:{state.vpc.region}:{state.vpc.account_id}:subnet/{record.subnet_id}"
    ipv6 = [] if record.ipv6_cidr is None else [_association(record.subnet_id, "ipv6CidrBlock", str(record.ipv6_cidr))]
    return {
        "subnetId": record.subnet_id,
        "subnetArn": arn,
        "state": "available",
        "ownerId": state.vpc.account_id,
        "vpcId": record.vpc_id,
        "cidrBlock": str(record.cidr),
        "ipv6CidrBlockAssociationSet": ipv6,
        "availableIpAddressCount": record.free_address_count,
        "availabilityZone": record.availability_zone,
        "availabilityZoneId": record.availability_zone_id,
        "defaultForAz": False,
        "mapPublicIpOnLaunch": False,
        "assignIpv6AddressOnCreation": False,
        "ipv6Native": False,
        "privateDnsNameOptionsOnLaunch": {
            "hostnameType": "ip-name",
            "enableResourceNameDnsARecord": False,
            "enableResourceNameDnsAAAARecord": False,
        },
        "tagSet": tag_set(record.tags),
    }


def security_group(state: State, record: SecurityGroupRecord) -> Body:
    """`SecurityGroup`, without rules."""
    return {
        "ownerId": state.vpc.account_id,
        "groupId": record.group_id,
        "groupName": record.name,
        "groupDescription": record.description,
        "vpcId": record.vpc_id,
        "ipPermissions": [],
        "ipPermissionsEgress": [],
        "tagSet": tag_set(record.tags),
    }


def vpc(record: VpcRecord) -> Body:
    """`Vpc`."""
    return {
        "vpcId": record.vpc_id,
        "ownerId": record.account_id,
        "state": "available",
        "cidrBlock": str(record.cidrs[0]),
        "cidrBlockAssociationSet": [_association(record.vpc_id, "cidrBlock", str(c)) for c in record.cidrs],
        "ipv6CidrBlockAssociationSet": [
            _association(record.vpc_id, "ipv6CidrBlock", str(c)) for c in record.ipv6_cidrs
        ],
        "instanceTenancy": "default",
        "isDefault": False,
        "tagSet": tag_set(record.tags),
    }


def private_dns_name(record: VpcRecord, address: IPv4Address) -> str:
    """IP-based host name (EC2 User Guide, "EC2 instance hostnames and domains"); us-east-1 has a zone of its own."""
    zone = "ec2.internal" if record.region == "us-east-1" else f"{record.region}.compute.internal"
    return f"ip-{str(address).replace('.', '-')}.{zone}"


def _interface(state: State, eni: EniRecord) -> dict[str, Body | str | bool | list[Body]]:
    """What `NetworkInterface` and `InstanceNetworkInterface` have in common."""
    addresses = [(eni.primary_address, True), *((a, False) for a in eni.secondary_addresses)]
    return {
        "networkInterfaceId": eni.eni_id,
        "subnetId": eni.subnet_id,
        "vpcId": eni.vpc_id,
        "description": eni.description,
        "ownerId": state.vpc.account_id,
        "status": eni.status,
        "macAddress": eni.mac,
        "privateIpAddress": str(eni.primary_address),
        "privateDnsName": private_dns_name(state.vpc, eni.primary_address),
        "sourceDestCheck": eni.source_dest_check,
        "interfaceType": "interface",
        "groupSet": group_set(state, eni.security_group_ids),
        "privateIpAddressesSet": [
            {
                "privateIpAddress": str(address),
                "privateDnsName": private_dns_name(state.vpc, address),
                "primary": primary,
            }
            for address, primary in addresses
        ],
        "ipv4PrefixSet": [{"ipv4Prefix": str(p)} for p in eni.ipv4_prefixes],
        "ipv6AddressesSet": [{"ipv6Address": str(a)} for a in eni.ipv6_addresses],
        "ipv6PrefixSet": [{"ipv6Prefix": str(p)} for p in eni.ipv6_prefixes],
    }


def _attachment(state: State, attachment: AttachmentRecord) -> Body:
    return {
        **_place(attachment),
        "instanceId": attachment.instance_id,
        "instanceOwnerId": state.vpc.account_id,
    }


def _instance_interface(state: State, eni: EniRecord) -> Body:
    return {**_interface(state, eni), "attachment": _place(eni.attachment) if eni.attachment else None}


def _place(attachment: AttachmentRecord) -> Body:
    return {
        "attachmentId": attachment.attachment_id,
        "deviceIndex": attachment.device_index,
        "networkCardIndex": attachment.network_card_index,
        "status": attachment.status,
        "attachTime": timestamp(attachment.attach_time_s),
        "deleteOnTermination": attachment.delete_on_termination,
    }


def _association(owner_id: str, name: str, cidr: str) -> Body:
    kind = f"{owner_id.split('-', maxsplit=1)[0]}-cidr-assoc"
    return {
        "associationId": f"{kind}-{owner_id.split('-')[1]}",
        name: cidr,
        f"{name}State": {"state": "associated"},
    }
