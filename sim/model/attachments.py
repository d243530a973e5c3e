"""Attachments: an ENI comes to an instance and goes, each in two steps with time between.

AttachNetworkInterface starts an attachment that is `attaching`; DetachNetworkInterface makes it `detaching`. `complete`
ends both when their time has come: `attached`, or no attachment and the ENI `available`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sim.model.catalog import InstanceType
from sim.model.errors import Ec2Error, invalid_combination, invalid_value
from sim.model.ipv4 import check_ipv4_limit
from sim.model.ipv6 import check_ipv6_limit
from sim.model.lookup import find_attachment, find_eni, find_running_instance
from sim.model.records import (
    AttachmentRecord,
    AttachmentStatus,
    Change,
    EniAttached,
    EniDetached,
    EniRecord,
    InstanceRecord,
    State,
    Step,
    Transition,
)
from sim.model.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachInterface:
    """What AttachNetworkInterface asks for."""

    eni_id: str
    instance_id: str
    device_index: int
    network_card_index: int = 0


def attach_interface(state: State, rules: Rules, request: AttachInterface, *, now_s: float) -> Step[AttachmentRecord]:
    """Start an attachment; DeleteOnTermination is false until somebody sets it.

    Raises: Ec2Error(InvalidNetworkInterfaceID.NotFound, InvalidInstanceID.NotFound, IncorrectInstanceState,
    InvalidNetworkInterface.InUse, InvalidParameterCombination, InvalidParameterValue, AttachmentLimitExceeded,
    PrivateIpAddressLimitExceeded).
    """
    eni = find_eni(state, request.eni_id)
    instance = find_running_instance(state, request.instance_id)
    if eni.attachment is not None:
        raise Ec2Error("InvalidNetworkInterface.InUse", f"Interface: [{eni.eni_id}] in use.")
    if eni.availability_zone != instance.availability_zone:
        raise invalid_combination(
            "You may not attach a network interface to an instance if they are not in the same availability zone"
        )
    _check_place(state.enis_of(instance.instance_id), instance, rules.instance_type(instance.instance_type), request)
    check_ipv4_limit(state, rules, eni, instance_type=instance.instance_type)
    check_ipv6_limit(state, rules, eni, instance_type=instance.instance_type)
    attachment = AttachmentRecord(
        attachment_id=rules.mint.identifier("eni-attach"),
        instance_id=instance.instance_id,
        device_index=request.device_index,
        network_card_index=request.network_card_index,
        delete_on_termination=False,
        status=AttachmentStatus.ATTACHING,
        attach_time_s=now_s,
    )
    state = state.with_eni(replace(eni, attachment=attachment))
    return Step(state=_schedule(state, eni, attachment, now_s + rules.timings.attach_s), result=attachment)


def _check_place(
    present: tuple[EniRecord, ...], instance: InstanceRecord, limits: InstanceType, request: AttachInterface
) -> None:
    card, device = request.network_card_index, request.device_index
    if not 0 <= card < len(limits.interfaces_per_card):
        raise invalid_value(f"Network card index {card} does not exist on instance type '{limits.name}'")
    places = [(e.attachment.network_card_index, e.attachment.device_index) for e in present if e.attachment is not None]
    if (card, device) in places:
        raise invalid_value(
            f"Instance '{instance.instance_id}' already has an interface attached at device index '{device}'."
        )
    on_card = sum(1 for at, _ in places if at == card)
    if on_card >= limits.interfaces_per_card[card]:
        raise Ec2Error("AttachmentLimitExceeded", f"Interface count {on_card + 1} exceeds the limit for {limits.name}")


def detach_interface(state: State, rules: Rules, attachment_id: str, *, now_s: float) -> Step[None]:
    """Start to detach, also out of `attaching`.

    Raises: Ec2Error(InvalidAttachmentID.NotFound, OperationNotPermitted) for the primary ENI,
    Ec2Error(IncorrectState) while it is detaching already.
    """
    eni, attachment = find_attachment(state, attachment_id)
    if eni.is_primary:
        raise Ec2Error(
            "OperationNotPermitted",
            "The network interface at device index 0 and networkCard index 0 cannot be detached.",
        )
    if attachment.status is AttachmentStatus.DETACHING:
        raise Ec2Error("IncorrectState", f"The attachment '{attachment_id}' is already detaching.")
    leaving = replace(attachment, status=AttachmentStatus.DETACHING)
    state = state.with_eni(replace(eni, attachment=leaving))
    return Step(state=_schedule(state, eni, leaving, now_s + rules.timings.detach_s), result=None)


def complete(state: State, now_s: float) -> Step[None]:
    """End every attaching and detaching that is due, in the order they were due."""
    due = [t for t in state.transitions if t.due_s <= now_s]
    state = replace(state, transitions=tuple(t for t in state.transitions if t.due_s > now_s))
    changes: list[Change] = []
    for transition in due:
        eni, attachment = find_attachment(state, transition.attachment_id)
        ids = {"eni_id": eni.eni_id, "instance_id": attachment.instance_id}
        if attachment.status is AttachmentStatus.ATTACHING:
            settled: AttachmentRecord | None = replace(attachment, status=AttachmentStatus.ATTACHED)
            changes.append(EniAttached(**ids))
        else:
            settled = None
            changes.append(EniDetached(**ids))
        state = state.with_eni(replace(eni, attachment=settled))
    return Step(state=state, result=None, changes=tuple(changes))


def cancel_transitions(state: State, eni_ids: frozenset[str]) -> State:
    """Forget what was under way with these ENIs: their instance is gone."""
    return replace(state, transitions=tuple(t for t in state.transitions if t.eni_id not in eni_ids))


def _schedule(state: State, eni: EniRecord, attachment: AttachmentRecord, due_s: float) -> State:
    state = cancel_transitions(state, frozenset({eni.eni_id}))
    new = Transition(due_s=due_s, eni_id=eni.eni_id, attachment_id=attachment.attachment_id)
    return replace(state, transitions=tuple(sorted((*state.transitions, new), key=lambda t: t.due_s)))
