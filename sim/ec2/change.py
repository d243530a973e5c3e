"""The changing actions: parameters to an operation of `sim.model`, its result to an answer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from ipaddress import IPv4Address

from sim.ec2 import shapes
from sim.ec2.call import Call, Handler
from sim.ec2.parameters import Parameters, at_most_one
from sim.ec2.render import Body
from sim.model.attachments import AttachInterface, attach_interface, detach_interface
from sim.model.errors import Ec2Error, invalid_combination, invalid_value
from sim.model.interfaces import (
    CreateInterface,
    InterfaceAttributes,
    create_interface,
    delete_interface,
    modify_interface,
    set_delete_on_termination,
)
from sim.model.ipv4 import Ipv4Wish, assign_ipv4, unassign_ipv4
from sim.model.ipv6 import Ipv6Wish, assign_ipv6, unassign_ipv6
from sim.model.tags import create_tags, delete_tags

_DONE: Body = {"return": True}
MAX_TOKEN_LENGTH = 64
"""EC2 Developer Guide, "Ensuring idempotency in Amazon EC2 API requests"."""


def create_network_interface(call: Call) -> Body:
    """CreateNetworkInterface."""
    p = call.parameters
    primary, addresses = _explicit_addresses(p)
    ipv4 = Ipv4Wish(
        addresses=addresses,
        count=_granted(call, p.count("SecondaryPrivateIpAddressCount")),
        prefixes=p.prefixes4("Ipv4Prefix", "Ipv4Prefix"),
        prefix_count=_granted(call, p.count("Ipv4PrefixCount")),
    )
    ipv6 = Ipv6Wish(
        addresses=p.addresses6("Ipv6Addresses", "Ipv6Address"),
        count=_granted(call, p.count("Ipv6AddressCount")),
        prefixes=p.prefixes6("Ipv6Prefix", "Ipv6Prefix"),
        prefix_count=_granted(call, p.count("Ipv6PrefixCount")),
    )
    _check_one_kind(ipv4, ipv6)
    request = CreateInterface(
        subnet_id=p.text("SubnetId"),
        primary_address=primary,
        ipv4=ipv4,
        ipv6=ipv6,
        security_group_ids=p.texts("SecurityGroupId"),
        description=p.optional("Description") or "",
        tags=_tag_specification(p, "network-interface"),
        client_token=_client_token(p),
    )
    if p.optional("InterfaceType") not in {None, "interface"}:
        raise invalid_value("Only interfaces of type 'interface' are simulated")
    p.finish()
    eni = call.vpc.apply(partial(create_interface, request=request), now_s=call.now_s, dry_run=call.dry_run)
    return {
        # EC2 answers before the ENI is available (botocore's examples-1.json, ec2-create-network-interface-1).
        "networkInterface": {**shapes.network_interface(call.vpc.state, eni), "status": "pending"},
        "clientToken": request.client_token or None,
    }


def attach_network_interface(call: Call) -> Body:
    """AttachNetworkInterface."""
    p = call.parameters
    device_index = p.integer("DeviceIndex")
    request = AttachInterface(
        eni_id=p.text("NetworkInterfaceId"),
        instance_id=p.text("InstanceId"),
        device_index=-1 if device_index is None else device_index,
        network_card_index=p.integer("NetworkCardIndex") or 0,
    )
    if device_index is None:
        raise Ec2Error("MissingParameter", "The request must contain the parameter DeviceIndex")
    if device_index < 0:
        raise invalid_value(f"Value ({device_index}) for parameter DeviceIndex is invalid. It must be at least 0.")
    p.finish()
    attachment = call.vpc.apply(
        partial(attach_interface, request=request, now_s=call.now_s), now_s=call.now_s, dry_run=call.dry_run
    )
    return {"attachmentId": attachment.attachment_id, "networkCardIndex": attachment.network_card_index}


def detach_network_interface(call: Call) -> Body:
    """DetachNetworkInterface. `Force` changes nothing: a simulated instance never fails to let go."""
    attachment_id = call.parameters.text("AttachmentId")
    call.parameters.boolean("Force")
    call.parameters.finish()
    call.vpc.apply(
        partial(detach_interface, attachment_id=attachment_id, now_s=call.now_s),
        now_s=call.now_s,
        dry_run=call.dry_run,
    )
    return _DONE


def delete_network_interface(call: Call) -> Body:
    """DeleteNetworkInterface."""
    eni_id = call.parameters.text("NetworkInterfaceId")
    call.parameters.finish()
    call.vpc.apply(lambda state, _: delete_interface(state, eni_id), now_s=call.now_s, dry_run=call.dry_run)
    return _DONE


def modify_network_interface_attribute(call: Call) -> Body:
    """ModifyNetworkInterfaceAttribute: exactly one attribute at a time."""
    p = call.parameters
    eni_id = p.text("NetworkInterfaceId")
    description = p.structure("Description")
    source_dest_check = p.structure("SourceDestCheck")
    attachment = p.structure("Attachment")
    groups = p.texts("SecurityGroupId")
    given = [each for each in (description, source_dest_check, attachment, groups) if each]
    if not given:
        raise invalid_combination("No attributes specified.")
    if len(given) > 1:
        raise invalid_combination("Fields for multiple attribute types specified.")
    if attachment is not None:
        return _modify_attachment(call, eni_id, attachment)
    attributes = InterfaceAttributes(
        description=None if description is None else description.optional("Value") or "",
        source_dest_check=None if source_dest_check is None else source_dest_check.boolean("Value"),
        security_group_ids=groups or None,
    )
    p.finish()
    call.vpc.apply(lambda state, _: modify_interface(state, eni_id, attributes), now_s=call.now_s, dry_run=call.dry_run)
    return _DONE


def _modify_attachment(call: Call, eni_id: str, attachment: Parameters) -> Body:
    attachment_id = attachment.text("AttachmentId")
    value = attachment.boolean("DeleteOnTermination")
    if value is None:
        raise Ec2Error("MissingParameter", "The request must contain the parameter Attachment.DeleteOnTermination")
    call.parameters.finish()
    call.vpc.apply(
        lambda state, _: set_delete_on_termination(state, eni_id, attachment_id, value=value),
        now_s=call.now_s,
        dry_run=call.dry_run,
    )
    return _DONE


def assign_private_ip_addresses(call: Call) -> Body:
    """AssignPrivateIpAddresses: one of explicit addresses, their number, explicit prefixes, their number."""
    p = call.parameters
    eni_id = p.text("NetworkInterfaceId")
    wish = Ipv4Wish(
        addresses=p.addresses4("PrivateIpAddress"),
        count=_granted(call, p.count("SecondaryPrivateIpAddressCount")),
        prefixes=p.prefixes4("Ipv4Prefix"),
        prefix_count=_granted(call, p.count("Ipv4PrefixCount")),
        allow_reassignment=p.boolean("AllowReassignment") or False,
    )
    _check_one_kind(wish, Ipv6Wish())
    _check_something(wish.slot_count, call, "secondaryPrivateIpAddressCount or privateIpAddresses")
    p.finish()
    grant = call.vpc.apply(partial(assign_ipv4, eni_id=eni_id, wish=wish), now_s=call.now_s, dry_run=call.dry_run)
    return {
        "networkInterfaceId": eni_id,
        "assignedPrivateIpAddressesSet": [{"privateIpAddress": str(a)} for a in grant.addresses],
        "assignedIpv4PrefixSet": [{"ipv4Prefix": str(prefix)} for prefix in grant.prefixes],
        "return": True,
    }


def unassign_private_ip_addresses(call: Call) -> Body:
    """UnassignPrivateIpAddresses: addresses or prefixes."""
    p = call.parameters
    eni_id, addresses, prefixes = (
        p.text("NetworkInterfaceId"),
        p.addresses4("PrivateIpAddress"),
        p.prefixes4("Ipv4Prefix"),
    )
    _check_something(len(addresses) + len(prefixes), call, "privateIpAddresses or ipv4Prefixes")
    p.finish()
    call.vpc.apply(
        lambda state, _: unassign_ipv4(state, eni_id, addresses, prefixes), now_s=call.now_s, dry_run=call.dry_run
    )
    return _DONE


def assign_ipv6_addresses(call: Call) -> Body:
    """AssignIpv6Addresses: addresses or prefixes, explicit or by number."""
    p = call.parameters
    eni_id = p.text("NetworkInterfaceId")
    wish = Ipv6Wish(
        addresses=p.addresses6("Ipv6Addresses"),
        count=_granted(call, p.count("Ipv6AddressCount")),
        prefixes=p.prefixes6("Ipv6Prefix"),
        prefix_count=_granted(call, p.count("Ipv6PrefixCount")),
    )
    _check_one_kind(Ipv4Wish(), wish)
    _check_something(wish.slot_count, call, "ipv6AddressCount, ipv6Addresses, ipv6PrefixCount or ipv6Prefixes")
    p.finish()
    grant = call.vpc.apply(partial(assign_ipv6, eni_id=eni_id, wish=wish), now_s=call.now_s, dry_run=call.dry_run)
    return {
        "networkInterfaceId": eni_id,
        "assignedIpv6Addresses": [str(a) for a in grant.addresses],
        "assignedIpv6PrefixSet": [str(prefix) for prefix in grant.prefixes],
    }


def unassign_ipv6_addresses(call: Call) -> Body:
    """UnassignIpv6Addresses: addresses or prefixes."""
    p = call.parameters
    eni_id, addresses, prefixes = p.text("NetworkInterfaceId"), p.addresses6("Ipv6Addresses"), p.prefixes6("Ipv6Prefix")
    _check_something(len(addresses) + len(prefixes), call, "ipv6Addresses or ipv6Prefixes")
    p.finish()
    taken = call.vpc.apply(
        lambda state, _: unassign_ipv6(state, eni_id, addresses, prefixes), now_s=call.now_s, dry_run=call.dry_run
    )
    return {
        "networkInterfaceId": eni_id,
        "unassignedIpv6Addresses": [str(a) for a in taken.addresses],
        "unassignedIpv6PrefixSet": [str(prefix) for prefix in taken.prefixes],
    }


def create_tags_action(call: Call) -> Body:
    """CreateTags."""
    ids = _resources(call.parameters)
    tags = _tags(call.parameters)
    _check_something(len(tags), call, "Tag")
    call.parameters.finish()
    call.vpc.apply(lambda state, _: create_tags(state, ids, tags), now_s=call.now_s, dry_run=call.dry_run)
    return _DONE


def delete_tags_action(call: Call) -> Body:
    """DeleteTags: a tag without a value goes whatever its value is; no tags at all: all go."""
    ids = _resources(call.parameters)
    tags = {each.text("Key"): each.optional("Value") for each in call.parameters.structures("Tag")}
    call.parameters.finish()
    call.vpc.apply(lambda state, _: delete_tags(state, ids, tags), now_s=call.now_s, dry_run=call.dry_run)
    return _DONE


def _client_token(p: Parameters) -> str:
    token = p.optional("ClientToken") or ""
    if len(token) > MAX_TOKEN_LENGTH or not token.isascii():
        raise invalid_value(f"Invalid client token. It must be up to {MAX_TOKEN_LENGTH} ASCII characters.")
    return token


def _explicit_addresses(p: Parameters) -> tuple[IPv4Address | None, tuple[IPv4Address, ...]]:
    """`PrivateIpAddress` and `PrivateIpAddresses.N`: the primary address, and secondary ones."""
    primaries = [a for a in [p.address4("PrivateIpAddress")] if a is not None]
    secondary: list[IPv4Address] = []
    for each in p.structures("PrivateIpAddresses"):
        address = each.address4("PrivateIpAddress")
        if address is None:
            raise Ec2Error("MissingParameter", "The request must contain the parameter PrivateIpAddress")
        (primaries if each.boolean("Primary") else secondary).append(address)
    if len(set(primaries)) > 1:
        raise invalid_combination("Only one primary private IP address can be specified.")
    primary = primaries[0] if primaries else None
    return primary, tuple(dict.fromkeys(a for a in secondary if a != primary))


def _tag_specification(p: Parameters, resource_type: str) -> dict[str, str]:
    tags: dict[str, str] = {}
    for specification in p.structures("TagSpecification"):
        if specification.text("ResourceType") != resource_type:
            raise invalid_value(f"The only taggable resource type of this operation is '{resource_type}'.")
        tags |= _tags(specification)
    return tags


def _tags(p: Parameters) -> dict[str, str]:
    tags: dict[str, str] = {}
    for tag in p.structures("Tag"):
        key = tag.text("Key")
        if key in tags:
            raise invalid_value(f"Duplicate tag key '{key}' specified.")
        tags[key] = tag.optional("Value") or ""
    return tags


def _resources(p: Parameters) -> tuple[str, ...]:
    ids = p.texts("ResourceId")
    if not ids:
        raise Ec2Error("MissingParameter", "The request must contain the parameter resourceIdSet")
    return ids


def _granted(call: Call, count: int) -> int:
    """As many as a scripted partial grant leaves."""
    return count if call.grant_limit_count is None else min(count, call.grant_limit_count)


def _check_one_kind(ipv4: Ipv4Wish, ipv6: Ipv6Wish) -> None:
    at_most_one(
        {
            "privateIpAddresses": ipv4.addresses,
            "secondaryPrivateIpAddressCount": ipv4.count,
            "ipv4Prefixes": ipv4.prefixes,
            "ipv4PrefixCount": ipv4.prefix_count,
        }
    )
    at_most_one({"ipv6Addresses": ipv6.addresses, "ipv6AddressCount": ipv6.count})
    at_most_one({"ipv6Prefixes": ipv6.prefixes, "ipv6PrefixCount": ipv6.prefix_count})


def _check_something(count: int, call: Call, names: str) -> None:
    """Raises: Ec2Error(MissingParameter) when nothing is asked for; a partial grant of nothing is something."""
    if not count and call.grant_limit_count is None:
        raise Ec2Error("MissingParameter", f"Either {names} must be specified")


ACTIONS: Mapping[str, Handler] = {
    "AssignIpv6Addresses": assign_ipv6_addresses,
    "AssignPrivateIpAddresses": assign_private_ip_addresses,
    "AttachNetworkInterface": attach_network_interface,
    "CreateNetworkInterface": create_network_interface,
    "CreateTags": create_tags_action,
    "DeleteNetworkInterface": delete_network_interface,
    "DeleteTags": delete_tags_action,
    "DetachNetworkInterface": detach_network_interface,
    "ModifyNetworkInterfaceAttribute": modify_network_interface_attribute,
    "UnassignIpv6Addresses": unassign_ipv6_addresses,
    "UnassignPrivateIpAddresses": unassign_private_ip_addresses,
}
