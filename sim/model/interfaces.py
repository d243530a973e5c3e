"""ENIs: create, delete, change attributes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network

from sim.model.errors import Ec2Error, invalid_value
from sim.model.ipv4 import Ipv4Wish, assign_ipv4, check_address
from sim.model.ipv6 import Ipv6Wish, assign_ipv6
from sim.model.lookup import check_groups, find_attachment, find_eni, find_subnet
from sim.model.records import AddressesChanged, Change, EniRecord, State, Step, SubnetRecord, TokenUse
from sim.model.rules import Rules
from sim.model.space import grant_addresses, is_free, release, take
from sim.model.tags import check_tags


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateInterface:
    """What CreateNetworkInterface asks for.

    primary_address: None to take the next free one.
    security_group_ids: empty for the VPC's default group.
    client_token: empty for none.
    """

    subnet_id: str
    primary_address: IPv4Address | None = None
    ipv4: Ipv4Wish = field(default_factory=Ipv4Wish)
    ipv6: Ipv6Wish = field(default_factory=Ipv6Wish)
    security_group_ids: tuple[str, ...] = ()
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    client_token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceAttributes:
    """What ModifyNetworkInterfaceAttribute changes; None leaves as is."""

    description: str | None = None
    source_dest_check: bool | None = None
    security_group_ids: tuple[str, ...] | None = None


def create_interface(state: State, rules: Rules, request: CreateInterface) -> Step[EniRecord]:
    """CreateNetworkInterface. With a client token seen before, the ENI made then, as it is now.

    Raises: Ec2Error(IdempotentParameterMismatch, InvalidSubnetID.NotFound, InvalidGroup.NotFound,
    InvalidIPAddress.InUse, InvalidParameterValue, InsufficientFreeAddressesInSubnet, InsufficientCidrBlocks,
    PrivateIpAddressLimitExceeded).
    """
    fingerprint = repr(request)
    earlier = state.client_tokens.get(request.client_token)
    if earlier is not None and earlier.eni_id in state.enis:
        if earlier.fingerprint != fingerprint:
            raise Ec2Error(
                "IdempotentParameterMismatch",
                f"The client token '{request.client_token}' was used with different parameters.",
            )
        return Step(state=state, result=state.enis[earlier.eni_id])
    step = _create(state, rules, request)
    if not request.client_token:
        return step
    use = TokenUse(fingerprint=fingerprint, eni_id=step.result.eni_id)
    return replace(
        step, state=replace(step.state, client_tokens={**step.state.client_tokens, request.client_token: use})
    )


def _create(state: State, rules: Rules, request: CreateInterface) -> Step[EniRecord]:
    subnet = find_subnet(state, request.subnet_id)
    groups = request.security_group_ids or tuple(state.security_groups)[:1]
    check_groups(state, groups)
    check_tags(request.tags)
    for address in request.ipv4.addresses:
        _check_unused(subnet, address)
    primary, subnet = _primary_address(subnet, rules, request)
    eni = EniRecord(
        eni_id=rules.mint.identifier("eni"),
        mac=rules.mint.mac(),
        subnet_id=subnet.subnet_id,
        vpc_id=subnet.vpc_id,
        availability_zone=subnet.availability_zone,
        primary_address=primary,
        security_group_ids=groups,
        tags=dict(request.tags),
        description=request.description,
    )
    state = state.with_subnet(subnet).with_eni(eni)
    if request.ipv4.slot_count:
        state = assign_ipv4(state, rules, eni.eni_id, request.ipv4).state
    if request.ipv6.slot_count:
        state = assign_ipv6(state, rules, eni.eni_id, request.ipv6).state
    return Step(state=state, result=state.enis[eni.eni_id])


def _primary_address(subnet: SubnetRecord, rules: Rules, request: CreateInterface) -> tuple[IPv4Address, SubnetRecord]:
    if request.primary_address is None:
        # Explicit secondary addresses are put aside, so that the primary address does not fall on one of them.
        aside = take(subnet, request.ipv4.addresses)
        granted, aside = grant_addresses(aside, 1, rules.choose)
        return granted[0], release(aside, request.ipv4.addresses)
    _check_unused(subnet, request.primary_address)
    return request.primary_address, take(subnet, [request.primary_address])


def _check_unused(subnet: SubnetRecord, address: IPv4Address) -> None:
    check_address(subnet, address)
    if not is_free(subnet, address):
        raise Ec2Error("InvalidIPAddress.InUse", f"Address {address} is in use.")


def delete_interface(state: State, eni_id: str) -> Step[None]:
    """DeleteNetworkInterface.

    Raises: Ec2Error(InvalidNetworkInterfaceID.NotFound, InvalidParameterValue) while it is in use.
    """
    eni = find_eni(state, eni_id)
    if eni.attachment is not None:
        raise invalid_value(f"Network interface '{eni_id}' is currently in use.")
    return Step(state=without_eni(state, eni), result=None)


def without_eni(state: State, eni: EniRecord) -> State:
    """The state after an ENI is gone: its addresses are free again."""
    held: tuple[IPv4Address | IPv4Network, ...] = (eni.primary_address, *eni.secondary_addresses, *eni.ipv4_prefixes)
    subnet = release(state.subnets[eni.subnet_id], held)
    kept = {key: value for key, value in state.enis.items() if key != eni.eni_id}
    return replace(state.with_subnet(subnet), enis=kept)


def modify_interface(state: State, eni_id: str, attributes: InterfaceAttributes) -> Step[None]:
    """ModifyNetworkInterfaceAttribute for description, source/destination check and security groups.

    Raises: Ec2Error(InvalidNetworkInterfaceID.NotFound, InvalidGroup.NotFound).
    """
    eni = find_eni(state, eni_id)
    if attributes.description is not None:
        eni = replace(eni, description=attributes.description)
    changes: tuple[Change, ...] = ()
    if attributes.source_dest_check is not None:
        eni = replace(eni, source_dest_check=attributes.source_dest_check)
        changes = (AddressesChanged(eni_id=eni_id),)
    if attributes.security_group_ids is not None:
        check_groups(state, attributes.security_group_ids)
        eni = replace(eni, security_group_ids=attributes.security_group_ids)
    return Step(state=state.with_eni(eni), result=None, changes=changes)


def set_delete_on_termination(state: State, eni_id: str, attachment_id: str, *, value: bool) -> Step[None]:
    """ModifyNetworkInterfaceAttribute, `Attachment`.

    Raises: Ec2Error(InvalidNetworkInterfaceID.NotFound, InvalidAttachmentID.NotFound, InvalidParameterValue).
    """
    find_eni(state, eni_id)
    eni, attachment = find_attachment(state, attachment_id)
    if eni.eni_id != eni_id:
        raise invalid_value(f"The attachment '{attachment_id}' is not of network interface '{eni_id}'")
    return Step(
        state=state.with_eni(replace(eni, attachment=replace(attachment, delete_on_termination=value))), result=None
    )
