"""The nftables table in the kernel, through libnftables (the official binding).

Slow beside big foreign rulesets (15 ms beside 5,000 services: the library reads them into its cache) and not
thread-safe: one worker thread owns one `Firewall`. The C call releases the interpreter lock. Nothing here is on a
pod's path.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from nftables import Nftables

from agent.datapath import schema
from agent.datapath.cooling import CoolingSet
from agent.datapath.hostports import HostPorts, install_text
from agent.datapath.policy import DatapathPolicy
from agent.errors import Cause, KernelFailed


class Firewall:
    """Keeps table `inet enoki` as it should be. Every method raises KernelFailed when nftables refuses."""

    def __init__(self, policy: DatapathPolicy, cooling: CoolingSet, host_ports: HostPorts) -> None:
        self._policy = policy
        self._cooling = cooling
        self._host_ports = host_ports
        self._context: Any = None
        self._text = ""
        self._vpc_cidrs: tuple[IPv4Network, ...] = ()
        self._eni_indexes: set[int] = set()

    def prepare(self, primary_ifname: str, primary_address: IPv4Address, vpc_cidrs: Sequence[IPv4Network]) -> None:
        """Install the table, or leave it alone when its schema is the right one and only swap the VPC's CIDRs."""
        self._text = schema.schema(primary_ifname, primary_address, self._policy)
        self._vpc_cidrs = tuple(vpc_cidrs)
        seen = self._seen()
        if seen is not None and seen.schema_hash == schema.schema_hash(self._text):
            self._apply("replacing the VPC's CIDRs", schema.set_vpc_cidrs(self._vpc_cidrs))
        else:
            self._eni_indexes |= frozenset() if seen is None else seen.eni_indexes
            self._install()

    def restore(self) -> None:
        """Install the table if somebody removed it. Nothing before the first `prepare`."""
        if self._text and self._seen() is None:
            self._install()

    def set_vpc_cidrs(self, cidrs: Sequence[IPv4Network]) -> None:
        self._vpc_cidrs = tuple(cidrs)
        self._apply("replacing the VPC's CIDRs", schema.set_vpc_cidrs(self._vpc_cidrs))

    def add_eni(self, index: int) -> None:
        self._apply(f"adding the chain of ENI {index}", schema.add_eni(index))
        self._eni_indexes.add(index)

    def delete_eni(self, index: int) -> None:
        """Success when it is not there."""
        self._eni_indexes.discard(index)
        seen = self._seen()
        if seen is not None and index in seen.eni_indexes:
            self._apply(f"deleting the chain of ENI {index}", schema.delete_eni(index))

    def _install(self) -> None:
        with self._cooling.frozen() as cooling, self._host_ports.frozen() as host_ports:
            text = schema.install(
                self._text, self._vpc_cidrs, cooling, sorted(self._eni_indexes), install_text(host_ports)
            )
            self._apply("installing the table", text)

    def _seen(self) -> schema.TableSeen | None:
        code, listing, _ = self._nft().cmd(schema.list_table())
        # The only error a listing of one table has is that there is none.
        return None if code else schema.parse_table(listing)

    def _apply(self, what: str, text: str) -> None:
        code, _, errors = self._nft().cmd(text)
        if code:
            first = errors.strip().partition("\n")[0] or f"libnftables returned {code}"
            raise KernelFailed(Cause.KERNEL_REFUSED, f"nftables: {what}: {first}", evidence={"commands": text[:500]})

    def _nft(self) -> Any:
        if self._context is None:
            self._context = Nftables()
            self._context.set_terse_output(val=True)
        return self._context
