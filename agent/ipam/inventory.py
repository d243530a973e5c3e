"""What EC2 gave this node: its ENIs and their addresses, each in a state of `lifecycle`.

Synchronous and without a clock, so that no other task can see a half-made change: times are seconds on the agent's
monotonic clock, passed in as `now_s`. Who holds an address is the ledger's business; the inventory only remembers the
holders with the address, because EC2 must never take a held one away.

EC2 is eventually consistent (EC2 API reference, "Eventual consistency"): an answer may be older than the change before
it. So for `CONSISTENCY_S` after a change a describe is not believed where it contradicts that change.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from agent.ipam.changes import AddressChanged, Change, EniChanged, EniEvent, tell_nobody
from agent.ipam.lifecycle import AddressEvent, after
from agent.ipam.model import (
    Address,
    AddressState,
    Block,
    Eni,
    EniId,
    EniUsage,
    Finding,
    FindingKind,
    Holder,
    serves_pods,
)
from agent.ipam.placement import BlockFill, EniFill, PlacementPolicy, choose_block, choose_eni
from agent.ipam.records import BUSY, Record

CONSISTENCY_S = 30.0
"""How long a describe may lag behind a change. EC2 names no bound; the AWS plugin waits 30 to 60 s for the same."""


@dataclass(slots=True, kw_only=True)
class Entry:
    """One address. Change `state` and `listed` only through the inventory.

    eni_id, block: None for an address found in the kernel which EC2 has never listed.
    listed: EC2 lists the address on `eni_id`.
    holders: nobody or one; more only when quarantined for that reason.
    granted_s: when a reply of EC2 granted it; -inf when a describe showed it.
    doubted_s: when a request to give it back ended without a clear answer.
    """

    address: Address
    eni_id: EniId | None
    block: Block | None
    since_s: float
    state: AddressState | None = None
    listed: bool = True
    holders: tuple[Holder, ...] = ()
    granted_s: float = -math.inf
    doubted_s: float | None = None


class Inventory:
    """Every ENI of the instance and every pod address on those that serve pods."""

    def __init__(self, policy: PlacementPolicy) -> None:
        self._policy = policy
        self._entries: dict[Address, Entry] = {}
        self._records: dict[EniId, Record] = {}
        self._given_back: dict[Address | EniId, float] = {}
        self._counts: Counter[AddressState] = Counter()
        self.tell: Callable[[Change], None] = tell_nobody
        """Called after each change; must be quick, must not fail, must not change anything here."""

    # ---- looking

    def entry(self, address: Address) -> Entry | None:
        return self._entries.get(address)

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries.values())

    def count(self, state: AddressState) -> int:
        return self._counts[state]

    @property
    def busy_count(self) -> int:
        """Addresses that somebody uses or used a moment ago."""
        return sum(self._counts[state] for state in BUSY)

    def enis(self) -> tuple[EniUsage, ...]:
        """Every ENI of the instance and its use, by card and device."""
        records = sorted(self._records.values(), key=lambda record: (record.eni.card, record.eni.device))
        return tuple(record.usage() for record in records)

    def table_id(self, eni_id: EniId) -> int | None:
        """The ENI's routing table; None while it is not set up, or is unknown."""
        record = self._records.get(eni_id)
        return None if record is None else record.table_id

    def usable_enis(self) -> Iterator[EniFill]:
        """ENIs that are set up, stay, and have a free address."""
        for record in self._records.values():
            if record.usable and record.buckets[AddressState.FREE] and self._policy.allows(record.eni):
                yield EniFill(
                    eni_id=record.eni.eni_id,
                    device=record.eni.device,
                    is_primary=record.eni.is_primary,
                    busy_count=sum(len(record.buckets[state]) for state in BUSY),
                    kinds=[kind for kind, count in record.free_by_kind.items() if count],
                )

    def next_free(self) -> Entry | None:
        """The free address that placement chooses for the next pod. O(ENIs + slots of an ENI)."""
        eni_id = choose_eni(self.usable_enis(), self._policy.preferred)
        if eni_id is None:
            return None
        tallies = self._records[eni_id].tallies
        fills = (
            BlockFill(block=block, busy_count=tally.busy_count, free_s=self._entries[next(iter(tally.free))].since_s)
            for block, tally in tallies.items()
            if tally.free
        )
        return self._entries[next(iter(tallies[choose_block(fills, self._policy.preferred)].free))]

    # ---- one address

    def move(self, entry: Entry, event: AddressEvent, now_s: float) -> None:
        """Change an address's state: the only place where that happens.

        Raises: IllegalMove when the lifecycle has no such move; nothing has changed then.
        """
        before = entry.state
        target = after(entry.address, before, event)
        self._unfile(entry)
        entry.state, entry.since_s, entry.doubted_s = target, now_s, None
        if target is None:
            del self._entries[entry.address]
        else:
            self._file(entry)
        self.tell(
            AddressChanged(
                address=entry.address,
                eni_id=entry.eni_id,
                before=before,
                after=target,
                event=event,
                holders=entry.holders,
            )
        )

    def adopt(self, address: Address, holder: Holder, now_s: float) -> None:
        """Enter an address which somebody holds but EC2 has never listed."""
        entry = Entry(address=address, eni_id=None, block=None, since_s=now_s, listed=False, holders=(holder,))
        self._entries[address] = entry
        self.move(entry, AddressEvent.ADOPT, now_s)

    # ---- what EC2 grants

    def granted(self, eni_id: EniId, blocks: Iterable[Block], now_s: float) -> None:
        """Enter blocks which a reply of EC2 granted to an ENI: they are free at once. Unknown ENI: nothing."""
        if eni_id not in self._records:
            return
        for block in blocks:
            for address in block.addresses():
                self._given_back.pop(address, None)
                entry = self._entries.get(address)
                if entry is not None and entry.state is AddressState.RETIRING:
                    # EC2 grants it anew: so it had taken it back, whatever became of that reply.
                    self.move(entry, AddressEvent.VANISH, now_s)
                    entry = None
                if entry is None:
                    self._appear(address, eni_id, block, now_s, granted_s=now_s)
                elif entry.eni_id == eni_id:
                    entry.granted_s = now_s

    def add_eni(self, eni: Eni, now_s: float) -> None:
        """Enter an ENI which EC2 has just created, with the addresses it came with."""
        self._given_back.pop(eni.eni_id, None)
        record = self._records.setdefault(eni.eni_id, Record(eni=eni, since_s=now_s))
        record.eni, record.granted_s = eni, now_s
        self._tell_eni(eni.eni_id, EniEvent.CREATED)
        if serves_pods(eni):
            self.granted(eni.eni_id, eni.blocks, now_s)

    def eni_ready(self, eni_id: EniId, table_id: int) -> None:
        """The ENI's link, routing table and rules exist: its addresses may be handed out. Unknown ENI: nothing."""
        record = self._records.get(eni_id)
        if record is not None:
            record.table_id = table_id
            self._tell_eni(eni_id, EniEvent.READY)

    # ---- what EC2 takes back

    def retire(self, blocks: Iterable[Block], now_s: float) -> None:
        """Take free blocks out of use because they are about to be given back to EC2.

        Raises: IllegalMove when an address of them is not free; nothing has changed then.
        """
        addresses = _addresses(blocks)
        for address in addresses:
            entry = self._entries.get(address)
            after(address, entry.state if entry else None, AddressEvent.RETIRE)
        for address in addresses:
            self.move(self._entries[address], AddressEvent.RETIRE, now_s)

    def retired(self, blocks: Iterable[Block], now_s: float) -> None:
        """EC2 has taken these retiring blocks back."""
        for entry in self._retiring(_addresses(blocks)):
            self._given_back[entry.address] = now_s
            self.move(entry, AddressEvent.VANISH, now_s)

    def kept(self, blocks: Iterable[Block], now_s: float) -> None:
        """EC2 has certainly not taken these retiring blocks back: they are free again, if it still lists them."""
        for entry in self._retiring(_addresses(blocks)):
            self.move(entry, AddressEvent.KEEP if entry.listed else AddressEvent.VANISH, now_s)

    def doubt(self, blocks: Iterable[Block], now_s: float) -> None:
        """Nobody knows whether EC2 took these retiring blocks back.

        They stay out of use until a describe, at least `CONSISTENCY_S` later, decides.
        """
        self._doubt(_addresses(blocks), now_s)

    def retire_eni(self, eni_id: EniId, now_s: float) -> None:
        """Take a whole ENI out of use because it is about to be deleted.

        Raises: ValueError when anybody uses an address of it, or it is the primary ENI or not ours: a bug.
        """
        record = self._records[eni_id]
        busy = [str(address) for state in BUSY for address in record.buckets[state]]
        if busy or record.eni.is_primary or not serves_pods(record.eni):
            raise ValueError(f"ENI {eni_id} must not be released: in use are {busy}")
        record.leaving = True
        self._tell_eni(eni_id, EniEvent.LEAVING)
        for address in tuple(record.buckets[AddressState.FREE]):
            self.move(self._entries[address], AddressEvent.RETIRE, now_s)

    def eni_gone(self, eni_id: EniId, now_s: float) -> None:
        """A retired ENI is deleted, with all its addresses."""
        self._given_back[eni_id] = now_s
        for entry in self.entries():
            if entry.eni_id == eni_id and not entry.holders:
                self.move(entry, AddressEvent.VANISH, now_s)
        self._tell_eni(eni_id, EniEvent.GONE)
        self._records.pop(eni_id, None)

    def eni_doubted(self, eni_id: EniId, now_s: float) -> None:
        """A retired ENI may or may not be deleted: the next describe decides; its set-up must be repeated."""
        record = self._records.get(eni_id)
        if record is not None:
            record.leaving = False
            record.table_id = None
            self._tell_eni(eni_id, EniEvent.STAYED)
        self._doubt([entry.address for entry in self.entries() if entry.eni_id == eni_id], now_s)

    # ---- what EC2 lists

    def observe(self, enis: Sequence[Eni], now_s: float) -> tuple[Finding, ...]:
        """Reconcile with a describe of all ENIs of this instance.

        New addresses become free. Addresses no longer listed are forgotten, unless somebody holds them: those are
        quarantined until EC2 lists them on their ENI again or their holder lets go.
        Returns what became quarantined or came back.
        """
        self._given_back = {item: at_s for item, at_s in self._given_back.items() if now_s - at_s < CONSISTENCY_S}
        current = [eni for eni in enis if eni.eni_id not in self._given_back]
        for eni in current:
            is_new = eni.eni_id not in self._records
            self._records.setdefault(eni.eni_id, Record(eni=eni, since_s=now_s)).eni = eni
            if is_new:
                self._tell_eni(eni.eni_id, EniEvent.SEEN)
        listed_at = {
            address: (eni.eni_id, block)
            for eni in current
            if serves_pods(eni)
            for block in eni.blocks
            for address in block.addresses()
        }
        findings = [finding for entry in self.entries() for finding in self._judge(entry, listed_at, now_s)]
        for address, (eni_id, block) in listed_at.items():
            if address not in self._entries and address not in self._given_back:
                self._appear(address, eni_id, block, now_s)
        seen = {eni.eni_id for eni in current}
        for eni_id, record in tuple(self._records.items()):
            recent = now_s - record.granted_s < CONSISTENCY_S or any(record.buckets.values())
            if eni_id not in seen and not recent:
                self._tell_eni(eni_id, EniEvent.GONE)
                del self._records[eni_id]
        return tuple(findings)

    def _judge(self, entry: Entry, listed_at: Mapping[Address, tuple[EniId, Block]], now_s: float) -> Iterator[Finding]:
        eni_id, block = listed_at.get(entry.address, (None, None))
        if entry.eni_id is None:
            entry.eni_id, entry.block = eni_id, block
        listed = eni_id is not None and eni_id == entry.eni_id
        if not listed and now_s - entry.granted_s < CONSISTENCY_S:
            return
        if listed and block != entry.block:
            # Given back and granted again behind our back, as part of another block.
            self._set_listed(entry, listed=False)
            entry.block = block
        self._set_listed(entry, listed=listed)
        match entry.state, listed:
            case AddressState.QUARANTINED, True if len(entry.holders) == 1:
                self.move(entry, AddressEvent.APPEAR, now_s)
                yield _finding(FindingKind.ADDRESS_RETURNED, entry, "is listed by EC2 again")
            case AddressState.RETIRING, _:
                # EC2's answer to our own request decides; a describe only when that never came, and is old enough.
                if entry.doubted_s is not None and now_s - entry.doubted_s >= CONSISTENCY_S:
                    self.move(entry, AddressEvent.KEEP if listed else AddressEvent.VANISH, now_s)
            case AddressState.HELD, False:
                self.move(entry, AddressEvent.VANISH, now_s)
                yield _finding(FindingKind.ADDRESS_VANISHED, entry, "is not listed by EC2 on its ENI")
            case AddressState.FREE | AddressState.COOLING, False:
                self.move(entry, AddressEvent.VANISH, now_s)
            case _:
                pass

    # ---- inside

    def _doubt(self, addresses: Iterable[Address], now_s: float) -> None:
        for entry in self._retiring(addresses):
            entry.doubted_s = now_s

    def _tell_eni(self, eni_id: EniId, event: EniEvent) -> None:
        record = self._records.get(eni_id)
        device, table_id = (None, None) if record is None else (record.eni.device, record.table_id)
        self.tell(EniChanged(eni_id=eni_id, event=event, device=device, table_id=table_id))

    def _retiring(self, addresses: Iterable[Address]) -> Iterator[Entry]:
        """The entries among `addresses` that are still on their way back; somebody else may have been faster."""
        for address in addresses:
            entry = self._entries.get(address)
            if entry is not None and entry.state is AddressState.RETIRING:
                yield entry

    def _appear(
        self, address: Address, eni_id: EniId, block: Block, now_s: float, granted_s: float = -math.inf
    ) -> None:
        entry = Entry(address=address, eni_id=eni_id, block=block, since_s=now_s, granted_s=granted_s)
        self._entries[address] = entry
        self.move(entry, AddressEvent.APPEAR, now_s)

    def _set_listed(self, entry: Entry, *, listed: bool) -> None:
        if entry.listed != listed:
            self._unfile(entry)
            entry.listed = listed
            self._file(entry)

    def _file(self, entry: Entry) -> None:
        if entry.state is None:
            return
        self._counts[entry.state] += 1
        if entry.listed and entry.eni_id is not None and entry.block is not None:
            self._records[entry.eni_id].file(entry.address, entry.state, entry.block, entry.since_s)

    def _unfile(self, entry: Entry) -> None:
        if entry.state is None:
            return
        self._counts[entry.state] -= 1
        if entry.listed and entry.eni_id is not None and entry.block is not None:
            self._records[entry.eni_id].unfile(entry.address, entry.state, entry.block)


def _addresses(blocks: Iterable[Block]) -> tuple[Address, ...]:
    # A /80 cannot be listed address by address: when it comes, only what is or was in use gets an entry.
    return tuple(address for block in blocks for address in block.addresses())


def _finding(kind: FindingKind, entry: Entry, what: str) -> Finding:
    holder = str(entry.holders[0])
    return Finding(
        kind=kind,
        message=f"{entry.address}, held by {holder}, {what}",
        evidence={"address": str(entry.address), "eni": entry.eni_id or "", "holder": holder},
    )
