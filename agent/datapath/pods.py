"""One attachment in the kernel: wire and unwire. Blocking; runs in a worker thread that may change namespaces.

An ADD is four sends, because each needs what came before:

    host    create both ends, alias             two thirds of the time go here, in the kernel; then sysctls
    host    up, neighbours
    pod     up, gateway route, default route, neighbour, address
    host    settle the carrier, then the routes in table `pods`: the last message commits

Until the routes are there, nobody sends to the pod, and strict reverse-path filtering drops what it sends. So a crash
at any point leaves either a finished attachment or a link without addresses, which the next start removes.
"""

from __future__ import annotations

import errno
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from agent.datapath import cold, layout, messages, namespaces, seen, shaping, sysctls
from agent.datapath.compare import difference
from agent.datapath.desired import PodPlan, gateways, holder_of, pod_rules
from agent.datapath.messages import LinkSeen, VethEnd
from agent.datapath.netlink import NetlinkSocket, refusals_named
from agent.errors import Cause, InvalidRequest, KernelFailed
from agent.ipam.model import Address, AttachmentKey

_CREATE_ATTEMPTS: Final = 4
_GONE: Final = frozenset({errno.ENODEV, errno.ESRCH, errno.ENOENT})


class HostIfindexes:
    """Interface indexes for host veths, always rising, across restarts too: of two links, the newer has the higher one.

    Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next: Iterator[int] | None = None

    def take(self, route: NetlinkSocket) -> int:
        """The first one is above every link's in the kernel; from then on it is a counter.

        Raises: NetlinkRefused, OSError.
        """
        with self._lock:
            if self._next is None:
                first = layout.HOST_IFINDEXES.start
                taken = (index for index in seen.veth_ifindexes(route) if index in layout.HOST_IFINDEXES)
                self._next = itertools.count(max(taken, default=first - 1) + 1)
            return next(self._next)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """The interface indexes of a veth pair, each in its own namespace. created: False when it was there, and right."""

    host: int
    pod: int
    created: bool


def wire(route: NetlinkSocket, plan: PodPlan, indexes: HostIfindexes, expires_at_s: float) -> int:
    """Make the attachment; the index of its host veth. Repeatable: an identical one is kept.

    expires_at_s: on time.monotonic(); a caller that stopped waiting then must not find the address in use later.
    Raises: InvalidRequest (netns_invalid; request_invalid when the interface name is taken), KernelFailed. Either way
    nothing is left behind.
    """
    with namespaces.opened(plan.netns) as netns_fd:
        _check_time(plan, expires_at_s)
        with refusals_named(f"creating {plan.host_ifname}"):
            pair = _create(route, plan, netns_fd, indexes)
        if not pair.created:
            return pair.host
        try:
            _configure(route, plan, netns_fd, pair)
            _check_time(plan, expires_at_s)
        except BaseException:
            with refusals_named(f"undoing {plan.host_ifname}"):
                route.apply([messages.delete_link(pair.host)], ignore=_GONE)
            raise
        return pair.host


def _check_time(plan: PodPlan, expires_at_s: float) -> None:
    if time.monotonic() > expires_at_s:
        raise KernelFailed(Cause.KERNEL_REFUSED, f"wiring {plan.host_ifname} took too long; nothing of it is left")


def _create(route: NetlinkSocket, plan: PodPlan, netns_fd: int, indexes: HostIfindexes) -> _Pair:
    pod_index = layout.POD_IFINDEX
    for _ in range(_CREATE_ATTEMPTS):
        index = indexes.take(route)
        host = VethEnd(ifindex=index, ifname=plan.host_ifname, mac=plan.host_mac, mtu=plan.mtu)
        pod = VethEnd(ifindex=pod_index, ifname=plan.pod_ifname, mac=plan.pod_mac, mtu=plan.mtu)
        refusals = route.batch(
            [messages.create_veth(host, plan.group, pod, netns_fd), messages.set_alias(index, plan.alias)]
        )
        if not refusals:
            return _Pair(host=index, pod=pod_index, created=True)
        refusal = refusals[0]
        if refusal.position == 1:
            route.apply([messages.delete_link(index)], ignore=_GONE)
            raise refusal.as_error()
        match refusal.errno:
            case errno.EEXIST:
                kept = _make_room(route, plan, netns_fd)
                if kept is not None:
                    return kept
            case errno.EBUSY:
                pod_index = indexes.take(route) + layout.POD_IFINDEX_OFFSET
            case _:
                raise refusal.as_error()
    raise KernelFailed(
        Cause.KERNEL_REFUSED,
        f"creating {plan.host_ifname} failed {_CREATE_ATTEMPTS} times: its name or index was taken each time",
    )


def _make_room(route: NetlinkSocket, plan: PodPlan, netns_fd: int) -> _Pair | None:
    """One of the two names is taken. Keep what is already right, remove what is ours, refuse the rest.

    Raises: KernelFailed, InvalidRequest.
    """
    present = seen.link_named(route, plan.host_ifname)
    if present is not None:
        if not layout.is_ours(present.group) or present.kind != "veth":
            raise KernelFailed(
                Cause.KERNEL_REFUSED,
                f"a link named {plan.host_ifname} exists and is not ours",
                evidence={"link": plan.host_ifname, "group": present.group},
                remedy=f"remove it (ip link del {plan.host_ifname}) or choose another veth prefix",
            )
        if difference(route, plan, netns_fd) is None:
            return _Pair(host=present.ifindex, pod=0, created=False)
        route.apply([messages.delete_link(present.ifindex)], ignore=_GONE)
        return None
    pod_route = namespaces.open_route_socket(netns_fd)
    try:
        taken = seen.link_named(pod_route, plan.pod_ifname)
        if taken is None:
            return None
        if taken.mac != plan.pod_mac:
            raise InvalidRequest(
                Cause.REQUEST_INVALID,
                f"the container already has an interface {plan.pod_ifname}",
                evidence={"ifname": plan.pod_ifname, "mac": taken.mac, "kind": taken.kind},
            )
        pod_route.apply([messages.delete_link(taken.ifindex)], ignore=_GONE)
        return None
    finally:
        pod_route.close()


def _configure(route: NetlinkSocket, plan: PodPlan, netns_fd: int, pair: _Pair) -> None:
    with refusals_named(f"settings of {plan.host_ifname}"):
        # Before the link comes up: from then on a packet or a router advertisement may arrive from the pod.
        sysctls.set_link_ipv4(plan.host_ifname, "rp_filter", 1)
        sysctls.set_link_ipv6(plan.host_ifname, "accept_ra", 0)
        if plan.host_ports:
            # The node's own connections by 127.0.0.1; what a pod could do with it is dropped, see schema.py.
            sysctls.set_link_ipv4(plan.host_ifname, "route_localnet", 1)
        neighbours = (messages.set_neighbour(pair.host, address, plan.pod_mac) for address in plan.addresses)
        buckets = [] if plan.to_pod is None else [shaping.set_bucket(pair.host, plan.to_pod)]
        route.apply([*buckets, messages.set_up(pair.host), *neighbours])
    with refusals_named(f"inside the container of {plan.host_ifname}"):
        _configure_pod(plan, netns_fd, pair.pod)
    with refusals_named(f"routes of {plan.host_ifname}"):
        routes = (messages.add_pod_route(pair.host, address) for address in plan.addresses)
        route.apply([messages.settle_link(pair.host), *routes])


def _configure_pod(plan: PodPlan, netns_fd: int, pod_index: int) -> None:
    pod_gateways = gateways(plan.addresses)
    with namespaces.inside(netns_fd):
        if any(gateway.version == 6 for gateway in pod_gateways):
            # Runtimes disable IPv6 in new namespaces.
            sysctls.set_link_ipv6(plan.pod_ifname, "disable_ipv6", 0)
        pod_route = NetlinkSocket()
    try:
        batch = [] if plan.from_pod is None else [shaping.set_bucket(pod_index, plan.from_pod)]
        batch.append(messages.set_up(pod_index))
        for gateway in pod_gateways:
            batch += _pod_routes(plan, pod_index, gateway)
            batch.append(messages.set_neighbour(pod_index, gateway, plan.host_mac))
        batch += (messages.add_pod_address(pod_index, address) for address in plan.addresses)
        pod_route.apply(batch)
        for rule in pod_rules(plan):
            pod_route.apply([cold.add_rule(rule)], ignore=frozenset({errno.EEXIST}))
    finally:
        pod_route.close()


def _pod_routes(plan: PodPlan, pod_index: int, gateway: Address) -> list[bytes]:
    if plan.pod_table_id == layout.MAIN_TABLE:
        return [*messages.pod_routes(pod_index, gateway, table_id=layout.MAIN_TABLE, metric=0)]
    metric = layout.POD_METRIC_BASE + plan.pod_table_id
    return [
        *messages.pod_routes(pod_index, gateway, table_id=plan.pod_table_id, metric=0),
        *messages.pod_routes(pod_index, gateway, table_id=layout.MAIN_TABLE, metric=metric),
    ]


def unwire(route: NetlinkSocket, key: AttachmentKey, addresses: Sequence[Address], ifindex: int | None) -> None:
    """Take the routes away and the link out of the pod groups. Success when there is nothing (any more).

    ifindex: of the host veth when the caller remembers it; without it, or without that link, the alias is looked for.
    Routes are deleted only where they lead to this link: another attachment that holds the address keeps it.
    Raises: KernelFailed.
    """
    with refusals_named(f"releasing {key}"):
        if ifindex is not None and _release(route, ifindex, addresses):
            return
        for link in _links_of(route, key):
            _release(route, link.ifindex, addresses)


def _release(route: NetlinkSocket, ifindex: int, addresses: Sequence[Address]) -> bool:
    """Whether there was such a link."""
    batch = [messages.delete_pod_route(ifindex, address) for address in addresses]
    refusals = route.batch([*batch, messages.set_leaving(ifindex)])
    for refusal in refusals:
        if refusal.errno not in _GONE:
            raise refusal.as_error()
    return not any(refusal.position == len(batch) for refusal in refusals)


def _links_of(route: NetlinkSocket, key: AttachmentKey) -> Iterator[LinkSeen]:
    for link in seen.pod_links(route):
        holder = holder_of(link.alias)
        if holder is not None and holder.key == key:
            yield link


def discard(route: NetlinkSocket, host_ifname: str) -> None:
    """Delete a host veth of ours by name. Gone already is success; a foreign link of that name stays.

    Raises: KernelFailed.
    """
    with refusals_named(f"deleting {host_ifname}"):
        link = seen.link_named(route, host_ifname)
        if link is not None and layout.is_ours(link.group) and link.kind == "veth":
            route.apply([messages.delete_link(link.ifindex)], ignore=_GONE)


def sweep_leaving(route: NetlinkSocket) -> None:
    """Delete every link that `unwire` left and whose namespace is still there.

    Raises: KernelFailed.
    """
    with refusals_named("deleting released links"):
        route.apply([messages.delete_leaving()], ignore=_GONE)
