"""Pure: from what is seen to what should be, as operations in the order in which they can be carried out.

Nothing is ever deleted here: what somebody else has beside ours stays, and what stands in the place of ours is replaced
in one step. Links come first, because a link that is down or has another name takes routes and settings along; the
pods' routes come last, because they are what traffic follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from agent.datapath import layout
from agent.datapath.desired import Bucket, EniPlan, HostSide, NodeDesired, RuleSpec, alike
from agent.datapath.messages import LinkSeen, NeighbourSeen, RouteSeen
from agent.ipam.model import Address, Mac

Setting = tuple[str, str]
"""(family, key) of a link's setting: ("ipv4", "rp_filter")."""

POD_SETTINGS: Final[Mapping[Setting, int]] = {
    ("ipv4", "rp_filter"): 1,
    ("ipv4", "forwarding"): 1,
    ("ipv6", "accept_ra"): 0,
}
HOST_PORT_SETTINGS: Final[Mapping[Setting, int]] = {**POD_SETTINGS, ("ipv4", "route_localnet"): 1}
ENI_SETTINGS: Final[Mapping[Setting, int]] = {("ipv4", "rp_filter"): 2, ("ipv4", "forwarding"): 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSeen:
    """One look at the node's namespace.

    pod_routes: of table `pods`: address to the index of the link it leads to.
    rules: whoever made them. eni_routes: by table. eni_addresses: by interface index.
    settings: by link name; a setting that does not exist is missing.
    buckets: token buckets that are the root of a link, by interface index.
    """

    forwarding: bool
    links: Mapping[int, LinkSeen]
    pod_routes: Mapping[Address, int]
    neighbours: Mapping[tuple[int, Address], NeighbourSeen]
    rules: frozenset[RuleSpec]
    eni_routes: Mapping[int, tuple[RouteSeen, ...]]
    eni_addresses: Mapping[int, frozenset[Address]]
    settings: Mapping[str, Mapping[Setting, int]]
    buckets: Mapping[int, Bucket]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What every operation says of itself.

    pod: the host veth it is about; table_id: of the secondary ENI it is about. 0 for neither.
    """

    subject: str
    found: str
    pod: int = 0
    table_id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnableForwarding(Difference):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class SetLink(Difference):
    """None leaves it as it is. up: True brings it up."""

    ifindex: int
    ifname: str | None = None
    mac: Mac | None = None
    mtu: int | None = None
    group: int | None = None
    alias: str | None = None
    up: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SetSetting(Difference):
    ifname: str
    setting: Setting
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PutBucket(Difference):
    ifindex: int
    bucket: Bucket


@dataclass(frozen=True, slots=True, kw_only=True)
class PutNeighbour(Difference):
    ifindex: int
    address: Address
    mac: Mac


@dataclass(frozen=True, slots=True, kw_only=True)
class PutEniAddress(Difference):
    ifindex: int
    eni: EniPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class PutEniRoutes(Difference):
    ifindex: int
    eni: EniPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class AddRule(Difference):
    rule: RuleSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PutPodRoute(Difference):
    ifindex: int
    address: Address


Operation = (
    EnableForwarding
    | SetLink
    | SetSetting
    | PutBucket
    | PutNeighbour
    | PutEniAddress
    | PutEniRoutes
    | AddRule
    | PutPodRoute
)

_ORDER: Final = (
    EnableForwarding,
    SetLink,
    SetSetting,
    PutBucket,
    PutNeighbour,
    PutEniAddress,
    PutEniRoutes,
    AddRule,
    PutPodRoute,
)


def differences(desired: NodeDesired, seen: NodeSeen) -> tuple[Operation, ...]:
    """What to do, in order. A link that is gone is nobody's difference: an attachment ends with its link, and an ENI's
    link comes back by itself or not at all."""
    found = [*_node(desired, seen)]
    for eni in desired.enis:
        found += _eni(eni, desired.eni_mtu, seen)
    for pod in desired.pods:
        link = seen.links.get(pod.ifindex)
        if link is not None:
            found += _pod(pod, link, seen)
    return tuple(sorted(found, key=lambda operation: _ORDER.index(type(operation))))


def eni_link(mac: Mac, links: Mapping[int, LinkSeen]) -> LinkSeen | None:
    """The link of an ENI: the oldest with this MAC that is not ours."""
    matching = (link for link in links.values() if link.mac == mac and not layout.is_ours(link.group))
    return min(matching, key=lambda link: link.ifindex, default=None)


def _node(desired: NodeDesired, seen: NodeSeen) -> Iterator[Operation]:
    if not desired.primary_mac:
        return
    if not seen.forwarding:
        yield EnableForwarding(subject="net.ipv4.ip_forward", found="it is 0")
    for rule in desired.rules:
        yield from _rule(rule, seen, table_id=0)
    link = eni_link(desired.primary_mac, seen.links)
    if link is not None:
        yield from _eni_link(link, desired.eni_mtu, seen)


def _rule(rule: RuleSpec, seen: NodeSeen, *, table_id: int) -> Iterator[Operation]:
    if rule not in seen.rules:
        selector = f" to {rule.destination}" if rule.destination else f" from {rule.source}" if rule.source else ""
        subject = f"rule {rule.pref}{selector} lookup {rule.table_id}"
        yield AddRule(subject=subject, found="it is missing", table_id=table_id, rule=rule)


def _eni(eni: EniPlan, eni_mtu: int, seen: NodeSeen) -> Iterator[Operation]:
    link = eni_link(eni.mac, seen.links)
    if link is None:
        return
    yield from _eni_link(link, eni_mtu, seen)
    if eni.address not in seen.eni_addresses.get(link.ifindex, frozenset()):
        yield PutEniAddress(
            subject=f"address {eni.address} on {link.ifname}",
            found="it is missing",
            table_id=eni.table_id,
            ifindex=link.ifindex,
            eni=eni,
        )
    routes = {(one.destination, one.gateway, one.ifindex) for one in seen.eni_routes.get(eni.table_id, ())}
    if not {(eni.gateway, None, link.ifindex), (None, eni.gateway, link.ifindex)} <= routes:
        yield PutEniRoutes(
            subject=f"routes of table {eni.table_id}",
            found=f"gateway or default by {link.ifname} is missing",
            table_id=eni.table_id,
            ifindex=link.ifindex,
            eni=eni,
        )
    for rule in eni.rules:
        yield from _rule(rule, seen, table_id=eni.table_id)


def _eni_link(link: LinkSeen, eni_mtu: int, seen: NodeSeen) -> Iterator[Operation]:
    wrong = [*(["it is down"] if not link.up else []), *([f"MTU {link.mtu}"] if link.mtu != eni_mtu else [])]
    if wrong:
        yield SetLink(
            subject=f"link {link.ifname}",
            found=", ".join(wrong),
            ifindex=link.ifindex,
            mtu=eni_mtu if link.mtu != eni_mtu else None,
            up=not link.up,
        )
    yield from _settings(link.ifname, link.ifname, ENI_SETTINGS, seen, pod=0)


def _pod(pod: HostSide, link: LinkSeen, seen: NodeSeen) -> Iterator[Operation]:
    yield from _pod_link(pod, link)
    wanted = HOST_PORT_SETTINGS if pod.host_ports else POD_SETTINGS
    yield from _settings(pod.ifname, link.ifname, wanted, seen, pod=pod.ifindex)
    if pod.to_pod is not None and not alike(pod.to_pod, seen.buckets.get(pod.ifindex)):
        yield PutBucket(
            subject=f"token bucket of {pod.ifname}",
            found="it is missing or has another rate",
            pod=pod.ifindex,
            ifindex=pod.ifindex,
            bucket=pod.to_pod,
        )
    for address in pod.addresses:
        neighbour = seen.neighbours.get((pod.ifindex, address))
        if neighbour is None or not neighbour.permanent or neighbour.mac != pod.pod_mac:
            yield PutNeighbour(
                subject=f"neighbour {address}",
                found="it is missing"
                if neighbour is None
                else f"it is {neighbour.mac or 'unresolved'}, or not permanent",
                pod=pod.ifindex,
                ifindex=pod.ifindex,
                address=address,
                mac=pod.pod_mac,
            )
        # A link that is down has lost its routes, whether or not they were still there a moment ago.
        leads_to = seen.pod_routes.get(address)
        if leads_to != pod.ifindex or not link.up:
            yield PutPodRoute(
                subject=f"route {address}",
                found="it is missing" if leads_to is None or not link.up else f"it leads to link {leads_to}",
                pod=pod.ifindex,
                ifindex=pod.ifindex,
                address=address,
            )


def _pod_link(pod: HostSide, link: LinkSeen) -> Iterator[Operation]:
    wrong = [
        f"{name} is {found!r}"
        for name, found, wanted in (
            ("name", link.ifname, pod.ifname),
            ("MAC", link.mac, pod.mac),
            ("MTU", link.mtu, pod.mtu),
            ("group", link.group, pod.group),
            ("alias", link.alias, pod.alias),
            ("up", link.up, True),
        )
        if found != wanted
    ]
    if wrong:
        yield SetLink(
            subject=f"link {pod.ifname}",
            found=", ".join(wrong),
            pod=pod.ifindex,
            ifindex=pod.ifindex,
            ifname=pod.ifname if link.ifname != pod.ifname else None,
            mac=pod.mac if link.mac != pod.mac else None,
            mtu=pod.mtu if link.mtu != pod.mtu else None,
            group=pod.group if link.group != pod.group else None,
            alias=pod.alias if link.alias != pod.alias else None,
            up=not link.up,
        )


def _settings(
    ifname: str, seen_as: str, wanted: Mapping[Setting, int], seen: NodeSeen, *, pod: int
) -> Iterator[Operation]:
    for setting, value in wanted.items():
        found = seen.settings.get(seen_as, {}).get(setting, value)
        if found != value:
            yield SetSetting(
                subject=f"{setting[1]} of {ifname}",
                found=f"it is {found}",
                pod=pod,
                ifname=ifname,
                setting=setting,
                value=value,
            )
