"""Who holds what: the attachments of this node and the cooldown of what they let go.

The ledger is a cache of two truths, EC2's list of addresses (its `inventory`) and the kernel's list of attachments. It
is rebuilt at every start and never written down. It is synchronous and has no clock, so that no other task can
see a half-made change: times are seconds on the agent's monotonic clock, passed in as `now_s`.

The states of an address and their order are in `lifecycle`.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace

from agent.ipam.inventory import Entry, Inventory
from agent.ipam.lifecycle import AddressEvent
from agent.ipam.model import (
    Address,
    AddressState,
    AddressView,
    Attachment,
    AttachmentKey,
    Eni,
    EniId,
    EniUsage,
    Finding,
    FindingKind,
    Holder,
    Reservation,
)
from agent.ipam.placement import PlacementPolicy

DENSEST = PlacementPolicy()


class Ledger:
    """Every attachment of this node, and through `inventory` every address and ENI.

    An attachment exists from its reservation on, before its pod is wired, until `release`.
    """

    def __init__(self, policy: PlacementPolicy = DENSEST) -> None:
        self.inventory = Inventory(policy)
        self._attachments: dict[AttachmentKey, Attachment] = {}
        self._pods: dict[tuple[str, str, str], dict[AttachmentKey, None]] = {}
        self._cooling: list[tuple[float, int, Entry]] = []
        self._order = 0

    # ---- attachments

    def reserve(self, holder: Holder, now_s: float) -> Attachment | None:
        """Give `holder` an address; the one it has when its key holds one already. None: nothing usable is free.

        Only an address which EC2 listed last time, on an ENI which is set up, is handed out.
        """
        existing = self._attachments.get(holder.key)
        if existing is not None:
            return existing
        entry = self.inventory.next_free()
        if entry is None:
            return None
        entry.holders = (holder,)
        self.inventory.move(entry, AddressEvent.HOLD, now_s)
        return self._attach(Attachment(holder=holder, addresses=(entry.address,), eni_id=entry.eni_id, since_s=now_s))

    def reservation(self, key: AttachmentKey) -> Reservation | None:
        """What wiring an attachment takes; None when the key is unknown, or while its ENI is unknown or not set up."""
        attachment = self._attachments.get(key)
        table_id = self.table_id(attachment.eni_id) if attachment and attachment.eni_id else None
        if attachment is None or attachment.eni_id is None or table_id is None:
            return None
        return Reservation(addresses=attachment.addresses, eni_id=attachment.eni_id, table_id=table_id)

    def release(self, key: AttachmentKey, *, now_s: float, cooldown_s: float) -> tuple[Address, ...]:
        """End an attachment; its addresses cool for `cooldown_s`. Returns those: none for an unknown key.

        An address which another attachment claims too stays with that one and is not returned.
        """
        attachment = self._attachments.pop(key, None)
        if attachment is None:
            return ()
        pod = _pod_of(attachment.holder)
        self._pods[pod].pop(key)
        if not self._pods[pod]:
            del self._pods[pod]
        released: list[Address] = []
        for address in attachment.addresses:
            entry = self._entry(address)
            left = tuple(holder for holder in entry.holders if holder.key != key)
            if not left:
                # Before its holder is forgotten: whoever listens is told who let it go.
                self.inventory.move(entry, AddressEvent.RELEASE, now_s)
                self._cool_until(entry, now_s + cooldown_s)
                released.append(address)
            entry.holders = left
        return tuple(released)

    def adopt(self, holder: Holder, addresses: Sequence[Address], now_s: float) -> tuple[Finding, ...]:
        """Enter an attachment found in the kernel. Its key must be new; `addresses` must not be empty.

        An address EC2 does not list, or which another attachment has, is quarantined, and a finding says so.
        """
        if holder.key in self._attachments or not addresses:
            raise ValueError(f"cannot adopt {holder} with {len(addresses)} addresses")
        findings: list[Finding] = []
        for address in addresses:
            entry = self.inventory.entry(address)
            if entry is None:
                self.inventory.adopt(address, holder, now_s)
                findings.append(_unlisted(address, holder))
            elif entry.holders:
                findings.append(_held_twice(entry, holder))
                entry.holders = (*entry.holders, holder)
                self.inventory.move(entry, AddressEvent.CLASH, now_s)
            else:
                entry.holders = (holder,)
                self.inventory.move(entry, AddressEvent.HOLD, now_s)
        eni_id = self._entry(addresses[0]).eni_id
        self._attach(Attachment(holder=holder, addresses=tuple(addresses), eni_id=eni_id, since_s=now_s))
        return tuple(findings)

    def attachment(self, key: AttachmentKey) -> Attachment | None:
        return self._attachments.get(key)

    def attachments(self) -> tuple[Attachment, ...]:
        """All of them, oldest first."""
        return tuple(self._attachments.values())

    def at_address(self, address: Address) -> tuple[Attachment, ...]:
        """Who holds an address: nobody or one; two when it is quarantined for that reason."""
        entry = self.inventory.entry(address)
        return () if entry is None else tuple(self._attachments[holder.key] for holder in entry.holders)

    def of_pod(self, namespace: str, pod: str, ifname: str) -> tuple[Attachment, ...]:
        """Attachments of a pod's interface, oldest first; several while a newer ADD supersedes an older one.

        An empty pod name means "unnamed" and matches nothing: unnamed callers never supersede each other.
        """
        keys = self._pods.get((namespace, pod, ifname), {}) if pod else {}
        return tuple(self._attachments[key] for key in keys)

    # ---- ENIs

    def observe_enis(self, enis: Sequence[Eni], now_s: float) -> tuple[Finding, ...]:
        """Reconcile with a describe of all ENIs of this instance: see `Inventory.observe`."""
        findings = self.inventory.observe(enis, now_s)
        for key, attachment in self._attachments.items():
            if attachment.eni_id is None:
                self._attachments[key] = replace(attachment, eni_id=self._entry(attachment.addresses[0]).eni_id)
        return findings

    def enis(self) -> tuple[EniUsage, ...]:
        """Every ENI of the instance and its use, by card and device."""
        return self.inventory.enis()

    def table_id(self, eni_id: EniId) -> int | None:
        """The ENI's routing table; None while it is not set up, or is unknown."""
        return self.inventory.table_id(eni_id)

    def addresses(self) -> tuple[AddressView, ...]:
        """Every address as the API shows it, IPv4 first, ascending."""
        entries = sorted(self.inventory.entries(), key=lambda entry: (entry.address.version, int(entry.address)))
        return tuple(
            AddressView(
                address=entry.address,
                state=entry.state,
                eni_id=entry.eni_id,
                listed=entry.listed,
                since_s=entry.since_s,
                holders=entry.holders,
            )
            for entry in entries
            if entry.state is not None
        )

    # ---- cooldown

    def rest(self, address: Address, *, until_s: float, now_s: float) -> None:
        """Let a free address cool until `until_s`, as the kernel's cooldown set says. Unknown or in use: nothing."""
        entry = self.inventory.entry(address)
        if entry is not None and entry.state is AddressState.FREE:
            self.inventory.move(entry, AddressEvent.REST, now_s)
            self._cool_until(entry, until_s)

    def cool(self, now_s: float) -> tuple[Address, ...]:
        """End the cooldown of every address whose time has come; returns those that are free now. O(log n) each."""
        freed: list[Address] = []
        while self._cooling and self._cooling[0][0] <= now_s:
            _, _, entry = heapq.heappop(self._cooling)
            if entry.state is not AddressState.COOLING:
                continue  # EC2 took it away meanwhile
            if entry.listed:
                self.inventory.move(entry, AddressEvent.COOLED, now_s)
                freed.append(entry.address)
            else:
                self.inventory.move(entry, AddressEvent.VANISH, now_s)
        return tuple(freed)

    def next_cooled_s(self) -> float | None:
        """When the next cooldown ends; None when nothing cools."""
        while self._cooling and self._cooling[0][2].state is not AddressState.COOLING:
            heapq.heappop(self._cooling)
        return self._cooling[0][0] if self._cooling else None

    # ---- inside

    def _entry(self, address: Address) -> Entry:
        entry = self.inventory.entry(address)
        if entry is None:
            raise LookupError(f"{address} is held but not in the inventory")
        return entry

    def _attach(self, attachment: Attachment) -> Attachment:
        key = attachment.holder.key
        self._attachments[key] = attachment
        self._pods.setdefault(_pod_of(attachment.holder), {})[key] = None
        return attachment

    def _cool_until(self, entry: Entry, until_s: float) -> None:
        # The running number keeps the heap from comparing entries.
        self._order += 1
        heapq.heappush(self._cooling, (until_s, self._order, entry))


def _pod_of(holder: Holder) -> tuple[str, str, str]:
    return holder.namespace, holder.pod, holder.key.ifname


def _unlisted(address: Address, holder: Holder) -> Finding:
    return Finding(
        kind=FindingKind.ADDRESS_VANISHED,
        message=f"{address} is held by {holder}, but EC2 lists it on no ENI of this instance",
        evidence={"address": str(address), "holder": str(holder)},
    )


def _held_twice(entry: Entry, holder: Holder) -> Finding:
    return Finding(
        kind=FindingKind.ADDRESS_HELD_TWICE,
        message=f"{entry.address} is claimed by {holder} and by {entry.holders[0]}",
        evidence={"address": str(entry.address), "holder": str(holder), "other": str(entry.holders[0])},
    )
