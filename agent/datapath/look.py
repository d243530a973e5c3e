"""One look at everything of ours in the node's namespace, and carrying out what differs. Blocking."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import Final, assert_never

from agent.datapath import cold, messages, seen, shaping, sysctls
from agent.datapath.desired import AF_INET, AF_INET6, NodeDesired, RuleSpec
from agent.datapath.diff import (
    ENI_SETTINGS,
    HOST_PORT_SETTINGS,
    POD_SETTINGS,
    AddRule,
    EnableForwarding,
    NodeSeen,
    Operation,
    PutBucket,
    PutEniAddress,
    PutEniRoutes,
    PutNeighbour,
    PutPodRoute,
    SetLink,
    SetSetting,
    Setting,
    eni_link,
)
from agent.datapath.messages import LinkSeen, NeighbourSeen
from agent.datapath.netlink import NetlinkRefused, NetlinkSocket
from agent.ipam.model import Address

_PRESENT: Final = frozenset({errno.EEXIST})


def look(route: NetlinkSocket, desired: NodeDesired) -> NodeSeen:
    """Everything `desired` is about.

    Raises: NetlinkRefused, OSError.
    """
    parsed = (messages.parse_link(each.payload) for each in route.dump(messages.dump_links()))
    links = {link.ifindex: link for link in parsed}
    macs = [desired.primary_mac, *(eni.mac for eni in desired.enis)]
    eni_links = [link for mac in macs if (link := eni_link(mac, links)) is not None]
    return NodeSeen(
        forwarding=sysctls.forwarding(),
        links=links,
        pod_routes={each.address: each.ifindex for each in seen.pod_routes(route)},
        neighbours=_neighbours(route, desired),
        rules=frozenset(_rules(route, desired)),
        eni_routes={eni.table_id: seen.table_routes(route, eni.table_id) for eni in desired.enis},
        eni_addresses={link.ifindex: _addresses(route, link.ifindex) for link in eni_links},
        settings=_settings(desired, links, eni_links),
        buckets=shaping.buckets(route) if any(pod.to_pod for pod in desired.pods) else {},
    )


def _neighbours(route: NetlinkSocket, desired: NodeDesired) -> Mapping[tuple[int, Address], NeighbourSeen]:
    found: dict[tuple[int, Address], NeighbourSeen] = {}
    for family in sorted({messages.family_of(address) for pod in desired.pods for address in pod.addresses}):
        for each in route.dump(messages.dump_neighbours(family)):
            neighbour = messages.parse_neighbour(each.payload)
            if neighbour is not None:
                found[neighbour.ifindex, neighbour.address] = neighbour
    return found


def _rules(route: NetlinkSocket, desired: NodeDesired) -> Iterator[RuleSpec]:
    families = {rule.family for rule in desired.rules} & {AF_INET, AF_INET6}
    for family in sorted(families | {AF_INET}):
        for each in route.dump(cold.dump_rules(family)):
            rule = cold.parse_rule(each, foreign=True)
            if rule is not None:
                yield rule


def _addresses(route: NetlinkSocket, ifindex: int) -> frozenset[Address]:
    return frozenset(cold.parse_address(each) for each in route.dump(cold.dump_addresses(ifindex)))


def _settings(
    desired: NodeDesired, links: Mapping[int, LinkSeen], eni_links: list[LinkSeen]
) -> Mapping[str, Mapping[Setting, int]]:
    found = {link.ifname: _values(link.ifname, ENI_SETTINGS) for link in eni_links}
    for pod in desired.pods:
        if pod.ifindex in links:
            ifname = links[pod.ifindex].ifname
            found[ifname] = _values(ifname, HOST_PORT_SETTINGS if pod.host_ports else POD_SETTINGS)
    return found


def _values(ifname: str, wanted: Mapping[Setting, int]) -> Mapping[Setting, int]:
    values = {setting: sysctls.link_setting(setting[0], ifname, setting[1]) for setting in wanted}
    return {setting: value for setting, value in values.items() if value is not None}


def carry_out(route: NetlinkSocket, operation: Operation) -> None:
    """One operation. Raises: NetlinkRefused, OSError."""
    match operation:
        case EnableForwarding():
            sysctls.enable_forwarding()
        case SetLink():
            _set_link(route, operation)
        case SetSetting(ifname=ifname, setting=(family, key), value=value):
            sysctls.set_link_setting(family, ifname, key, value)
        case PutBucket(ifindex=ifindex, bucket=bucket):
            route.apply([shaping.set_bucket(ifindex, bucket)])
        case PutNeighbour(ifindex=ifindex, address=address, mac=mac):
            route.apply([messages.set_neighbour(ifindex, address, mac)])
        case PutEniAddress(ifindex=ifindex, eni=eni):
            route.apply([cold.add_eni_address(ifindex, eni)], ignore=_PRESENT)
        case PutEniRoutes(ifindex=ifindex, eni=eni):
            route.apply(cold.eni_routes(ifindex, eni))
        case AddRule(rule=rule):
            route.apply([cold.add_rule(rule)], ignore=_PRESENT)
        case PutPodRoute(ifindex=ifindex, address=address):
            route.apply([messages.replace_pod_route(ifindex, address)])
        case _:
            assert_never(operation)


def _set_link(route: NetlinkSocket, change: SetLink) -> None:
    changed = messages.set_link(
        change.ifindex,
        mac=change.mac,
        mtu=change.mtu,
        group=change.group,
        alias=change.alias,
        up=change.up,
    )
    renamed = [] if change.ifname is None else [messages.set_link(change.ifindex, ifname=change.ifname)]
    # Apart, so that a name which somebody else has by now does not keep the link down.
    refusals: list[NetlinkRefused] = [each.as_error() for each in route.batch([changed, *renamed])]
    if refusals:
        raise refusals[0]
