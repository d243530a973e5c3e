"""The ledger against every order of events, with EC2 and the kernel's holders as plain sets beside it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.ipam.inventory import CONSISTENCY_S
from agent.ipam.ledger import Ledger
from agent.ipam.lifecycle import TRANSITIONS
from agent.ipam.model import Address, AddressState, Block, Eni, EniId
from tests.ipam_builders import a_holder, a_ledger, an_eni, eni_id, ip, prefix, single

COOLDOWN_S = 30.0
BLOCKS = [*(single(ip(number)) for number in (1, 2, 3, 4, 5, 6, 20, 21)), prefix(1), prefix(2)]
"""Two of the single addresses are also in the first prefix: EC2 grants them now as the one, now as the other."""
ADDRESSES = sorted({address for block in BLOCKS for address in block.addresses()}, key=int)
BLOCK_SETS = st.lists(st.sampled_from(BLOCKS), max_size=4, unique=True)
USABLE = {AddressState.FREE, AddressState.HELD, AddressState.COOLING}


class LedgerMachine(RuleBasedStateMachine):
    """Four ENIs at most, ten blocks, a dozen pods; somebody else changes EC2 now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.ec2: dict[EniId, set[Block]] = {eni_id(0): {single(ip(1)), prefix(2)}}
        self.ledger: Ledger = a_ledger(*self._describe())
        self.holders: dict[str, tuple[Address, ...]] = {}
        self.cooling_until_s: dict[Address, float] = {}
        self.pending: set[Block] = set()
        self.before: dict[Address, AddressState] = self._states()

    # ---- pods

    @rule(pod=st.integers(1, 12))
    def reserve(self, pod: int) -> None:
        attachment = self.ledger.reserve(a_holder(f"pod-{pod}"), self.now_s)
        if f"pod-{pod}" in self.holders:
            assert attachment is not None
            assert attachment.addresses == self.holders[f"pod-{pod}"]
        elif attachment is not None:
            (address,) = attachment.addresses
            assert address in self._listed(), "handed out, but EC2 did not list it"
            assert self.cooling_until_s.get(address, 0.0) <= self.now_s, "handed out while it was cooling"
            assert address not in _addresses(self.pending), "handed out while it was being given back"
            assert all(address not in held for held in self.holders.values()), "handed out twice"
            self.holders[f"pod-{pod}"] = attachment.addresses

    @rule(pod=st.integers(1, 12))
    def release(self, pod: int) -> None:
        released = self.ledger.release(a_holder(f"pod-{pod}").key, now_s=self.now_s, cooldown_s=COOLDOWN_S)
        held = self.holders.pop(f"pod-{pod}", ())
        assert set(released) <= set(held)
        self.cooling_until_s.update((address, self.now_s + COOLDOWN_S) for address in released)

    @rule(pod=st.integers(13, 16), address=st.sampled_from(ADDRESSES))
    def find_a_pod_in_the_kernel(self, pod: int, address: Address) -> None:
        states = self._states()
        if f"pod-{pod}" not in self.holders and states.get(address) not in {
            AddressState.COOLING,
            AddressState.RETIRING,
        }:
            self.ledger.adopt(a_holder(f"pod-{pod}"), [address], self.now_s)
            self.holders[f"pod-{pod}"] = (address,)

    # ---- time

    @rule(seconds=st.sampled_from([1.0, 10.0, COOLDOWN_S, CONSISTENCY_S, 600.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.ledger.cool(self.now_s)

    # ---- our changes of EC2

    @rule(device=st.integers(0, 3), wanted=BLOCK_SETS)
    def assign(self, device: int, wanted: list[Block]) -> None:
        granted = self._grant(wanted)
        if eni_id(device) in self.ec2 and eni_id(device) in {usage.eni.eni_id for usage in self.ledger.enis()}:
            self.ec2[eni_id(device)] |= set(granted)
            self._pending_no_more(granted)
            self.ledger.inventory.granted(eni_id(device), granted, self.now_s)

    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        free = [usage.block for eni in self.ledger.enis() for usage in eni.blocks if usage.is_free]
        if free:
            chosen = data.draw(st.lists(st.sampled_from(free), min_size=1, unique=True))
            self.ledger.inventory.retire(chosen, self.now_s)
            self.pending |= set(chosen)

    @precondition(lambda self: self.pending)
    @rule(outcome=st.sampled_from(["taken", "refused", "unknown, taken", "unknown, refused"]))
    def ec2_answers(self, outcome: str) -> None:
        pending, self.pending = self.pending, set()
        blocks = sorted(pending, key=str)
        if outcome.endswith("taken"):
            self.ec2 = {one: owned - pending for one, owned in self.ec2.items()}
        match outcome:
            case "taken":
                self.ledger.inventory.retired(blocks, self.now_s)
            case "refused":
                self.ledger.inventory.kept(blocks, self.now_s)
            case _:
                self.ledger.inventory.doubt(blocks, self.now_s)

    @rule(device=st.integers(1, 3), wanted=BLOCK_SETS)
    def create_eni(self, device: int, wanted: list[Block]) -> None:
        if eni_id(device) not in self.ec2 and eni_id(device) not in {usage.eni.eni_id for usage in self.ledger.enis()}:
            granted = self._grant(wanted)
            self.ec2[eni_id(device)] = set(granted)
            self._pending_no_more(granted)
            self.ledger.inventory.add_eni(self._eni(eni_id(device)), self.now_s)
            self.ledger.inventory.eni_ready(eni_id(device), device + 1)

    @rule(device=st.integers(1, 3))
    def release_eni(self, device: int) -> None:
        for usage in self.ledger.enis():
            if usage.eni.eni_id == eni_id(device) and usage.busy_count == 0 and eni_id(device) in self.ec2:
                self.ledger.inventory.retire_eni(eni_id(device), self.now_s)
                held = {address for addresses in self.holders.values() for address in addresses}
                here = _addresses(self.ec2[eni_id(device)])
                assert not held & here or self._foreign(held & here)
                self.pending -= self.ec2.pop(eni_id(device))
                self.ledger.inventory.eni_gone(eni_id(device), self.now_s)

    # ---- what EC2 and others do

    @rule()
    def describe(self) -> None:
        self.ledger.observe_enis(self._describe(), self.now_s)
        for usage in self.ledger.enis():
            self.ledger.inventory.eni_ready(usage.eni.eni_id, usage.eni.device + 1)

    @rule(block=st.sampled_from(BLOCKS))
    def somebody_takes_a_block(self, block: Block) -> None:
        for owned in self.ec2.values():
            owned.discard(block)
        self.now_s += CONSISTENCY_S
        self.describe()

    @rule(device=st.integers(1, 3))
    def somebody_deletes_an_eni(self, device: int) -> None:
        self.ec2.pop(eni_id(device), None)
        self.now_s += CONSISTENCY_S
        self.describe()

    # ---- what must always hold

    @invariant()
    def every_holder_keeps_its_address(self) -> None:
        states = self._states()
        for pod, addresses in self.holders.items():
            attachment = self.ledger.attachment(a_holder(pod).key)
            assert attachment is not None
            assert attachment.addresses == addresses
            for address in addresses:
                assert states[address] in {AddressState.HELD, AddressState.QUARANTINED}
                assert attachment in self.ledger.at_address(address)
        assert len(self.ledger.attachments()) == len(self.holders)

    @invariant()
    def a_held_address_has_one_holder_and_ec2_lists_it(self) -> None:
        for view in self.ledger.addresses():
            if view.state is AddressState.HELD:
                assert len(view.holders) == 1
            if view.state in USABLE - {AddressState.COOLING}:
                owned = self.ec2.get(view.eni_id or eni_id(99), set())
                assert view.address in _addresses(owned), "believed usable, not EC2's"
            assert bool(view.holders) == (view.state in {AddressState.HELD, AddressState.QUARANTINED})

    @invariant()
    def the_counts_agree_with_the_addresses(self) -> None:
        views = self.ledger.addresses()
        for state in AddressState:
            assert self.ledger.inventory.count(state) == sum(view.state is state for view in views)
        for usage in self.ledger.enis():
            here = [view for view in views if view.eni_id == usage.eni.eni_id and view.listed]
            assert sum(one.listed_count for one in usage.blocks) == len(here)
            assert sum(one.busy_count for one in usage.blocks) == usage.busy_count
            assert sum(one.free_count for one in usage.blocks) == len(usage.free)
            assert set(usage.free) == {view.address for view in here if view.state is AddressState.FREE}

    @invariant()
    def only_the_moves_of_the_table_happened(self) -> None:
        steps = {(source, target) for (source, _), target in TRANSITIONS.items()}
        # One rule may move an address twice (a describe ends a doubt, time ends a cooldown): a path of the table.
        paths = steps | {(one, end) for one, middle in steps for begin, end in steps if middle == begin}
        paths |= {(one, end) for one, middle in paths for begin, end in steps if middle == begin}
        now = self._states()
        for address in now.keys() | self.before.keys():
            was, became = self.before.get(address), now.get(address)
            assert was == became or (was, became) in paths, f"{address}: {was} -> {became}"
            held = {AddressState.HELD, AddressState.QUARANTINED}
            if was in held:
                assert became in held | {AddressState.COOLING}, "a live holder lost its address"
        self.before = now

    # ---- inside

    def _states(self) -> dict[Address, AddressState]:
        return {view.address: view.state for view in self.ledger.addresses()}

    def _listed(self) -> set[Address]:
        return _addresses(block for owned in self.ec2.values() for block in owned)

    def _grant(self, wanted: list[Block]) -> list[Block]:
        """Those EC2 can grant: no address of them is anybody's."""
        taken = self._listed()
        granted: list[Block] = []
        for block in wanted:
            if not taken & set(block.addresses()):
                granted.append(block)
                taken |= set(block.addresses())
        return granted

    def _pending_no_more(self, granted: list[Block]) -> None:
        """What EC2 grants anew it had taken back."""
        again = _addresses(granted)
        self.pending = {block for block in self.pending if not again & set(block.addresses())}

    def _eni(self, one: EniId) -> Eni:
        device = int(one.removeprefix("eni-"), 16)
        return replace(an_eni(device), blocks=tuple(sorted(self.ec2[one], key=str)))

    def _describe(self) -> list[Eni]:
        return [self._eni(one) for one in sorted(self.ec2)]

    def _foreign(self, addresses: set[Address]) -> bool:
        """Held by a pod through another ENI, or quarantined: not this ENI's in the ledger."""
        return all(self._states()[address] is AddressState.QUARANTINED for address in addresses)


def _addresses(blocks: Iterable[Block]) -> set[Address]:
    return {address for block in blocks for address in block.addresses()}


LedgerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase
