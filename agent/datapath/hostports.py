"""Host ports: ports of the node that lead to ports of pods, as elements of two nftables maps.

No journal: the maps themselves say which pod address a port leads to, the pods table says who has that address, and an
element's comment names the owner for people. Only a pod that has host ports costs a write; it is one nfnetlink
transaction that makes the kernel's maps what they should be, so it repairs whatever else is wrong with them.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address
from typing import Final

from agent.datapath import layout
from agent.datapath.elements import Element, ElementSocket, add_elements, delete_elements
from agent.errors import Cause, TryAgain
from agent.ipam.model import Address, Holder
from agent.ports.datapath import PortMapping, Transport

_NUMBER: Final = {Transport.TCP: 6, Transport.UDP: 17, Transport.SCTP: 132}
_TRANSPORT: Final = {number: transport for transport, number in _NUMBER.items()}
"""IANA, Assigned Internet Protocol Numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPort:
    """A mapping with the pod it leads to. owner: for people, see `owner_of`."""

    mapping: PortMapping
    pod_address: IPv4Address
    owner: str

    @property
    def map_name(self) -> str:
        return layout.HOST_PORT_MAP if self.mapping.host_address is None else layout.HOST_PORT_IP_MAP

    def element(self) -> Element:
        mapping = self.mapping
        bound = b"" if mapping.host_address is None else mapping.host_address.packed
        return Element(
            key=bound + bytes((_NUMBER[mapping.transport], 0, 0, 0)) + _port(mapping.host_port),
            value=self.pod_address.packed + _port(mapping.container_port),
            comment=self.owner,
        )

    def text(self) -> str:
        """The element as nft(8) reads it."""
        mapping = self.mapping
        bound = "" if mapping.host_address is None else f"{mapping.host_address} . "
        key = f"{bound}{mapping.transport} . {mapping.host_port}"
        return f'{key} comment "{self.owner}" : {self.pod_address} . {mapping.container_port}'

    def conflicts_with(self, other: HostPort) -> bool:
        """Whether one packet could be meant for both. A port of every address is also a port of each."""
        mine, theirs = self.mapping, other.mapping
        return (mine.transport, mine.host_port) == (theirs.transport, theirs.host_port) and (
            mine.host_address is None or theirs.host_address is None or mine.host_address == theirs.host_address
        )

    def __str__(self) -> str:
        bound = self.mapping.host_address or "*"
        return f"{bound}:{self.mapping.host_port}/{self.mapping.transport}"


def owner_of(holder: Holder) -> str:
    """What the element's comment says: at most 127 bytes, no quote in it (CNI and Kubernetes names have none)."""
    words = ([f"{holder.namespace}/{holder.pod}"] if holder.pod else []) + [holder.key.container_id, holder.key.ifname]
    return " ".join(words).replace('"', "")[:127]


def host_port_of(element: Element) -> HostPort | None:
    """Read an element of either map back; None for what we never write."""
    bound, key = element.key[:-8], element.key[-8:]
    transport = _TRANSPORT.get(key[0]) if len(key) == 8 else None
    if transport is None or len(bound) not in (0, 4) or len(element.value) != 8:
        return None
    return HostPort(
        mapping=PortMapping(
            host_port=int.from_bytes(key[4:6], "big"),
            container_port=int.from_bytes(element.value[4:6], "big"),
            transport=transport,
            host_address=IPv4Address(bound) if bound else None,
        ),
        pod_address=IPv4Address(element.value[:4]),
        owner=element.comment,
    )


def _port(port: int) -> bytes:
    return port.to_bytes(2, "big") + b"\0\0"


def wanted_elements(host_ports: Collection[HostPort]) -> dict[str, dict[bytes, Element]]:
    """Every map and the hairpin set as they should be: name -> key -> element."""
    wanted: dict[str, dict[bytes, Element]] = {name: {} for name in layout.HOST_PORT_SETS}
    for each in host_ports:
        element = each.element()
        wanted[each.map_name][element.key] = element
        key = each.pod_address.packed * 2
        wanted[layout.HAIRPIN_SET][key] = Element(key=key)
    return wanted


def install_text(host_ports: Collection[HostPort]) -> str:
    """The same as commands of nft(8), for a table that is made anew."""
    table = f"{layout.NFT_FAMILY} {layout.NFT_TABLE}"
    lines = [f"add element {table} {each.map_name} {{ {each.text()} }}\n" for each in host_ports]
    pods = sorted({each.pod_address for each in host_ports})
    lines += [f"add element {table} {layout.HAIRPIN_SET} {{ {pod} . {pod} }}\n" for pod in pods]
    return "".join(lines)


