"""`KernelDatapath`: the async face of the datapath. Blocking work runs in its threads; the event loop never waits for
a lock in the kernel.

Threads: four for netlink (the kernel's own rtnl lock lets one of them through at a time; the others prepare), one for
libnftables, which is not thread-safe. A netlink socket belongs to one thread at a time and is thrown away after a
failure that may have left an answer under way.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import Concatenate, Final, ParamSpec, TypeVar

from agent.datapath import compare, conntrack, enis, names, pods, seen
from agent.datapath.cooling import CoolingSet
from agent.datapath.desired import describe_wiring, eni_table_id, plan_eni, plan_pod
from agent.datapath.firewall import Firewall
from agent.datapath.hostports import HostPorts
from agent.datapath.monitor import LinkMonitor
from agent.datapath.netlink import NetlinkSocket, refusals_named
from agent.datapath.policy import DatapathPolicy
from agent.errors import Cause, InvalidRequest, KernelFailed
from agent.ipam.model import Address, AttachmentKey, Eni, Instance, Mac
from agent.ports import KernelSeen, PodWiring, PortMapping, Transport, Wired

_log = logging.getLogger(__name__)

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_NETLINK_THREAD_COUNT: Final = 4

_DEADLINE_S: Final = 10.0
"""For one piece of blocking work. Everything here takes milliseconds; seconds mean that the kernel's rtnl lock is
held by something else, and a container runtime gives an ADD minutes."""

_FIREWALL_DEADLINE_S: Final = 30.0
"""libnftables may read tens of thousands of foreign rules first."""

_LATE_S: Final = 0.5
"""Between a thread's own deadline and the moment its caller stops waiting: what finished in time is still reported."""

_SWEEP_DELAY_S: Final = 5.0
"""From a release to the deletion of its link: by then the runtime has normally removed the namespace, and the link
with it."""


