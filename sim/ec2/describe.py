"""The reading actions. They show the VPC as it was a moment ago (`Timings.describe_lag_s`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from sim.ec2 import filters as by
from sim.ec2 import shapes
from sim.ec2.call import Call, Handler
from sim.ec2.filters import Attributes, matching, read_filters
from sim.ec2.paging import cut, read_page
from sim.ec2.render import Body
from sim.model.catalog import load_catalog
from sim.model.errors import Ec2Error
from sim.model.lookup import check_groups, check_vpc, find_eni, find_instance, find_subnet
from sim.model.records import EniRecord, InstanceRecord, SecurityGroupRecord, State, SubnetRecord, VpcRecord
from sim.model.tags import RESOURCE_TYPES, tagged_resources

R = TypeVar("R", EniRecord, InstanceRecord, SubnetRecord, SecurityGroupRecord, VpcRecord)


def describe_network_interfaces(call: Call) -> Body:
    """Filters: `sim.ec2.filters.ENI`."""
    ids = call.parameters.texts("NetworkInterfaceId")
    call.parameters.boolean("IncludeManagedResources")
    state, wanted, token = _select(
        call, ids, find_eni, lambda s: s.enis.values(), by.ENI, lambda e: e.eni_id, paged_with_ids=False
    )
    return {"networkInterfaceSet": [shapes.network_interface(state, e) for e in wanted], "nextToken": token}


def describe_instances(call: Call) -> Body:
    """Each instance is a reservation of its own. Filters: `sim.ec2.filters.INSTANCE`."""
    ids = call.parameters.texts("InstanceId")
    call.parameters.boolean("IncludeManagedResources")
    state, wanted, token = _select(
        call,
        ids,
        find_instance,
        lambda s: s.instances.values(),
        by.INSTANCE,
        lambda i: i.instance_id,
        paged_with_ids=False,
    )
    reservations: list[Body] = [
        {
            "reservationId": each.instance_id.replace("i-", "r-", 1),
            "ownerId": state.vpc.account_id,
            "groupSet": [],
            "instancesSet": [shapes.instance(state, each)],
        }
        for each in wanted
    ]
    return {"reservationSet": reservations, "nextToken": token}


def describe_subnets(call: Call) -> Body:
    """Filters: `sim.ec2.filters.SUBNET`."""
    ids = call.parameters.texts("SubnetId")
    state, wanted, token = _select(
        call, ids, find_subnet, lambda s: s.subnets.values(), by.SUBNET, lambda s: s.subnet_id
    )
    return {"subnetSet": [shapes.subnet(state, s) for s in wanted], "nextToken": token}


def describe_security_groups(call: Call) -> Body:
    """Filters: `sim.ec2.filters.SECURITY_GROUP`."""
    ids = call.parameters.texts("GroupId")

    def find(state: State, group_id: str) -> SecurityGroupRecord:
        check_groups(state, [group_id])
        return state.security_groups[group_id]

    state, wanted, token = _select(
        call, ids, find, lambda s: s.security_groups.values(), by.SECURITY_GROUP, lambda g: g.group_id
    )
    return {"securityGroupInfo": [shapes.security_group(state, g) for g in wanted], "nextToken": token}


def describe_vpcs(call: Call) -> Body:
    """There is one. Filters: `sim.ec2.filters.VPC`."""
    ids = call.parameters.texts("VpcId")

    def find(state: State, vpc_id: str) -> VpcRecord:
        check_vpc(state, vpc_id)
        return state.vpc

    _, wanted, token = _select(call, ids, find, lambda s: [s.vpc], by.VPC, lambda v: v.vpc_id)
    return {"vpcSet": [shapes.vpc(v) for v in wanted], "nextToken": token}


def describe_instance_types(call: Call) -> Body:
    """By name (`InstanceType.N`) or by the filter `instance-type`; 5 to 100 in a page."""
    names = call.parameters.texts("InstanceType")
    wanted_by = read_filters(call.parameters)
    page = read_page(call.parameters, call.action, ids=names, most_count=100)
    call.parameters.finish()
    catalog = load_catalog()
    unknown = [name for name in names if name not in catalog]
    if unknown:
        raise Ec2Error(
            "InvalidInstanceType", f"The following supplied instance types do not exist: [{', '.join(unknown)}]"
        )
    chosen = [catalog[name] for name in names or catalog]
    state = call.vpc.visible(call.now_s)
    chosen = matching(wanted_by, state, chosen, {"instance-type": lambda _, t: (t.name,)}, lambda _: {})
    shown, token = cut(page, chosen, lambda t: t.name)
    return {"instanceTypeSet": [shapes.instance_type(t) for t in shown], "nextToken": token}


def describe_tags(call: Call) -> Body:
    """Filters: key, value, resource-id, resource-type, tag:<key>."""
    wanted_by = read_filters(call.parameters)
    page = read_page(call.parameters, call.action)
    call.parameters.finish()
    state = call.vpc.visible(call.now_s)
    rows = [
        (resource_id, RESOURCE_TYPES[resource_id.split("-", 1)[0]], key, value)
        for resource_id, resource in tagged_resources(state).items()
        for key, value in resource.tags.items()
    ]
    attributes: Attributes[tuple[str, str, str, str]] = {
        "resource-id": lambda _, r: (r[0],),
        "resource-type": lambda _, r: (r[1],),
        "key": lambda _, r: (r[2],),
        "value": lambda _, r: (r[3],),
    }
    found = matching(wanted_by, state, rows, attributes, lambda r: {r[2]: r[3]})
    shown, token = cut(page, found, lambda r: f"{r[0]} {r[2]}")
    names = ("resourceId", "resourceType", "key", "value")
    return {"tagSet": [dict(zip(names, row, strict=True)) for row in shown], "nextToken": token}


def _select(
    call: Call,
    ids: Sequence[str],
    find: Callable[[State, str], R],
    everything: Callable[[State], Iterable[R]],
    attributes: Attributes[R],
    identify: Callable[[R], str],
    *,
    paged_with_ids: bool = True,
) -> tuple[State, list[R], str | None]:
    """The state seen, the records wanted by identifiers, filters and page, and the token of the next page.

    paged_with_ids: whether MaxResults may come together with identifiers.
    """
    wanted_by = read_filters(call.parameters)
    page = read_page(call.parameters, call.action, ids=() if paged_with_ids else ids)
    call.parameters.finish()
    state = call.vpc.visible(call.now_s)
    chosen = [find(state, each) for each in dict.fromkeys(ids)] if ids else everything(state)
    tags: Callable[[R], Mapping[str, str]] = lambda r: r.tags  # noqa: E731 - a typed lambda, for the type checker
    shown, token = cut(page, matching(wanted_by, state, chosen, attributes, tags), identify)
    return state, shown, token


ACTIONS: Mapping[str, Handler] = {
    "DescribeInstanceTypes": describe_instance_types,
    "DescribeInstances": describe_instances,
    "DescribeNetworkInterfaces": describe_network_interfaces,
    "DescribeSecurityGroups": describe_security_groups,
    "DescribeSubnets": describe_subnets,
    "DescribeTags": describe_tags,
    "DescribeVpcs": describe_vpcs,
}