class HostPorts:
    """The maps in the kernel, beginning with what an earlier agent left in them. Thread-safe: one socket, one lock.
    Blocking, but for `of`.

    Raises, everywhere: NetlinkRefused, ENOENT while there is no table; OSError.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket = ElementSocket()
        self._loaded = False
        self._held: dict[IPv4Address, tuple[HostPort, ...]] = {}

    def claim(self, holder: Holder, addresses: Sequence[Address], mappings: Sequence[PortMapping]) -> bool:
        """Let the node's ports lead to the holder's IPv4 address, and no others; whether anything changed.

        Raises: TryAgain(host_port_taken): another pod has one of them. Nothing has changed then.
        """
        pod_address = next((address for address in addresses if isinstance(address, IPv4Address)), None)
        if pod_address is None:
            return False
        with self._opened():
            before = self._held.get(pod_address, ())
            owner = owner_of(holder)
            wanted = tuple(HostPort(mapping=each, pod_address=pod_address, owner=owner) for each in mappings)
            if wanted == before:
                return False
            self._refuse_conflict(wanted, pod_address)
            self._hold(pod_address, wanted)
            try:
                self._sync()
            except BaseException:
                self._hold(pod_address, before)
                raise
            return True

    def release(self, addresses: Sequence[Address]) -> None:
        """Give up the ports of these pods."""
        with self._opened():
            held = {
                each: self._held.pop(each) for each in addresses if isinstance(each, IPv4Address) and each in self._held
            }
            if not held:
                return
            try:
                self._sync()
            except BaseException:
                self._held.update(held)
                raise

    def keep_only(self, addresses: Collection[Address]) -> tuple[HostPort, ...]:
        """Give up the ports of pods that have none of these addresses; which those were."""
        with self._opened():
            gone = tuple(one for address, ports in self._held.items() if address not in addresses for one in ports)
            self._held = {address: ports for address, ports in self._held.items() if address in addresses}
            if gone:
                self._sync()
            return gone

    def of(self, addresses: Sequence[Address]) -> tuple[HostPort, ...]:
        """What these pods have, as far as it is known yet: it asks nobody."""
        return tuple(one for each in addresses if isinstance(each, IPv4Address) for one in self._held.get(each, ()))

    def may_have(self, addresses: Sequence[Address]) -> bool:
        """Whether a release has anything to do: True as long as it is not known what an earlier agent left."""
        return not self._loaded or bool(self.of(addresses))

    def difference(self, addresses: Sequence[Address], mappings: Sequence[PortMapping]) -> str | None:
        """The first of `mappings` that does not lead to the pod in the kernel."""
        pod_address = next((address for address in addresses if isinstance(address, IPv4Address)), None)
        if pod_address is None or not mappings:
            return None
        with self._lock:
            seen = {(name, each.key): each.value for name in layout.HOST_PORT_SETS for each in self._socket.read(name)}
        for name, elements in wanted_elements(
            [HostPort(mapping=each, pod_address=pod_address, owner="") for each in mappings]
        ).items():
            for key, element in elements.items():
                if seen.get((name, key)) != element.value:
                    return f"map {name} lacks an element for {pod_address}"
        return None

    def heal(self) -> int:
        """Make the kernel's maps what they should be; the number of elements that were not."""
        with self._opened():
            return self._sync()

    @contextmanager
    def frozen(self) -> Iterator[tuple[HostPort, ...]]:
        """Everything held, while nobody can change it: for replacing the table around it."""
        with self._opened():
            yield self._all()

    def close(self) -> None:
        with self._lock:
            self._socket.close()

    @contextmanager
    def _opened(self) -> Iterator[None]:
        with self._lock:
            if not self._loaded:
                for name in (layout.HOST_PORT_MAP, layout.HOST_PORT_IP_MAP):
                    for element in self._socket.read(name):
                        found = host_port_of(element)
                        if found is not None:
                            self._held[found.pod_address] = (*self._held.get(found.pod_address, ()), found)
                self._loaded = True
            yield

    def _all(self) -> tuple[HostPort, ...]:
        return tuple(one for ports in self._held.values() for one in ports)

    def _hold(self, pod_address: IPv4Address, host_ports: tuple[HostPort, ...]) -> None:
        self._held.pop(pod_address, None)
        if host_ports:
            self._held[pod_address] = host_ports

    def _refuse_conflict(self, wanted: Sequence[HostPort], pod_address: IPv4Address) -> None:
        for held in self._all():
            for one in wanted:
                if held.pod_address != pod_address and one.conflicts_with(held):
                    raise TryAgain(
                        Cause.HOST_PORT_TAKEN,
                        f"host port {one} belongs to {held.owner or held.pod_address}",
                        evidence={"host_port": str(held), "owner": held.owner, "address": str(held.pod_address)},
                        remedy="give one of the two pods another hostPort, or keep them on different nodes",
                    )

    def _sync(self) -> int:
        count = 0
        deletions: list[bytes] = []
        additions: list[bytes] = []
        for name, wanted in wanted_elements(self._all()).items():
            seen = {each.key: replace(each, timeout_ms=None, expires_ms=None) for each in self._socket.read(name)}
            stale = [key for key, element in seen.items() if wanted.get(key) != element]
            missing = [element for key, element in wanted.items() if seen.get(key) != element]
            deletions += [delete_elements(name, stale)] if stale else []
            additions += [add_elements(name, missing)] if missing else []
            count += len({*stale, *(element.key for element in missing)})
        if deletions or additions:
            self._socket.commit([*deletions, *additions])
        return count
