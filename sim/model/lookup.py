"""Find things by identifier, or fail as EC2 does."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sim.model.errors import Ec2Error
from sim.model.records import AttachmentRecord, EniRecord, InstanceRecord, InstanceState, State, SubnetRecord

_ID = re.compile(r"([a-z-]+)-(?:[0-9a-f]{8}|[0-9a-f]{17})")


def find_eni(state: State, eni_id: str) -> EniRecord:
    """Raises: Ec2Error(InvalidNetworkInterfaceId.Malformed, InvalidNetworkInterfaceID.NotFound)."""
    _check_form(eni_id, "eni", "InvalidNetworkInterfaceId.Malformed")
    try:
        return state.enis[eni_id]
    except KeyError:
        raise Ec2Error(
            "InvalidNetworkInterfaceID.NotFound", f"The networkInterface ID '{eni_id}' does not exist"
        ) from None


def find_instance(state: State, instance_id: str) -> InstanceRecord:
    """A running instance or a terminated one.

    Raises: Ec2Error(InvalidInstanceID.Malformed, InvalidInstanceID.NotFound).
    """
    _check_form(instance_id, "i", "InvalidInstanceID.Malformed")
    try:
        return state.instances[instance_id]
    except KeyError:
        raise Ec2Error("InvalidInstanceID.NotFound", f"The instance ID '{instance_id}' does not exist") from None


def find_running_instance(state: State, instance_id: str) -> InstanceRecord:
    """Raises: as `find_instance`, and Ec2Error(IncorrectInstanceState) for a terminated one."""
    instance = find_instance(state, instance_id)
    if instance.state is not InstanceState.RUNNING:
        raise Ec2Error("IncorrectInstanceState", f"The instance '{instance_id}' is not in a valid state.")
    return instance


def find_subnet(state: State, subnet_id: str) -> SubnetRecord:
    """Raises: Ec2Error(InvalidSubnetID.Malformed, InvalidSubnetID.NotFound)."""
    _check_form(subnet_id, "subnet", "InvalidSubnetID.Malformed")
    try:
        return state.subnets[subnet_id]
    except KeyError:
        raise Ec2Error("InvalidSubnetID.NotFound", f"The subnet ID '{subnet_id}' does not exist") from None


def check_groups(state: State, group_ids: Iterable[str]) -> None:
    """Raises: Ec2Error(InvalidGroupId.Malformed, InvalidGroup.NotFound)."""
    for group_id in group_ids:
        _check_form(group_id, "sg", "InvalidGroupId.Malformed")
        if group_id not in state.security_groups:
            raise Ec2Error("InvalidGroup.NotFound", f"The security group '{group_id}' does not exist")


def check_vpc(state: State, vpc_id: str) -> None:
    """Raises: Ec2Error(InvalidVpcID.Malformed, InvalidVpcID.NotFound)."""
    _check_form(vpc_id, "vpc", "InvalidVpcID.Malformed")
    if vpc_id != state.vpc.vpc_id:
        raise Ec2Error("InvalidVpcID.NotFound", f"The vpc ID '{vpc_id}' does not exist")


def find_attachment(state: State, attachment_id: str) -> tuple[EniRecord, AttachmentRecord]:
    """Raises: Ec2Error(InvalidAttachmentID.NotFound)."""
    for eni in state.enis.values():
        if eni.attachment is not None and eni.attachment.attachment_id == attachment_id:
            return eni, eni.attachment
    raise Ec2Error("InvalidAttachmentID.NotFound", f"The attachment with ID '{attachment_id}' does not exist.")


def _check_form(identifier: str, prefix: str, code: str) -> None:
    form = _ID.fullmatch(identifier)
    if form is None or form[1] != prefix:
        raise Ec2Error(code, f'Invalid id: "{identifier}" (expecting "{prefix}-...")')
