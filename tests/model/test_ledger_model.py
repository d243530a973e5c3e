"""The ledger against every order of events, with EC2 and the kernel's holders as plain sets beside it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.ipam.inventory import CONSISTENCY_S
from agent.ipam.ledger import Ledger
from agent.ipam.lifecycle import TRANSITIONS
from agent.ipam.model import Address, AddressState, Block, Eni, EniId
from tests.ipam_builders import a_holder, a_ledger, an_eni, eni_id, ip, single

COOLDOWN_S = 30.0
USABLE = {AddressState.FREE, AddressState.HELD, AddressState.COOLING}


class LedgerMachine(RuleBasedStateMachine):
    """Four ENIs at most, ten addresses, a dozen pods; somebody else changes EC2 now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.ec2: dict[EniId, set[Address]] = {eni_id(0): {ip(1), ip(2)}}
        self.ledger: Ledger = a_ledger(*self._describe())
        self.holders: dict[str, tuple[Address, ...]] = {}
        self.cooling_until_s: dict[Address, float] = {}
        self.pending: set[Address] = set()
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
            assert address not in self.pending, "handed out while it was being given back"
            assert all(address not in held for held in self.holders.values()), "handed out twice"
            self.holders[f"pod-{pod}"] = attachment.addresses

    @rule(pod=st.integers(1, 12))
    def release(self, pod: int) -> None:
        released = self.ledger.release(a_holder(f"pod-{pod}").key, now_s=self.now_s, cooldown_s=COOLDOWN_S)
        held = self.holders.pop(f"pod-{pod}", ())
        assert set(released) <= set(held)
        self.cooling_until_s.update((address, self.now_s + COOLDOWN_S) for address in released)

    @rule(pod=st.integers(13, 16), address=st.integers(1, 10).map(ip))
    def find_a_pod_in_the_kernel(self, pod: int, address: IPv4Address) -> None:
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

    @rule(device=st.integers(0, 3), addresses=st.sets(st.integers(1, 10).map(ip), max_size=4))
    def assign(self, device: int, addresses: set[IPv4Address]) -> None:
        owned = set().union(*self.ec2.values())
        granted = addresses - owned
        if eni_id(device) in self.ec2 and eni_id(device) in {usage.eni.eni_id for usage in self.ledger.enis()}:
            self.ec2[eni_id(device)] |= granted
            self.pending -= granted
            self.ledger.inventory.granted(eni_id(device), [single(one) for one in sorted(granted)], self.now_s)

    @rule(data=st.data())
    def retire(self, data: st.DataObject) -> None:
        free = [address for usage in self.ledger.enis() for address in usage.free]
        if free:
            chosen = data.draw(st.sets(st.sampled_from(free), min_size=1))
            self.ledger.inventory.retire([single(one) for one in chosen], self.now_s)
            self.pending |= chosen

    @precondition(lambda self: self.pending)
    @rule(outcome=st.sampled_from(["taken", "refused", "unknown, taken", "unknown, refused"]))
    def ec2_answers(self, outcome: str) -> None:
        pending, self.pending = self.pending, set()
        blocks = [single(one) for one in pending]
        if outcome.endswith("taken"):
            self.ec2 = {one: owned - pending for one, owned in self.ec2.items()}
        match outcome:
            case "taken":
                self.ledger.inventory.retired(blocks, self.now_s)
            case "refused":
                self.ledger.inventory.kept(blocks, self.now_s)
            case _:
                self.ledger.inventory.doubt(blocks, self.now_s)

    @rule(device=st.integers(1, 3), addresses=st.sets(st.integers(1, 10).map(ip), max_size=4))
    def create_eni(self, device: int, addresses: set[IPv4Address]) -> None:
        if eni_id(device) not in self.ec2 and eni_id(device) not in {usage.eni.eni_id for usage in self.ledger.enis()}:
            granted = addresses - set().union(*self.ec2.values())
            self.ec2[eni_id(device)] = set(granted)
            self.pending -= granted
            self.ledger.inventory.add_eni(self._eni(eni_id(device)), self.now_s)
            self.ledger.inventory.eni_ready(eni_id(device), device + 1)

    @rule(device=st.integers(1, 3))
    def release_eni(self, device: int) -> None:
        for usage in self.ledger.enis():
            if usage.eni.eni_id == eni_id(device) and usage.busy_count == 0 and eni_id(device) in self.ec2:
                self.ledger.inventory.retire_eni(eni_id(device), self.now_s)
                held = {address for addresses in self.holders.values() for address in addresses}
                assert not held & self.ec2[eni_id(device)] or self._foreign(held & self.ec2[eni_id(device)])
                self.pending -= self.ec2.pop(eni_id(device))
                self.ledger.inventory.eni_gone(eni_id(device), self.now_s)

    # ---- what EC2 and others do

    @rule()
    def describe(self) -> None:
        self.ledger.observe_enis(self._describe(), self.now_s)
        for usage in self.ledger.enis():
            self.ledger.inventory.eni_ready(usage.eni.eni_id, usage.eni.device + 1)

    @rule(address=st.integers(1, 10).map(ip))
    def somebody_takes_an_address(self, address: IPv4Address) -> None:
        for owned in self.ec2.values():
            owned.discard(address)
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
                assert view.address in self.ec2.get(view.eni_id or eni_id(99), set()), "believed usable, not EC2's"
            assert bool(view.holders) == (view.state in {AddressState.HELD, AddressState.QUARANTINED})

    @invariant()
    def the_counts_agree_with_the_addresses(self) -> None:
        views = self.ledger.addresses()
        for state in AddressState:
            assert self.ledger.inventory.count(state) == sum(view.state is state for view in views)
        for usage in self.ledger.enis():
            here = [view for view in views if view.eni_id == usage.eni.eni_id and view.listed]
            assert usage.used_slot_count == len(here)
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
        return set().union(*self.ec2.values())

    def _eni(self, one: EniId) -> Eni:
        device = int(one.removeprefix("eni-"), 16)
        blocks = tuple(Block(network=IPv4Network(str(address))) for address in sorted(self.ec2[one], key=int))
        return replace(an_eni(device), blocks=blocks)

    def _describe(self) -> list[Eni]:
        return [self._eni(one) for one in sorted(self.ec2)]

    def _foreign(self, addresses: set[Address]) -> bool:
        """Held by a pod through another ENI, or quarantined: not this ENI's in the ledger."""
        return all(self._states()[address] is AddressState.QUARANTINED for address in addresses)


LedgerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestLedger = LedgerMachine.TestCase
