"""Generated lives of a VPC: whatever clients do, the books balance."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Network
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sim.model.attachments import AttachInterface, attach_interface, detach_interface
from sim.model.config import AddressPlacement, SubnetConfig, Timings, VpcConfig
from sim.model.errors import Ec2Error
from sim.model.interfaces import CreateInterface, create_interface, delete_interface
from sim.model.ipv4 import Ipv4Wish, assign_ipv4, unassign_ipv4
from sim.model.records import AttachmentStatus, Change, EniAttached, EniDetached, EniRecord, State, Step
from sim.model.rules import Rules
from sim.model.space import reserved_bits
from sim.model.vpc import Vpc

CIDRS = (IPv4Network("10.0.0.0/24"), IPv4Network("10.0.1.0/27"))
picks = st.integers(0, 100)
counts = st.integers(0, 6)


class VpcLife(RuleBasedStateMachine):
    """Clients that ask for anything; refused requests must leave no trace."""

    def __init__(self) -> None:
        super().__init__()
        config = VpcConfig(
            subnets=tuple(SubnetConfig(cidr=c) for c in CIDRS), placement=AddressPlacement.SCATTERED, seed=11
        )
        self.vpc = Vpc(config, timings=Timings(attach_s=2, detach_s=3))
        self.now_s = 0.0
        self.links: set[str] = set()
        self.vpc.subscribe(self.follow)
        self.instances = [
            self.vpc.run_instance(t, next(iter(self.vpc.state.subnets)), now_s=0) for t in ("t3.nano", "m5.large")
        ]

    def follow(self, change: Change) -> None:
        match change:
            case EniAttached():
                assert change.eni_id not in self.links
                self.links.add(change.eni_id)
            case EniDetached():
                self.links.discard(change.eni_id)
            case _:
                pass

    def attempt(self, operation: Callable[[State, Rules], Step[Any]]) -> None:
        self.vpc.advance(self.now_s)
        before = self.vpc.state
        copied = copy.deepcopy(before)
        try:
            self.vpc.apply(operation, now_s=self.now_s)
        except Ec2Error:
            assert self.vpc.state is before
        assert before == copied, "a state once seen has changed"

    def eni(self, pick: int) -> EniRecord:
        enis = list(self.vpc.state.enis.values())
        return enis[pick % len(enis)]

    @rule(pick=picks, count=counts, prefix_count=st.integers(0, 1))
    def create(self, pick: int, count: int, prefix_count: int) -> None:
        subnet_id = list(self.vpc.state.subnets)[pick % 2]
        wish = Ipv4Wish(count=count, prefix_count=prefix_count)
        self.attempt(partial(create_interface, request=CreateInterface(subnet_id=subnet_id, ipv4=wish)))

    @rule(pick=picks, count=counts, prefix_count=st.integers(0, 2))
    def assign(self, pick: int, count: int, prefix_count: int) -> None:
        wish = Ipv4Wish(count=count, prefix_count=prefix_count)
        self.attempt(partial(assign_ipv4, eni_id=self.eni(pick).eni_id, wish=wish))

    @rule(taker=picks, giver=picks, allowed=st.booleans())
    def move(self, *, taker: int, giver: int, allowed: bool) -> None:
        wish = Ipv4Wish(addresses=self.eni(giver).secondary_addresses[:2], allow_reassignment=allowed)
        self.attempt(partial(assign_ipv4, eni_id=self.eni(taker).eni_id, wish=wish))

    @rule(pick=picks, count=counts)
    def unassign(self, pick: int, count: int) -> None:
        eni = self.eni(pick)
        addresses, prefixes = eni.secondary_addresses[:count], eni.ipv4_prefixes[:count]
        self.attempt(lambda state, _: unassign_ipv4(state, eni.eni_id, addresses, prefixes))

    @rule(pick=picks, instance=st.integers(0, 1), device=st.integers(0, 3))
    def attach(self, pick: int, instance: int, device: int) -> None:
        request = AttachInterface(
            eni_id=self.eni(pick).eni_id, instance_id=self.instances[instance].instance_id, device_index=device
        )
        self.attempt(partial(attach_interface, request=request, now_s=self.now_s))

    @rule(pick=picks)
    def detach(self, pick: int) -> None:
        attachment = self.eni(pick).attachment
        if attachment is not None:
            self.attempt(partial(detach_interface, attachment_id=attachment.attachment_id, now_s=self.now_s))

    @rule(pick=picks)
    def delete(self, pick: int) -> None:
        eni_id = self.eni(pick).eni_id
        self.attempt(lambda state, _: delete_interface(state, eni_id))

    @rule(seconds=st.integers(1, 4))
    def wait(self, seconds: int) -> None:
        self.now_s += seconds
        self.vpc.advance(self.now_s)

    @invariant()
    def the_bitmap_is_exactly_what_enis_hold(self) -> None:
        state = self.vpc.state
        for subnet in state.subnets.values():
            enis = [e for e in state.enis.values() if e.subnet_id == subnet.subnet_id]
            held = [a for e in enis for a in (e.primary_address, *e.secondary_addresses)]
            held += [a for e in enis for prefix in e.ipv4_prefixes for a in prefix]
            assert len(held) == len(set(held)), "an address has two holders"
            assert all(a in subnet.cidr for a in held)
            empty = reserved_bits(subnet.cidr)
            assert not any(1 << (int(a) - int(subnet.cidr[0])) & empty for a in held), "a reserved address is held"
            expected = empty
            for address in held:
                expected |= 1 << (int(address) - int(subnet.cidr[0]))
            assert subnet.used_bits == expected

    @invariant()
    def no_instance_has_more_than_its_type_allows(self) -> None:
        for instance, (enis, addresses) in zip(self.instances, ((2, 2), (3, 10)), strict=True):
            attached = self.vpc.state.enis_of(instance.instance_id)
            places = [e.attachment.device_index for e in attached if e.attachment]
            assert len(attached) <= enis
            assert len(places) == len(set(places))
            assert all(e.ipv4_slots_used_count <= addresses for e in attached)

    @invariant()
    def links_are_where_attachments_have_completed(self) -> None:
        complete = {
            e.eni_id
            for e in self.vpc.state.enis.values()
            if e.attachment is not None and e.attachment.status is AttachmentStatus.ATTACHED
        }
        assert complete <= self.links
        under_way = {t.eni_id for t in self.vpc.state.transitions}
        assert self.links - complete <= under_way


VpcLife.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestVpcLife = VpcLife.TestCase
