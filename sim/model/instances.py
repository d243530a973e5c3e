"""Instances: launch with a primary ENI, terminate with their ENIs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from sim.model.attachments import cancel_transitions
from sim.model.interfaces import CreateInterface, create_interface, without_eni
from sim.model.lookup import find_running_instance, find_subnet
from sim.model.records import (
    AttachmentRecord,
    AttachmentStatus,
    Change,
    EniAttached,
    EniDetached,
    InstanceLaunched,
    InstanceRecord,
    InstanceState,
    InstanceTerminated,
    State,
    Step,
)
from sim.model.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInstance:
    """What is launched; security groups as in `CreateInterface`."""

    instance_type: str
    subnet_id: str
    security_group_ids: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    metadata_hop_limit: int = 2


def run_instance(state: State, rules: Rules, request: RunInstance, *, now_s: float) -> Step[InstanceRecord]:
    """Launch. The primary ENI is attached at once and goes with the instance.

    Raises: Ec2Error(InvalidInstanceType, InvalidSubnetID.NotFound, InsufficientFreeAddressesInSubnet).
    """
    rules.instance_type(request.instance_type)
    subnet = find_subnet(state, request.subnet_id)
    instance = InstanceRecord(
        instance_id=rules.mint.identifier("i"),
        instance_type=request.instance_type,
        subnet_id=subnet.subnet_id,
        vpc_id=subnet.vpc_id,
        availability_zone=subnet.availability_zone,
        image_id=rules.mint.identifier("ami"),
        launch_time_s=now_s,
        metadata_hop_limit=request.metadata_hop_limit,
        tags=dict(request.tags),
    )
    wanted = CreateInterface(subnet_id=subnet.subnet_id, security_group_ids=request.security_group_ids)
    made = create_interface(state, rules, wanted)
    attachment = AttachmentRecord(
        attachment_id=rules.mint.identifier("eni-attach"),
        instance_id=instance.instance_id,
        device_index=0,
        network_card_index=0,
        delete_on_termination=True,
        status=AttachmentStatus.ATTACHED,
        attach_time_s=now_s,
    )
    eni = replace(made.result, attachment=attachment)
    return Step(
        state=made.state.with_instance(instance).with_eni(eni),
        result=instance,
        changes=(
            InstanceLaunched(instance_id=instance.instance_id),
            EniAttached(eni_id=eni.eni_id, instance_id=instance.instance_id),
        ),
    )


def terminate_instance(state: State, instance_id: str) -> Step[None]:
    """Terminate. ENIs with DeleteOnTermination are deleted, the others become available.

    Raises: Ec2Error(InvalidInstanceID.NotFound, IncorrectInstanceState).
    """
    instance = find_running_instance(state, instance_id)
    enis = state.enis_of(instance_id)
    changes: list[Change] = []
    for eni in enis:
        goes = eni.attachment is not None and eni.attachment.delete_on_termination
        state = without_eni(state, eni) if goes else state.with_eni(replace(eni, attachment=None))
        changes.append(EniDetached(eni_id=eni.eni_id, instance_id=instance_id))
    state = cancel_transitions(state, frozenset(e.eni_id for e in enis))
    state = state.with_instance(replace(instance, state=InstanceState.TERMINATED))
    return Step(state=state, result=None, changes=(*changes, InstanceTerminated(instance_id=instance_id)))
