"""A node's kernel in memory: links come and go with the model's ENIs, and pods hold what was wired for them.

It takes no time, and watches over two rules: two pods never have the same address, and EC2 never gets one back that a
pod has or had a moment ago. A breach is an AssertionError, which ends the bench.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from agent.errors import Cause, KernelFailed
from agent.ipam.model import Address, AttachmentKey, Eni, Holder, Instance, Mac
from agent.ports.datapath import AttachmentSeen, CoolingSeen, KernelSeen, PodWiring, Wired
from sim.model.records import AddressesChanged, Change, EniAttached, EniDetached
from sim.model.vpc import Vpc

_POD_MAC = Mac("02:00:00:00:00:02")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Veth:
    holder: Holder
    addresses: tuple[Address, ...]
    ifindex: int


class MemoryKernel:
    """Implements `agent.ports.datapath.Datapath` for one instance of a simulated VPC."""

    def __init__(self, vpc: Vpc, instance_id: str, *, clock: Callable[[], float]) -> None:
        self._vpc = vpc
        self._instance_id = instance_id
        self._clock = clock
        self._links: dict[str, asyncio.Event] = {}
        self._veths: dict[AttachmentKey, _Veth] = {}
        self._cooling_until_s: dict[IPv4Address, float] = {}
        self._ifindex = 0
        for eni in vpc.state.enis_of(instance_id):
            self._link(eni.mac).set()
        vpc.subscribe(self._changed)

    async def prepare_node(self, _instance: Instance) -> None:
        """Nothing to prepare."""

    async def set_vpc_cidrs(self, _cidrs: Sequence[IPv4Network]) -> None:
        """Packets are not simulated."""

    async def count_leaving(self) -> int:
        """As on a node whose pods stay inside the VPC."""
        return 0

    async def wait_for_eni_link(self, mac: Mac, timeout_s: float) -> None:
        """See `Datapath.wait_for_eni_link`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._link(mac).wait()
        except TimeoutError:
            raise KernelFailed(Cause.ENI_LINK_MISSING, f"no link {mac} after {timeout_s:g} s") from None

    async def ensure_eni(self, eni: Eni) -> int:
        """See `Datapath.ensure_eni`."""
        assert self._link(eni.mac).is_set(), f"{eni.eni_id} is set up without a link"
        return 254 if eni.is_primary else eni.device + 1

    async def forget_eni(self, _eni: Eni) -> None:
        """Routes and rules are not simulated."""

    async def wire(self, wiring: PodWiring) -> Wired:
        """See `Datapath.wire`."""
        for veth in self._veths.values():
            shared = set(veth.addresses) & set(wiring.addresses)
            assert not shared or veth.holder.key == wiring.holder.key, f"{shared} given to two pods"
        self._ifindex += 1
        self._veths[wiring.holder.key] = _Veth(holder=wiring.holder, addresses=wiring.addresses, ifindex=self._ifindex)
        self._check_addresses()
        return Wired(host_ifname=f"eni{self._ifindex:011x}", host_mac=_POD_MAC, pod_mac=_POD_MAC)

    async def unwire(self, key: AttachmentKey, addresses: Sequence[Address], cooldown_s: float) -> None:
        """See `Datapath.unwire`."""
        if self._veths.pop(key, None) is not None:
            until_s = self._clock() + cooldown_s
            self._cooling_until_s |= {each: until_s for each in addresses if isinstance(each, IPv4Address)}

    async def check(self, _wiring: PodWiring) -> None:
        """Nothing drifts here."""

    async def observe(self) -> KernelSeen:
        """See `Datapath.observe`."""
        now_s = self._clock()
        return KernelSeen(
            attachments=tuple(
                AttachmentSeen(
                    holder=veth.holder,
                    host_ifname=f"eni{veth.ifindex:011x}",
                    host_ifindex=veth.ifindex,
                    addresses=veth.addresses,
                )
                for veth in self._veths.values()
            ),
            cooling=tuple(
                CoolingSeen(address=address, remaining_s=until_s - now_s)
                for address, until_s in self._cooling_until_s.items()
                if until_s > now_s
            ),
        )

    async def discard_link(self, _host_ifname: str) -> None:
        """Nothing is torn here."""

    def subscribe(self, _wake: Callable[[], None]) -> None:
        """No veth disappears by itself here."""

    async def run(self) -> None:
        """No monitor is needed."""

    def _link(self, mac: str) -> asyncio.Event:
        """Set while the ENI's link is in the node's namespace."""
        return self._links.setdefault(mac, asyncio.Event())

    def _changed(self, change: Change) -> None:
        match change:
            case EniAttached(instance_id=self._instance_id):
                self._link(self._vpc.state.enis[change.eni_id].mac).set()
            case EniDetached(instance_id=self._instance_id):
                self._link(self._vpc.state.enis[change.eni_id].mac).clear()
                self._check_addresses()
            case AddressesChanged():
                self._check_addresses()
            case _:
                pass

    def _check_addresses(self) -> None:
        enis = self._vpc.state.enis_of(self._instance_id)
        listed = {address for eni in enis for address in eni.secondary_addresses}
        listed |= {address for eni in enis for prefix in eni.ipv4_prefixes for address in prefix}
        used = {address for veth in self._veths.values() for address in veth.addresses}
        used |= {address for address, until_s in self._cooling_until_s.items() if until_s > self._clock()}
        assert used <= listed, f"EC2 has {used - listed} back, which pods use or used a moment ago"