class KernelDatapath:
    """The kernel of the network namespace this process runs in. Implements `agent.ports.Datapath`.

    One event loop. `run` must be running for `wait_for_eni_link`, for subscribers, and for released links to be
    deleted.
    """

    def __init__(self, policy: DatapathPolicy) -> None:
        self._policy = policy
        self._sockets: deque[NetlinkSocket] = deque()
        self._ifindexes = pods.HostIfindexes()
        self._host_ifindex: dict[AttachmentKey, int] = {}
        self._cooling = CoolingSet()
        self._host_ports = HostPorts()
        self._firewall = Firewall(policy, self._cooling, self._host_ports)
        self._monitor = LinkMonitor()
        self._adopted_ports = False
        self._released = asyncio.Event()
        self._netlink_threads = ThreadPoolExecutor(_NETLINK_THREAD_COUNT, thread_name_prefix="enoki-netlink")
        self._firewall_thread = ThreadPoolExecutor(1, thread_name_prefix="enoki-nftables")

    async def prepare_node(self, instance: Instance) -> None:
        if self._policy.names_directory is not None:
            await self._in_netlink_thread("installing names", names.install_names, self._policy.names_directory)
        primary_ifname = await self._with_route(
            "preparing the node", enis.prepare_node, instance.primary_mac, self._policy
        )
        await self._in_netlink_thread("reading the host ports", self._host_ports.load)
        await self._nftables(
            "preparing the table",
            self._firewall.prepare,
            primary_ifname,
            instance.primary_address,
            _some(instance.vpc_cidrs),
        )
        # An earlier agent may have been killed before it swept.
        self._released.set()

    async def set_vpc_cidrs(self, cidrs: Sequence[IPv4Network]) -> None:
        """Raises: KernelFailed; InvalidRequest for no CIDR at all, which would translate every packet inside the
        VPC."""
        await self._nftables("replacing the VPC's CIDRs", self._firewall.set_vpc_cidrs, _some(cidrs))

    async def wait_for_eni_link(self, mac: Mac, timeout_s: float) -> None:
        with self._monitor.expecting(mac) as changed:
            try:
                async with asyncio.timeout(timeout_s):
                    while await self._with_route("looking for an ENI", seen.link_with_mac, mac) is None:
                        await changed.wait()
                        changed.clear()
            except TimeoutError as exc:
                raise KernelFailed(
                    Cause.ENI_LINK_MISSING,
                    f"no link with the MAC {mac} appeared within {timeout_s:g} s",
                    evidence={"mac": mac, "timeout_s": timeout_s},
                    remedy="see whether EC2 shows the ENI as attached, and what the kernel log says of its driver",
                ) from exc

    async def ensure_eni(self, eni: Eni) -> int:
        if eni.is_primary:
            await self._with_route("preparing the primary ENI", enis.prepare_primary, eni.mac, self._policy.eni_mtu)
            return eni_table_id(eni)
        plan = plan_eni(eni)
        await self._with_route(f"preparing {eni.eni_id}", enis.ensure_eni, plan, self._policy.eni_mtu)
        await self._nftables(f"preparing {eni.eni_id}", self._firewall.add_eni, plan.index)
        return plan.table_id

    async def forget_eni(self, eni: Eni) -> None:
        if eni.is_primary:
            return
        plan = plan_eni(eni)
        await self._with_route(f"forgetting {eni.eni_id}", enis.forget_eni, plan)
        await self._nftables(f"forgetting {eni.eni_id}", self._firewall.delete_eni, plan.index)

    async def wire(self, wiring: PodWiring) -> Wired:
        plan = plan_pod(wiring, self._policy)
        what = f"wiring {plan.host_ifname}"
        # Ports before the route: the route commits, and the next start drops a port whose pod has no route.
        claimed = await self._claim_ports(what, wiring)
        try:
            ifindex = await self._with_route(what, pods.wire, plan, self._ifindexes, time.monotonic() + _DEADLINE_S)
        except BaseException:
            if claimed:
                await self._with_table(f"undoing {what}", self._host_ports.release, wiring.addresses)
            raise
        self._host_ifindex[wiring.holder.key] = ifindex
        return describe_wiring(wiring, self._policy)

    async def unwire(self, key: AttachmentKey, addresses: Sequence[Address], cooldown_s: float) -> None:
        # An agent killed between two steps must not leave an address that looks free: not to a host port that leads to
        # it, and not fresh.
        await self._with_table(f"releasing the host ports of {key}", self._host_ports.release, addresses)
        cooling = [address for address in addresses if isinstance(address, IPv4Address)]
        await self._with_table(f"cooling the addresses of {key}", self._cooling.put, cooling, cooldown_s)
        what = f"releasing {key}"
        await self._with_route(what, pods.unwire, key, addresses, self._host_ifindex.get(key))
        self._host_ifindex.pop(key, None)
        self._released.set()
        # Last, when no packet can make a new one.
        connections = [match for address in cooling for match in conntrack.of_pod(address)]
        await self._in_netlink_thread(f"forgetting the connections of {key}", conntrack.forget, connections)

    async def check(self, wiring: PodWiring) -> None:
        plan = plan_pod(wiring, self._policy)
        await self._with_route(f"checking {plan.host_ifname}", compare.check, plan)
        what = f"checking the host ports of {plan.host_ifname}"
        found = await self._in_netlink_thread(what, self._host_ports.difference, wiring.addresses, wiring.port_mappings)
        if found is not None:
            raise compare.drifted(plan.host_ifname, found)

    async def observe(self) -> KernelSeen:
        observed = await self._with_route("observing", seen.observe, self._cooling)
        await self._drop_orphaned_ports(observed)
        found = {each.holder.key: each.host_ifindex for each in observed.attachments}
        # What this agent wired itself is newer than the look; what it did not see is forgotten, and looked up when
        # needed.
        self._host_ifindex = {key: self._host_ifindex.get(key, ifindex) for key, ifindex in found.items()}
        return observed

    async def discard_link(self, host_ifname: str) -> None:
        await self._with_route(f"deleting {host_ifname}", pods.discard, host_ifname)

    def subscribe(self, wake: Callable[[], None]) -> None:
        self._monitor.subscribe(wake)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._monitor.run(), name="link monitor")
            group.create_task(self._sweep(), name="released links")

    def close(self) -> None:
        """Wait for the threads, close the sockets. After `run` has been cancelled."""
        self._netlink_threads.shutdown()
        self._firewall_thread.shutdown()
        self._monitor.close()
        self._cooling.close()
        self._host_ports.close()
        while self._sockets:
            self._sockets.pop().close()

    async def _drop_orphaned_ports(self, observed: KernelSeen) -> None:
        """Once: what an earlier agent claimed for pods that are gone. From then on every release drops its own."""
        if self._adopted_ports:
            return
        held = {address for each in observed.attachments for address in each.addresses}
        for port in await self._with_table("dropping orphaned host ports", self._host_ports.keep_only, held):
            _log.info("dropped the host port %s of %s, which is gone", port, port.owner)
        self._adopted_ports = True

    async def _sweep(self) -> None:
        degraded = False
        while True:
            await self._released.wait()
            await asyncio.sleep(_SWEEP_DELAY_S)
            self._released.clear()
            try:
                await self._with_route("deleting released links", pods.sweep_leaving)
            except KernelFailed as exc:
                self._released.set()
                if not degraded:
                    _log.warning("released links stay for now: %s", exc)
                degraded = True
            else:
                degraded = False

    async def _claim_ports(self, what: str, wiring: PodWiring) -> bool:
        """Whether anything changed. A pod without host ports costs no write."""
        mappings = wiring.port_mappings
        if not mappings and not self._host_ports.of(wiring.addresses):
            return False
        claim = self._host_ports.claim
        if not await self._with_table(f"host ports for {what}", claim, wiring.holder, wiring.addresses, mappings):
            return False
        udp = [one for one in mappings if one.transport is Transport.UDP]
        if udp:
            await self._with_route(f"stale datagrams of {what}", _forget_datagrams, udp)
        return True

    async def _with_table(
        self, what: str, function: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> _Result:
        """Run `function`, which writes into our table, in a netlink thread.

        Somebody may have flushed the ruleset: a DEL must not fail for that, and the pods want their table back anyway.
        """
        try:
            return await self._in_netlink_thread(what, function, *args, **kwargs)
        except KernelFailed as exc:
            if exc.evidence.get("errno") != errno.errorcode[errno.ENOENT]:
                raise
        await self._nftables("restoring the table", self._firewall.restore)
        return await self._in_netlink_thread(what, function, *args, **kwargs)

    async def _in_netlink_thread(
        self, what: str, function: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> _Result:
        return await self._in_thread(self._netlink_threads, what, _DEADLINE_S, partial(function, *args, **kwargs))

    async def _with_route(
        self,
        what: str,
        function: Callable[Concatenate[NetlinkSocket, _Parameters], _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        """Run `function` in a netlink thread, with a routing socket of the node's namespace."""

        def borrow() -> _Result:
            try:
                route = self._sockets.pop()
            except IndexError:
                route = NetlinkSocket()
            try:
                result = function(route, *args, **kwargs)
            except BaseException:
                route.close()
                raise
            self._sockets.append(route)
            return result

        return await self._in_thread(self._netlink_threads, what, _DEADLINE_S, borrow)

    async def _nftables(
        self, what: str, function: Callable[_Parameters, None], *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> None:
        work = partial(function, *args, **kwargs)
        await self._in_thread(self._firewall_thread, what, _FIREWALL_DEADLINE_S, work)

    async def _in_thread(self, threads: Executor, what: str, deadline_s: float, work: Callable[[], _Result]) -> _Result:
        """The result of `work`. It runs to its end, whether or not anybody still waits for it.

        Raises: KernelFailed.
        """

        def named() -> _Result:
            with refusals_named(what):
                return work()

        future = asyncio.wrap_future(threads.submit(named))
        future.add_done_callback(_look_at)
        done, _ = await asyncio.wait({future}, timeout=deadline_s + _LATE_S)
        if not done:
            raise KernelFailed(
                Cause.KERNEL_REFUSED,
                f"{what}: no end after {deadline_s:g} s",
                evidence={"deadline_s": deadline_s},
                remedy="see what holds the kernel's rtnl lock: cat /proc/*/stack, dmesg",
            )
        return future.result()


def _forget_datagrams(route: NetlinkSocket, mappings: Sequence[PortMapping]) -> None:
    local = seen.addresses(route)
    for each in mappings:
        addresses = local if each.host_address is None else (each.host_address,)
        conntrack.forget(conntrack.to_udp_port(each.host_port, addresses))


def _look_at(future: asyncio.Future[_Result]) -> None:
    # A failure that nobody waited for is not a warning of the event loop.
    if not future.cancelled():
        future.exception()


def _some(cidrs: Sequence[IPv4Network]) -> Sequence[IPv4Network]:
    if not cidrs:
        raise InvalidRequest(Cause.REQUEST_INVALID, "a VPC without CIDRs: every packet inside it would be translated")
    return cidrs
