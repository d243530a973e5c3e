"""`KernelDatapath`: the async face of the datapath. Blocking work runs in the threads of `threads.py`; the event loop
never waits for a lock in the kernel.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import ParamSpec, TypeVar

from agent.datapath import compare, conntrack, enis, leaving, names, pods, released, seen, shaping, sysctls, trace
from agent.datapath.cooling import CoolingSet
from agent.datapath.damping import Damping
from agent.datapath.desired import (
    EniPlan,
    HostSide,
    PodPlan,
    describe_wiring,
    eni_table_id,
    holder_of,
    host_side,
    mac_of,
    node_rules,
    plan_eni,
    plan_pod,
)
from agent.datapath.firewall import Firewall
from agent.datapath.healing import Healer, Turn, heal_node
from agent.datapath.hostports import HostPorts
from agent.datapath.memory import HostMemory
from agent.datapath.messages import LinkSeen
from agent.datapath.monitor import Monitor
from agent.datapath.netlink import NetlinkSocket
from agent.datapath.policy import DatapathPolicy
from agent.datapath.releases import Releases
from agent.datapath.threads import DEADLINE_S, KernelThreads
from agent.errors import Cause, InvalidRequest, KernelFailed
from agent.ipam.model import Address, AttachmentKey, Eni, Instance, Mac
from agent.ports.datapath import (
    AttachmentSeen,
    CoolingSeen,
    KernelSeen,
    PathSeen,
    PodWiring,
    PortMapping,
    Repair,
    Transport,
    Wired,
)
from agent.surveyed import KernelFacts

_log = logging.getLogger(__name__)

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


class KernelDatapath:
    """The kernel of the network namespace this process runs in. Implements `agent.ports.datapath.Datapath`.

    One event loop. `run` must be running for `wait_for_eni_link`, for subscribers, and for released links to be
    deleted.
    """

    def __init__(self, policy: DatapathPolicy) -> None:
        self._policy = policy
        sysctls.use(policy.sysctl_directory)
        self._ifindexes = pods.HostIfindexes()
        self._memory = HostMemory(policy.eni_mtu)
        self._cooling = CoolingSet()
        self._host_ports = HostPorts()
        self._firewall = Firewall(policy, self._cooling, self._host_ports)
        self._healer = Healer(self._heal_node, self._heal_table, self._heal_ports)
        self._monitor = Monitor(
            self._memory,
            node_changed=self._healer.wake_node,
            table_changed=self._healer.wake_table,
            ports_changed=self._healer.wake_ports,
        )
        self._found_earlier = False
        self._threads = KernelThreads()
        self._releases = Releases(self._threads, self._enter_cooling)

    async def prepare_node(self, instance: Instance) -> None:
        if self._policy.names_directory is not None:
            await self._threads.netlink("installing names", names.install_names, self._policy.names_directory)
        primary_ifname = await self._threads.with_route(
            "preparing the node", enis.prepare_node, instance.primary_mac, self._policy
        )
        await self._threads.nftables(
            "preparing the table",
            self._firewall.prepare,
            primary_ifname,
            instance.primary_address,
            _some(instance.vpc_cidrs),
        )
        self._memory.prepared(instance.primary_mac, node_rules(self._policy, ipv6=sysctls.has_ipv6()))
        # An earlier agent may have been killed before it swept.
        self._releases.wake()

    async def set_vpc_cidrs(self, cidrs: Sequence[IPv4Network]) -> None:
        """Raises: KernelFailed; InvalidRequest for no CIDR at all, which would translate every packet inside the
        VPC."""
        await self._threads.nftables("replacing the VPC's CIDRs", self._firewall.set_vpc_cidrs, _some(cidrs))

    async def count_leaving(self) -> int:
        return await self._threads.netlink("counting connections", leaving.count_leaving)

    async def wait_for_eni_link(self, mac: Mac, timeout_s: float) -> None:
        with self._monitor.expecting(mac) as changed:
            try:
                async with asyncio.timeout(timeout_s):
                    while await self._threads.with_route("looking for an ENI", seen.link_with_mac, mac) is None:
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
            await self._threads.with_route(
                "preparing the primary ENI", enis.prepare_primary, eni.mac, self._policy.eni_mtu
            )
            return eni_table_id(eni)
        plan = plan_eni(eni)
        await self._threads.with_route(f"preparing {eni.eni_id}", enis.ensure_eni, plan, self._policy.eni_mtu)
        await self._threads.nftables(f"preparing {eni.eni_id}", self._firewall.add_eni, plan.index)
        self._memory.eni(plan)
        return plan.table_id

    async def forget_eni(self, eni: Eni) -> None:
        if eni.is_primary:
            return
        plan = plan_eni(eni)
        await self._threads.with_route(f"forgetting {eni.eni_id}", self._forget_eni, plan)
        await self._threads.nftables(f"forgetting {eni.eni_id}", self._firewall.delete_eni, plan.index)

    async def wire(self, wiring: PodWiring) -> Wired:
        plan = plan_pod(wiring, self._policy)
        what = f"wiring {plan.host_ifname}"
        # Ports before the route: the route commits, and the next start drops a port whose pod has no route.
        claimed = await self._claim_ports(what, wiring)
        try:
            key, expires_at_s = wiring.holder.key, time.monotonic() + DEADLINE_S
            await self._threads.with_route(what, self._wire, key, plan, expires_at_s)
        except BaseException:
            if claimed:
                await self._with_table(f"undoing {what}", self._host_ports.release, wiring.addresses)
            raise
        return describe_wiring(wiring, self._policy)

    async def unwire(self, key: AttachmentKey, addresses: Sequence[Address], cooldown_s: float) -> None:
        # An agent killed between two steps must not leave an address that looks free: not to a host port that leads to
        # it, and not fresh.
        if self._host_ports.may_have(addresses):
            await self._with_table(f"releasing the host ports of {key}", self._host_ports.release, addresses)
        own = [address for address in addresses if isinstance(address, IPv4Address)]
        until_s = released.uptime_s() + cooldown_s if cooldown_s > 0 else None
        await self._threads.with_route(f"releasing {key}", self._unwire, key, addresses, own, until_s)
        # Last, when no packet can make a new connection.
        await self._releases.released(str(key), own, until_s)

    async def check(self, wiring: PodWiring) -> None:
        plan = plan_pod(wiring, self._policy)
        await self._threads.with_route(f"checking {plan.host_ifname}", compare.check, plan)
        what = f"checking the host ports of {plan.host_ifname}"
        found = await self._threads.netlink(what, self._host_ports.difference, wiring.addresses, wiring.port_mappings)
        if found is not None:
            raise compare.drifted(plan.host_ifname, found)

    async def observe(self) -> KernelSeen:
        attachments, on_the_way = await self._threads.with_route("observing", self._observe)
        entered = await self._threads.netlink("observing", self._cooling.read)
        observed = KernelSeen(attachments=attachments, cooling=(*entered, *_not_in(entered, on_the_way)))
        if not self._found_earlier:
            self._releases.found(observed.cooling, on_the_way)
            await self._drop_orphaned_ports(observed)
            self._found_earlier = True
        return observed

    async def discard_link(self, host_ifname: str) -> None:
        await self._threads.with_route(f"deleting {host_ifname}", pods.discard, host_ifname)

    async def trace(self, host_ifname: str, source: Address, destination: Address) -> PathSeen:
        """The path of the first packet of a connection that comes in by `host_ifname`; none is sent.

        Raises: InvalidRequest(attachment_missing) when there is no such link; KernelFailed.
        """
        what = f"tracing {source} to {destination}"
        table = await self._threads.nftables(what, trace.read_table)
        return await self._threads.with_route(what, trace.trace, table, host_ifname, source, destination)

    async def survey(self) -> KernelFacts:
        """Everything `/v1/doctor` looks at. Reads only."""
        # Rarely asked for, so that its import waits until then.
        from agent.datapath import survey  # noqa: PLC0415

        found = await self._threads.nftables("surveying the tables", survey.survey_nftables)
        return await self._threads.with_route("surveying the kernel", survey.survey, found)

    def subscribe(self, wake: Callable[[], None]) -> None:
        self._monitor.subscribe(wake)

    def subscribe_repairs(self, told: Callable[[Repair], None]) -> None:
        """Have `told` called, on the event loop, with everything of ours that was put right."""
        self._healer.subscribe(told)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._monitor.run(), name="link monitor")
            group.create_task(self._healer.run(), name="healing")
            group.create_task(self._releases.run(), name="releases")

    def close(self) -> None:
        """Wait for the threads, close the sockets. After `run` has been cancelled."""
        self._threads.close()
        self._monitor.close()
        self._cooling.close()
        self._host_ports.close()

    # What changes both the kernel and the memory runs in a netlink thread: the event loop waits for no lock. A repair
    # does not come between where the lock is held.

    def _wire(self, route: NetlinkSocket, key: AttachmentKey, plan: PodPlan, expires_at_s: float) -> None:
        ifindex = pods.wire(route, plan, self._ifindexes, expires_at_s)
        self._memory.pod(host_side(key, plan, ifindex))

    def _forget_eni(self, route: NetlinkSocket, plan: EniPlan) -> None:
        with self._memory.lock:
            self._memory.forget_eni(plan)
            enis.forget_eni(route, plan)

    def _unwire(
        self,
        route: NetlinkSocket,
        key: AttachmentKey,
        addresses: Sequence[Address],
        own: Sequence[IPv4Address],
        until_s: float | None,
    ) -> None:
        with self._memory.lock:
            if until_s is not None:
                released.put(route, own, until_s)
            pods.unwire(route, key, addresses, self._memory.forget_pod(key))

    def _observe(self, route: NetlinkSocket) -> tuple[tuple[AttachmentSeen, ...], Mapping[IPv4Address, int]]:
        with self._memory.lock:
            found = [(link, self._held_through(link, routed)) for link, routed in seen.pods(route)]
            unknown = [one for one in found if self._memory.side_of(one[0].ifindex) is None]
            self._memory.adopt(self._sides(route, unknown))
            # Before the set is read: what leaves this table is in that set already.
            on_the_way = released.read(route)
            attachments = tuple(seen.attachment(link, self._alias(link), addresses) for link, addresses in found)
            return attachments, on_the_way

    def _alias(self, link: LinkSeen) -> str:
        side = self._memory.side_of(link.ifindex)
        return link.alias if side is None else side.alias

    def _held_through(self, link: LinkSeen, routed: tuple[Address, ...]) -> tuple[Address, ...]:
        # A route that somebody removed a moment ago is about to come back: its pod has not vanished.
        side = self._memory.side_of(link.ifindex)
        return routed or (() if side is None else side.addresses)

    def _sides(self, route: NetlinkSocket, found: Sequence[tuple[LinkSeen, tuple[Address, ...]]]) -> Iterator[HostSide]:
        """What an earlier agent wired, as it is: name, MTU and limits are its settings; the rest follows from the
        alias."""
        buckets = shaping.buckets(route) if found else {}
        for link, addresses in found:
            holder = holder_of(link.alias)
            if holder is not None and addresses:
                macs = seen.macs_of_adopted(route, link) or (mac_of(holder.key, "host"), mac_of(holder.key, "pod"))
                yield HostSide(
                    key=holder.key,
                    ifindex=link.ifindex,
                    ifname=link.ifname,
                    alias=link.alias,
                    group=link.group,
                    mac=macs[0],
                    pod_mac=macs[1],
                    mtu=link.mtu,
                    addresses=addresses,
                    host_ports=bool(self._host_ports.of(addresses)),
                    to_pod=buckets.get(link.ifindex),
                )

    async def _heal_node(self, damping: Damping) -> Turn:
        return await self._threads.with_route("healing the node", heal_node, self._memory, damping)

    async def _heal_table(self) -> str | None:
        primary = await self._threads.with_route("looking for the primary ENI", self._primary_ifname)
        return await self._threads.nftables("healing the table", self._firewall.heal, primary)

    async def _heal_ports(self) -> str | None:
        try:
            count = await self._threads.netlink("healing the host ports", self._host_ports.heal)
        except KernelFailed as exc:
            if not _is_missing(exc):
                raise
            # The table comes back with them.
            self._healer.wake_table()
            return None
        return f"{count} elements were missing, or not ours" if count else None

    def _primary_ifname(self, route: NetlinkSocket) -> str | None:
        link = seen.link_with_mac(route, self._memory.primary_mac)
        return None if link is None else link.ifname

    async def _drop_orphaned_ports(self, observed: KernelSeen) -> None:
        """What an earlier agent claimed for pods that are gone. From then on every release drops its own."""
        held = {address for each in observed.attachments for address in each.addresses}
        for port in await self._with_table("dropping orphaned host ports", self._host_ports.keep_only, held):
            _log.info("dropped the host port %s of %s, which is gone", port, port.owner)

    async def _enter_cooling(self, cooldowns_s: Mapping[IPv4Address, float]) -> None:
        await self._with_table("cooling released addresses", self._cooling.put, cooldowns_s)

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
            await self._threads.with_route(f"stale datagrams of {what}", _forget_datagrams, udp)
        return True

    async def _with_table(
        self, what: str, function: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> _Result:
        """Run `function`, which writes into our table, in a netlink thread.

        Somebody may have flushed the ruleset: a DEL must not fail for that, and the pods want their table back anyway.
        """
        try:
            return await self._threads.netlink(what, function, *args, **kwargs)
        except KernelFailed as exc:
            if not _is_missing(exc):
                raise
        if await self._threads.nftables("restoring the table", self._firewall.restore):
            self._healer.restored_table()
        return await self._threads.netlink(what, function, *args, **kwargs)


def _not_in(entered: Sequence[CoolingSeen], on_the_way: Mapping[IPv4Address, int]) -> Iterator[CoolingSeen]:
    known, now_s = {each.address for each in entered}, released.uptime_s()
    for address, ends_s in on_the_way.items():
        if address not in known and ends_s > now_s:
            yield CoolingSeen(address=address, remaining_s=ends_s - now_s)


def _forget_datagrams(route: NetlinkSocket, mappings: Sequence[PortMapping]) -> None:
    local = seen.node_addresses(route)
    for each in mappings:
        addresses = local if each.host_address is None else (each.host_address,)
        conntrack.forget(conntrack.to_udp_port(each.host_port, addresses))


def _is_missing(exc: KernelFailed) -> bool:
    return exc.evidence.get("errno") == errno.errorcode[errno.ENOENT]


def _some(cidrs: Sequence[IPv4Network]) -> Sequence[IPv4Network]:
    if not cidrs:
        raise InvalidRequest(Cause.REQUEST_INVALID, "a VPC without CIDRs: every packet inside it would be translated")
    return cidrs
