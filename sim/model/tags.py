"""Tags of every kind of resource.

Limits (EC2 User Guide, "Tag restrictions"): 50 tags for each, keys up to 128 and values up to 256 characters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sim.model.errors import Ec2Error, invalid_value
from sim.model.lookup import check_groups, check_vpc, find_eni, find_instance, find_subnet
from sim.model.records import (
    EniRecord,
    InstanceRecord,
    SecurityGroupRecord,
    State,
    Step,
    SubnetRecord,
    VpcRecord,
)

Tagged = InstanceRecord | EniRecord | SubnetRecord | SecurityGroupRecord | VpcRecord

MAX_TAG_COUNT = 50
RESOURCE_TYPES = {
    "eni": "network-interface",
    "i": "instance",
    "subnet": "subnet",
    "sg": "security-group",
    "vpc": "vpc",
}
"""Identifier prefix -> `resource-type` of DescribeTags."""


def tagged_resources(state: State) -> dict[str, Tagged]:
    """Everything that can carry tags, by identifier."""
    return {
        state.vpc.vpc_id: state.vpc,
        **state.subnets,
        **state.security_groups,
        **state.instances,
        **state.enis,
    }


def create_tags(state: State, resource_ids: tuple[str, ...], tags: Mapping[str, str]) -> Step[None]:
    """CreateTags: add, or overwrite by key.

    Raises: Ec2Error(InvalidParameterValue, TagLimitExceeded, ...NotFound); then no resource is changed.
    """
    check_tags(tags)
    for resource_id in resource_ids:
        merged = {**_find(state, resource_id).tags, **tags}
        if len(merged) > MAX_TAG_COUNT:
            raise Ec2Error("TagLimitExceeded", f"More than {MAX_TAG_COUNT} tags on '{resource_id}'")
        state = _with_tags(state, resource_id, merged)
    return Step(state=state, result=None)


def delete_tags(state: State, resource_ids: tuple[str, ...], tags: Mapping[str, str | None]) -> Step[None]:
    """DeleteTags: a value of None deletes the key whatever its value; no tags at all deletes all.

    Raises: Ec2Error(...NotFound). Tags that are not there are success.
    """
    for resource_id in resource_ids:
        before = _find(state, resource_id).tags
        kept = {k: v for k, v in before.items() if k not in tags or tags[k] not in {None, v}} if tags else {}
        state = _with_tags(state, resource_id, kept)
    return Step(state=state, result=None)


def check_tags(tags: Mapping[str, str]) -> None:
    """Whether a resource may be made with these tags, or get them.

    Raises: Ec2Error(InvalidParameterValue, TagLimitExceeded).
    """
    if len(tags) > MAX_TAG_COUNT:
        raise Ec2Error("TagLimitExceeded", f"{len(tags)} tags; a resource may have {MAX_TAG_COUNT}")
    for key, value in tags.items():
        if key.lower().startswith("aws:"):
            raise invalid_value(f"Tag keys starting with 'aws:' are reserved for internal use: '{key}'")
        if not 1 <= len(key) <= 128:
            raise invalid_value("Tag key exceeds the maximum length of 128 characters or is empty")
        if len(value) > 256:
            raise invalid_value("Tag value exceeds the maximum length of 256 characters")


def _find(state: State, resource_id: str) -> Tagged:
    match resource_id.split("-", 1)[0]:
        case "eni":
            return find_eni(state, resource_id)
        case "i":
            return find_instance(state, resource_id)
        case "subnet":
            return find_subnet(state, resource_id)
        case "sg":
            check_groups(state, [resource_id])
            return state.security_groups[resource_id]
        case "vpc":
            check_vpc(state, resource_id)
            return state.vpc
        case _:
            raise Ec2Error("InvalidID", f"The ID '{resource_id}' is not valid")


def _with_tags(state: State, resource_id: str, tags: Mapping[str, str]) -> State:
    found = _find(state, resource_id)
    match found:
        case EniRecord():
            return state.with_eni(replace(found, tags=tags))
        case InstanceRecord():
            return state.with_instance(replace(found, tags=tags))
        case SubnetRecord():
            return state.with_subnet(replace(found, tags=tags))
        case SecurityGroupRecord():
            return replace(state, security_groups={**state.security_groups, resource_id: replace(found, tags=tags)})
        case VpcRecord():
            return replace(state, vpc=replace(found, tags=tags))
