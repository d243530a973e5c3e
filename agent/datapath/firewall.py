"""The nftables table in the kernel, through libnftables (the official binding).

Slow beside big foreign rulesets (15 ms beside 5,000 services: the library reads them into its cache) and not
thread-safe: one worker thread owns one `Firewall`. The C call releases the interpreter lock. Nothing here is on a
pod's path.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from nftables import Nftables

from agent.datapath import schema
from agent.datapath.cooling import CoolingSet
from agent.datapath.hostports import HostPorts, install_text
from agent.datapath.policy import DatapathPolicy
from agent.errors import Cause, KernelFailed

MISSING: Final = "it is missing"


class Firewall:
    """Keeps table `inet enoki` as it should be. Every method raises KernelFailed when nftables refuses."""

    def __init__(self, policy: DatapathPolicy, cooling: CoolingSet, host_ports: HostPorts) -> None:
        self._policy = policy
        self._cooling = cooling
        self._host_ports = host_ports
        self._context: Any = None
        self._primary_ifname = ""
        self._primary_address = IPv4Address(0)
        self._text = ""
        self._expected = ""
        self._vpc_cidrs: tuple[IPv4Network, ...] = ()
        self._eni_indexes: set[int] = set()

    def prepare(self, primary_ifname: str, primary_address: IPv4Address, vpc_cidrs: Sequence[IPv4Network]) -> None:
        """Install the table, or leave it alone when its schema is the right one and only swap the VPC's CIDRs."""
        self._primary_ifname, self._primary_address = primary_ifname, primary_address
        self._text = schema.schema(primary_ifname, primary_address, self._policy)
        self._vpc_cidrs = tuple(vpc_cidrs)
        if self._nft().cmd(schema.list_aside())[0] == 0:
            for step in schema.delete_aside():
                self._apply("removing what a killed agent left", step)
        seen = self._seen()
        if (
            seen is not None
            and seen.schema_hash == schema.schema_hash(self._text)
            and seen.rule_counts == schema.rule_counts(self._text)
        ):
            self._eni_indexes |= seen.eni_indexes
            self._change("replacing the VPC's CIDRs", schema.set_vpc_cidrs(self._vpc_cidrs))
        else:
            self._eni_indexes |= frozenset() if seen is None else seen.eni_indexes
            self._install()

    def heal(self, primary_ifname: str | None) -> str | None:
        """Install the table anew when it is not as this agent left it; what was found, or None.

        primary_ifname: the name of the primary ENI's link now; None when there is none.
        Nothing before the first `prepare`.
        """
        if not self._text:
            return None
        if primary_ifname not in (None, self._primary_ifname):
            found: str | None = f"the primary ENI's link is {primary_ifname} now"
            self._primary_ifname = primary_ifname or ""
            self._text = schema.schema(self._primary_ifname, self._primary_address, self._policy)
        else:
            found = self._difference()
        if found is not None:
            self._install()
        return found

    def restore(self) -> bool:
        """Install the table if somebody removed it; whether that was so. Nothing before the first `prepare`."""
        removed = bool(self._text) and self._listing() is None
        if removed:
            self._install()
        return removed

    def set_vpc_cidrs(self, cidrs: Sequence[IPv4Network]) -> None:
        self._vpc_cidrs = tuple(cidrs)
        self._change("replacing the VPC's CIDRs", schema.set_vpc_cidrs(self._vpc_cidrs))

    def add_eni(self, index: int) -> None:
        self._change(f"adding the chain of ENI {index}", schema.add_eni(index))
        self._eni_indexes.add(index)

    def delete_eni(self, index: int) -> None:
        """Success when it is not there."""
        self._eni_indexes.discard(index)
        seen = self._seen()
        if seen is not None and index in seen.eni_indexes:
            self._change(f"deleting the chain of ENI {index}", schema.delete_eni(index))

    def _install(self) -> None:
        with self._cooling.frozen() as cooling, self._host_ports.frozen() as host_ports:
            text = schema.install(
                self._text, self._vpc_cidrs, cooling, sorted(self._eni_indexes), install_text(host_ports)
            )
            steps = schema.in_two(text) if self._listing() is None else schema.replacement(text)
            for step in steps:
                self._change("installing the table", step)

    def _difference(self) -> str | None:
        listing = self._listing()
        if listing is None:
            return MISSING
        now = schema.stable(listing)
        if now == self._expected:
            return None
        missing = [line.strip() for line in self._expected.splitlines() if line not in now.splitlines()]
        added = [line.strip() for line in now.splitlines() if line not in self._expected.splitlines()]
        return f"it lacks {missing[0]!r}" if missing else f"it has {added[0]!r}" if added else "its order is another"

    def _seen(self) -> schema.TableSeen | None:
        listing = self._listing()
        return None if listing is None else schema.parse_table(listing)

    def _listing(self) -> str | None:
        code, listing, _ = self._nft().cmd(schema.list_table())
        # The only error a listing of one table has is that there is none.
        return None if code else str(listing)

    def _change(self, what: str, text: str) -> None:
        """Apply, and remember what the table looks like then."""
        self._apply(what, text)
        self._expected = schema.stable(self._listing() or "")

    def _apply(self, what: str, text: str) -> None:
        code, _, errors = self._nft().cmd(text)
        if code:
            first = errors.strip().partition("\n")[0] or f"libnftables returned {code}"
            raise KernelFailed(Cause.KERNEL_REFUSED, f"nftables: {what}: {first}", evidence={"commands": text[:500]})

    def _nft(self) -> Any:
        if self._context is None:
            self._context = Nftables()
            self._context.set_stateless_output(val=True)
        return self._context
