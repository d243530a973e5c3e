"""What the kernel holds now: links, pod routes, the cooldown set."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address

from agent.datapath import cold, layout, messages
from agent.datapath.desired import AF_INET, AF_INET6, holder_of
from agent.datapath.messages import LinkSeen, PodRouteSeen, RouteSeen
from agent.datapath.netlink import NetlinkRefused, NetlinkSocket
from agent.ipam.model import Address, AttachmentKey, Holder, Mac
from agent.ports.datapath import AttachmentSeen

_NOBODY = Holder(key=AttachmentKey(container_id="", ifname=""), namespace="", pod="")


def pods(route: NetlinkSocket) -> tuple[tuple[LinkSeen, tuple[Address, ...]], ...]:
    """Every host veth in a pod group, with the addresses routed to it.

    Raises: NetlinkRefused, OSError.
    """
    links = pod_links(route)
    addresses: dict[int, list[Address]] = {}
    for seen in pod_routes(route):
        addresses.setdefault(seen.ifindex, []).append(seen.address)
    return tuple((link, tuple(addresses.get(link.ifindex, ()))) for link in links)


def attachment(link: LinkSeen, alias: str, addresses: tuple[Address, ...]) -> AttachmentSeen:
    """The link as an attachment.

    Without an alias of ours (an ADD torn between create and alias) its holder's container id is empty. Without
    addresses it is a torn ADD, or one under way: only the caller knows which keys it is working on.
    """
    return AttachmentSeen(
        holder=holder_of(alias) or _NOBODY,
        host_ifname=link.ifname,
        host_ifindex=link.ifindex,
        addresses=addresses,
    )


def pod_links(route: NetlinkSocket) -> tuple[LinkSeen, ...]:
    """The host veths in a pod group, in the kernel's order."""
    links = (messages.parse_link(seen.payload) for seen in route.dump(messages.dump_links("veth")))
    # A kernel before 4.4 ignores the filter by kind.
    return tuple(link for link in links if link.kind == "veth" and link.group in layout.POD_GROUPS)


def macs_of_adopted(route: NetlinkSocket, link: LinkSeen) -> tuple[Mac, Mac] | None:
    """The MACs of host veth and pod of an adopted pod; None for a pod that was wired here.

    The AWS plugin lets the kernel number its links, and draws its MACs at random: they stay, because the pod has the
    host veth's in a permanent neighbour. The pod's own is in the permanent neighbour that the adoption wrote.
    """
    if link.ifindex in layout.HOST_IFINDEXES:
        return None
    dumped = route.dump(messages.dump_neighbours(AF_INET, link.ifindex))
    neighbours = (messages.parse_neighbour(each.payload) for each in dumped)
    return next(((link.mac, each.mac) for each in neighbours if each is not None and each.permanent), None)


def veth_ifindexes(route: NetlinkSocket) -> tuple[int, ...]:
    """Of every veth, ours or not."""
    return tuple(messages.parse_link(seen.payload).ifindex for seen in route.dump(messages.dump_links("veth")))


def pod_routes(route: NetlinkSocket) -> tuple[PodRouteSeen, ...]:
    """Our routes in table `pods`, IPv4 first, in the kernel's order."""
    seen: list[PodRouteSeen] = []
    for family in (AF_INET, AF_INET6):
        try:
            dumped = route.dump(messages.dump_pod_routes(family))
        except NetlinkRefused as exc:
            # ENOENT: the table has never had a route. EAFNOSUPPORT, EOPNOTSUPP: a kernel without IPv6.
            if exc.errno not in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                raise
            continue
        seen += (found for each in dumped if (found := messages.parse_pod_route(each)) is not None)
    return tuple(seen)


def table_routes(route: NetlinkSocket, table_id: int) -> tuple[RouteSeen, ...]:
    """The IPv4 routes of an ENI's table, whoever made them."""
    try:
        return tuple(cold.parse_route(each) for each in route.dump(cold.dump_routes(AF_INET, table_id, 0)))
    except NetlinkRefused as exc:
        if exc.errno == errno.ENOENT:
            return ()
        raise


def link_named(route: NetlinkSocket, ifname: str) -> LinkSeen | None:
    found = route.get(messages.get_link(ifname))
    return None if found is None else messages.parse_link(found.payload)


def link_with_mac(route: NetlinkSocket, mac: str) -> LinkSeen | None:
    """The link of an ENI: the oldest with this MAC that is not ours (a VLAN on top of it repeats the MAC, and is
    younger)."""
    links = (messages.parse_link(seen.payload) for seen in route.dump(messages.dump_links()))
    matching = [link for link in links if link.mac == mac.lower() and not layout.is_ours(link.group)]
    return min(matching, key=lambda link: link.ifindex, default=None)


def node_addresses(route: NetlinkSocket) -> tuple[IPv4Address, ...]:
    """The node's own IPv4 addresses, on whatever link."""
    found = (cold.parse_address(each) for each in route.dump(cold.dump_addresses(0, AF_INET)))
    return tuple(address for address in found if isinstance(address, IPv4Address))
