"""CHECK: one attachment as the kernel has it against what `wire` makes; the first difference in words.

Blocking; runs in a worker thread that may change namespaces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent.datapath import cold, layout, messages, namespaces, seen, shaping, sysctls
from agent.datapath.desired import AF_INET, Bucket, PodPlan, alike, gateways, pod_rules
from agent.datapath.messages import family_of
from agent.datapath.netlink import NetlinkSocket, refusals_named
from agent.errors import Cause, InvalidRequest
from agent.ipam.model import Address


def check(route: NetlinkSocket, plan: PodPlan) -> None:
    """Compare an attachment with what `wire` makes. What chained plugins added is no difference.

    Raises: InvalidRequest (netns_invalid, attachment_drifted), KernelFailed.
    """
    with namespaces.opened(plan.netns) as netns_fd, refusals_named(f"checking {plan.host_ifname}"):
        found = difference(route, plan, netns_fd)
    if found is not None:
        raise drifted(plan.host_ifname, found)


def drifted(host_ifname: str, found: str) -> InvalidRequest:
    """The refusal that names what is different."""
    return InvalidRequest(
        Cause.ATTACHMENT_DRIFTED,
        f"{host_ifname} is not as it was made: {found}",
        evidence={"link": host_ifname, "difference": found},
        remedy="delete the pod; its controller makes a new one",
    )


def difference(route: NetlinkSocket, plan: PodPlan, netns_fd: int) -> str | None:
    """The first one, from the host's side to the container's; None when there is none.

    Raises: NetlinkRefused, OSError.
    """
    link = seen.link_named(route, plan.host_ifname)
    adopted = seen.macs_of_adopted(route, link) if link is not None else None
    if adopted is not None:
        plan = replace(plan, host_mac=adopted[0], pod_mac=adopted[1])
    return _host_difference(route, plan) or _pod_difference(plan, netns_fd)


def _host_difference(route: NetlinkSocket, plan: PodPlan) -> str | None:
    link = seen.link_named(route, plan.host_ifname)
    if link is None:
        return "the host veth is missing"
    expected = (
        ("alias", link.alias, plan.alias),
        ("group", link.group, plan.group),
        ("MTU", link.mtu, plan.mtu),
        ("MAC", link.mac, plan.host_mac),
        ("up", link.up, True),
        ("rp_filter", sysctls.link_ipv4(plan.host_ifname, "rp_filter"), 1),
        ("accept_ra", sysctls.link_ipv6(plan.host_ifname, "accept_ra") or 0, 0),
        ("route_localnet", plan.host_ports and sysctls.link_ipv4(plan.host_ifname, "route_localnet") != 1, False),
    )
    for name, value, wanted in expected:
        if value != wanted:
            return f"the host veth's {name} is {value!r}, not {wanted!r}"
    routed = {found.address for found in seen.pod_routes(route) if found.ifindex == link.ifindex}
    if routed != set(plan.addresses):
        return f"table {layout.PODS_TABLE_NAME} leads {_listed(routed)} to the host veth, not {_listed(plan.addresses)}"
    for address in plan.addresses:
        if not _has_neighbour(route, link.ifindex, address, plan.pod_mac):
            return f"the host veth has no permanent neighbour {address}"
    return _bucket_difference(route, link.ifindex, plan.to_pod, "the host veth")


def _pod_difference(plan: PodPlan, netns_fd: int) -> str | None:
    pod_route = namespaces.open_route_socket(netns_fd)
    try:
        link = seen.link_named(pod_route, plan.pod_ifname)
        if link is None:
            return f"{plan.pod_ifname} in the container is missing"
        if not link.up:
            return f"{plan.pod_ifname} in the container is down"
        expected = (("MTU", link.mtu, plan.mtu), ("MAC", link.mac, plan.pod_mac))
        for name, value, wanted in expected:
            if value != wanted:
                return f"{plan.pod_ifname} in the container: its {name} is {value!r}, not {wanted!r}"
        present = {cold.parse_address(each) for each in pod_route.dump(cold.dump_addresses(link.ifindex))}
        missing = [address for address in plan.addresses if address not in present]
        if missing:
            return f"{plan.pod_ifname} in the container lacks {_listed(missing)}"
        for gateway in gateways(plan.addresses):
            found = _gateway_difference(pod_route, link.ifindex, gateway, plan)
            if found:
                return found
        return _rule_difference(pod_route, plan) or _bucket_difference(
            pod_route, link.ifindex, plan.from_pod, f"{plan.pod_ifname} in the container"
        )
    finally:
        pod_route.close()


def _gateway_difference(pod_route: NetlinkSocket, ifindex: int, gateway: Address, plan: PodPlan) -> str | None:
    for table_id in sorted({layout.MAIN_TABLE, plan.pod_table_id}):
        dump = cold.dump_routes(family_of(gateway), table_id, ifindex)
        routes = [cold.parse_route(each) for each in pod_route.dump(dump)]
        where = "" if table_id == layout.MAIN_TABLE else f" in table {table_id}"
        if not any(found.destination == gateway and found.gateway is None for found in routes):
            return f"the container has no route to {gateway}{where}"
        if not any(found.destination is None and found.gateway == gateway for found in routes):
            return f"the container has no default route by {gateway}{where}"
    if not _has_neighbour(pod_route, ifindex, gateway, plan.host_mac):
        return f"the container has no permanent neighbour {gateway}"
    return None


def _rule_difference(pod_route: NetlinkSocket, plan: PodPlan) -> str | None:
    wanted = pod_rules(plan)
    if not wanted:
        return None
    seen_rules = {cold.parse_rule(each, foreign=True) for each in pod_route.dump(cold.dump_rules(AF_INET))}
    missing = [rule for rule in wanted if rule not in seen_rules]
    return f"the container has no rule from {missing[0].source} to table {plan.pod_table_id}" if missing else None


def _bucket_difference(route: NetlinkSocket, ifindex: int, wanted: Bucket | None, where: str) -> str | None:
    if wanted is None:
        # A chained bandwidth plugin may have put its own there.
        return None
    found = shaping.bucket_of(route, ifindex)
    if alike(wanted, found):
        return None
    has = "no token bucket" if found is None else f"a token bucket of {found.rate_bytes_per_s * 8} bit/s"
    return f"{where} has {has}, not one of {wanted.rate_bytes_per_s * 8} bit/s"


def _has_neighbour(route: NetlinkSocket, ifindex: int, address: Address, mac: str) -> bool:
    dumped = route.dump(messages.dump_neighbours(family_of(address), ifindex))
    neighbours = (messages.parse_neighbour(each.payload) for each in dumped)
    return any(
        each is not None and each.address == address and each.mac == mac and each.permanent for each in neighbours
    )


def _listed(addresses: Sequence[Address] | set[Address]) -> str:
    return ", ".join(sorted(map(str, addresses))) or "nothing"
