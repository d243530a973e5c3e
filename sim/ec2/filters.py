"""Filters of Describe*: all filters must match, and each by any of its values (EC2 API reference, `Filter`).

Values are case-sensitive; `*` stands for any characters, `?` for one, `\\` before either takes it literally.
`tag:<key>`, `tag-key` and `tag-value` work for everything that carries tags; the tables below hold the others, under
the names of the API reference of each action.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from sim.ec2.parameters import Parameters
from sim.model.errors import invalid_value
from sim.model.records import (
    AttachmentRecord,
    EniRecord,
    InstanceRecord,
    SecurityGroupRecord,
    State,
    SubnetRecord,
    VpcRecord,
)

R = TypeVar("R")

Filters = tuple[tuple[str, tuple[str, ...]], ...]
Attributes = Mapping[str, Callable[[State, R], Iterable[str]]]
"""Filter name -> the values a record has under it."""


def read_filters(parameters: Parameters) -> Filters:
    """`Filter.N.Name` and `Filter.N.Value.M`.

    Raises: Ec2Error(MissingParameter, InvalidParameterValue) for a filter without a value.
    """
    filters = []
    for each in parameters.structures("Filter"):
        name, values = each.text("Name"), each.texts("Value")
        if not values:
            raise invalid_value(f"The filter '{name}' has no value")
        filters.append((name, values))
    return tuple(filters)


def matching(
    filters: Filters,
    state: State,
    records: Iterable[R],
    attributes: Attributes[R],
    tags: Callable[[R], Mapping[str, str]],
) -> list[R]:
    """The records that match every filter.

    Raises: Ec2Error(InvalidParameterValue) for a filter this action does not have.
    """
    for name, _ in filters:
        if name not in attributes and name not in {"tag-key", "tag-value"} and not name.startswith("tag:"):
            raise invalid_value(f"The filter '{name}' is invalid")
    return [
        record
        for record in records
        if all(_matches(values, _values_of(name, state, record, attributes, tags)) for name, values in filters)
    ]


def _values_of(
    name: str, state: State, record: R, attributes: Attributes[R], tags: Callable[[R], Mapping[str, str]]
) -> Iterable[str]:
    if name == "tag-key":
        return tags(record)
    if name == "tag-value":
        return tags(record).values()
    if name.startswith("tag:"):
        value = tags(record).get(name.removeprefix("tag:"))
        return () if value is None else (value,)
    return attributes[name](state, record)


def _matches(wanted: tuple[str, ...], values: Iterable[str]) -> bool:
    return any(_pattern(each).fullmatch(value) for value in values for each in wanted)


@functools.lru_cache(maxsize=1024)
def _pattern(wanted: str) -> re.Pattern[str]:
    parts = re.findall(r"\\.|.", wanted, flags=re.DOTALL)
    wild = {"*": ".*", "?": "."}
    return re.compile("".join(wild.get(p) or re.escape(p[-1]) for p in parts), flags=re.DOTALL)


def _true(value: bool) -> tuple[str]:  # noqa: FBT001 - a value to write down, not a switch
    return ("true" if value else "false",)


def _zone_id(state: State, subnet_id: str) -> tuple[str]:
    return (state.subnets[subnet_id].availability_zone_id,)


def _attached(read: Callable[[AttachmentRecord], str]) -> Callable[[State, EniRecord], Iterable[str]]:
    """A filter on the attachment: matches nothing while there is none."""
    return lambda _, e: () if e.attachment is None else (read(e.attachment),)


ENI: Attributes[EniRecord] = {
    "network-interface-id": lambda _, e: (e.eni_id,),
    "vpc-id": lambda _, e: (e.vpc_id,),
    "subnet-id": lambda _, e: (e.subnet_id,),
    "availability-zone": lambda _, e: (e.availability_zone,),
    "availability-zone-id": lambda s, e: _zone_id(s, e.subnet_id),
    "status": lambda _, e: (e.status,),
    "description": lambda _, e: (e.description,),
    "mac-address": lambda _, e: (e.mac,),
    "interface-type": lambda *_: ("interface",),
    "owner-id": lambda s, _: (s.vpc.account_id,),
    "requester-managed": lambda *_: ("false",),
    "source-dest-check": lambda _, e: _true(e.source_dest_check),
    "private-ip-address": lambda _, e: (str(e.primary_address),),
    "addresses.private-ip-address": lambda _, e: map(str, (e.primary_address, *e.secondary_addresses)),
    "addresses.primary": lambda _, e: ("true", "false") if e.secondary_addresses else ("true",),
    "ipv6-addresses.ipv6-address": lambda _, e: map(str, e.ipv6_addresses),
    "group-id": lambda _, e: e.security_group_ids,
    "group-name": lambda s, e: (s.security_groups[g].name for g in e.security_group_ids),
    "attachment.attachment-id": _attached(lambda a: a.attachment_id),
    "attachment.instance-id": _attached(lambda a: a.instance_id),
    "attachment.instance-owner-id": lambda s, e: () if e.attachment is None else (s.vpc.account_id,),
    "attachment.device-index": _attached(lambda a: str(a.device_index)),
    "attachment.network-card-index": _attached(lambda a: str(a.network_card_index)),
    "attachment.status": _attached(lambda a: a.status),
    "attachment.delete-on-termination": _attached(lambda a: _true(a.delete_on_termination)[0]),
}
INSTANCE: Attributes[InstanceRecord] = {
    "instance-id": lambda _, i: (i.instance_id,),
    "instance-type": lambda _, i: (i.instance_type,),
    "instance-state-name": lambda _, i: (i.state,),
    "vpc-id": lambda _, i: (i.vpc_id,),
    "subnet-id": lambda _, i: (i.subnet_id,),
    "availability-zone": lambda _, i: (i.availability_zone,),
    "image-id": lambda _, i: (i.image_id,),
    "private-ip-address": lambda s, i: (str(e.primary_address) for e in s.enis_of(i.instance_id)[:1]),
    "network-interface.network-interface-id": lambda s, i: (e.eni_id for e in s.enis_of(i.instance_id)),
}
SUBNET: Attributes[SubnetRecord] = {
    "subnet-id": lambda _, s: (s.subnet_id,),
    "vpc-id": lambda _, s: (s.vpc_id,),
    "availability-zone": lambda _, s: (s.availability_zone,),
    "availability-zone-id": lambda _, s: (s.availability_zone_id,),
    "cidr-block": lambda _, s: (str(s.cidr),),
    "available-ip-address-count": lambda _, s: (str(s.free_address_count),),
    "state": lambda *_: ("available",),
    "owner-id": lambda s, _: (s.vpc.account_id,),
}
SECURITY_GROUP: Attributes[SecurityGroupRecord] = {
    "group-id": lambda _, g: (g.group_id,),
    "group-name": lambda _, g: (g.name,),
    "description": lambda _, g: (g.description,),
    "vpc-id": lambda _, g: (g.vpc_id,),
    "owner-id": lambda s, _: (s.vpc.account_id,),
}
VPC: Attributes[VpcRecord] = {
    "vpc-id": lambda _, v: (v.vpc_id,),
    "cidr": lambda _, v: (str(v.cidrs[0]),),
    "cidr-block-association.cidr-block": lambda _, v: map(str, v.cidrs),
    "state": lambda *_: ("available",),
    "owner-id": lambda _, v: (v.account_id,),
}
