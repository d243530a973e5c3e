"""The VPC as a state machine: time, lag, notifications, limits of the model itself."""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Network

import pytest

from sim.model.attachments import AttachInterface, attach_interface, detach_interface
from sim.model.config import REALISTIC_TIMINGS, AddressPlacement, SubnetConfig, Timings, VpcConfig
from sim.model.errors import Ec2Error
from sim.model.interfaces import CreateInterface, create_interface, delete_interface
from sim.model.ipv4 import Ipv4Wish, assign_ipv4, unassign_ipv4
from sim.model.ipv6 import Ipv6Wish, assign_ipv6
from sim.model.records import (
    AddressesChanged,
    AttachmentStatus,
    Change,
    EniAttached,
    EniDetached,
    EniRecord,
    EniStatus,
    InstanceLaunched,
    InstanceTerminated,
)
from sim.model.vpc import Vpc

SUBNET = SubnetConfig(cidr=IPv4Network("10.0.0.0/24"), subnet_id="subnet-00000001")
CONFIG = VpcConfig(subnets=(SUBNET,), seed=7)


def make_vpc(config: VpcConfig = CONFIG, **timings_s: float) -> tuple[Vpc, list[Change]]:
    vpc = Vpc(config, timings=Timings(**timings_s))
    changes: list[Change] = []
    vpc.subscribe(changes.append)
    return vpc, changes


def create(vpc: Vpc, *, now_s: float = 0, **more: object) -> EniRecord:
    request = CreateInterface(subnet_id="subnet-00000001", **more)  # type: ignore[arg-type]
    return vpc.apply(partial(create_interface, request=request), now_s=now_s)


def attach(vpc: Vpc, eni: EniRecord, instance_id: str, *, now_s: float, device: int = 1, card: int = 0) -> str:
    request = AttachInterface(eni_id=eni.eni_id, instance_id=instance_id, device_index=device, network_card_index=card)
    return vpc.apply(partial(attach_interface, request=request, now_s=now_s), now_s=now_s).attachment_id


def detach(vpc: Vpc, attachment_id: str, *, now_s: float) -> None:
    vpc.apply(partial(detach_interface, attachment_id=attachment_id, now_s=now_s), now_s=now_s)


def status_of(vpc: Vpc, eni: EniRecord) -> AttachmentStatus | None:
    attachment = vpc.state.enis[eni.eni_id].attachment
    return attachment.status if attachment else None


def test_launch_and_terminate_tell_the_fabric_in_order() -> None:
    vpc, changes = make_vpc()
    instance_id = vpc.run_instance("m5.large", "subnet-00000001", now_s=1).instance_id
    primary = vpc.state.enis_of(instance_id)[0]
    second = create(vpc, now_s=2)
    attach(vpc, second, instance_id, now_s=2)
    vpc.terminate_instance(instance_id, now_s=3)
    assert changes == [
        InstanceLaunched(instance_id=instance_id),
        EniAttached(eni_id=primary.eni_id, instance_id=instance_id),
        EniAttached(eni_id=second.eni_id, instance_id=instance_id),
        EniDetached(eni_id=primary.eni_id, instance_id=instance_id),
        EniDetached(eni_id=second.eni_id, instance_id=instance_id),
        InstanceTerminated(instance_id=instance_id),
    ]
    assert list(vpc.state.enis) == [second.eni_id]
    assert vpc.state.enis[second.eni_id].status is EniStatus.AVAILABLE


def test_the_state_is_new_when_the_change_is_told() -> None:
    vpc, _ = make_vpc()
    seen: list[int] = []
    vpc.subscribe(lambda _: seen.append(len(vpc.state.enis)))
    vpc.run_instance("m5.large", "subnet-00000001", now_s=0)
    assert seen == [1, 1]


def test_attaching_takes_its_time_and_ends_by_itself() -> None:
    vpc, changes = make_vpc(attach_s=2, detach_s=3)
    instance_id = vpc.run_instance("m5.large", "subnet-00000001", now_s=0).instance_id
    eni = create(vpc)
    changes.clear()
    attachment_id = attach(vpc, eni, instance_id, now_s=10)
    assert (status_of(vpc, eni), vpc.next_due_s()) == (AttachmentStatus.ATTACHING, 12)
    vpc.advance(11.9)
    assert changes == []
    vpc.advance(12)
    assert changes == [EniAttached(eni_id=eni.eni_id, instance_id=instance_id)]
    assert status_of(vpc, eni) is AttachmentStatus.ATTACHED
    detach(vpc, attachment_id, now_s=20)
    assert status_of(vpc, eni) is AttachmentStatus.DETACHING
    with pytest.raises(Ec2Error, match="IncorrectState"):
        detach(vpc, attachment_id, now_s=21)
    with pytest.raises(Ec2Error, match="is currently in use"):
        vpc.apply(lambda state, _: delete_interface(state, eni.eni_id), now_s=22.9)
    vpc.apply(lambda state, _: delete_interface(state, eni.eni_id), now_s=23)
    assert changes[1:] == [EniDetached(eni_id=eni.eni_id, instance_id=instance_id)]
    assert vpc.next_due_s() is None


def test_what_takes_no_time_is_over_when_the_call_is() -> None:
    vpc, changes = make_vpc()
    instance_id = vpc.run_instance("m5.large", "subnet-00000001", now_s=0).instance_id
    eni = create(vpc)
    attachment_id = attach(vpc, eni, instance_id, now_s=5)
    told: list[Change] = [EniAttached(eni_id=eni.eni_id, instance_id=instance_id)]
    assert changes[2:] == told
    detach(vpc, attachment_id, now_s=5)
    told.append(EniDetached(eni_id=eni.eni_id, instance_id=instance_id))
    assert changes[2:] == told


def test_two_attachments_complete_each_in_its_time() -> None:
    vpc, changes = make_vpc(attach_s=2)
    instance_id = vpc.run_instance("m5.large", "subnet-00000001", now_s=0).instance_id
    first, second = create(vpc), create(vpc)
    attach(vpc, first, instance_id, now_s=1, device=1)
    vpc.timings = Timings(attach_s=0.5)
    attach(vpc, second, instance_id, now_s=1, device=2)
    changes.clear()
    vpc.advance(100)
    assert [c.eni_id for c in changes if isinstance(c, EniAttached)] == [second.eni_id, first.eni_id]


def test_a_detachment_may_overtake_its_attachment() -> None:
    vpc, changes = make_vpc(attach_s=10, detach_s=1)
    instance_id = vpc.run_instance("m5.large", "subnet-00000001", now_s=0).instance_id
    eni = create(vpc)
    attachment_id = attach(vpc, eni, instance_id, now_s=0)
    detach(vpc, attachment_id, now_s=1)
    changes.clear()
    vpc.advance(100)
    assert changes == [EniDetached(eni_id=eni.eni_id, instance_id=instance_id)]
    assert vpc.state.enis[eni.eni_id].status is EniStatus.AVAILABLE


def test_termination_ends_what_is_under_way() -> None:
    vpc, _ = make_vpc(attach_s=10)
    instance_id = vpc.run_instance("m5.large", "subnet-00000001", now_s=0).instance_id
    eni = create(vpc)
    attach(vpc, eni, instance_id, now_s=0)
    vpc.terminate_instance(instance_id, now_s=1)
    vpc.advance(100)
    assert vpc.state.enis[eni.eni_id].attachment is None
    assert vpc.imds_view(instance_id, 100) is None


def test_describes_and_metadata_are_behind_each_by_its_own_lag() -> None:
    vpc, _ = make_vpc(describe_lag_s=1, imds_lag_s=5)
    instance_id = vpc.run_instance("m5.large", "subnet-00000001", now_s=100).instance_id
    eni = create(vpc, now_s=110)
    attach(vpc, eni, instance_id, now_s=110)

    def described(now_s: float) -> bool:
        return eni.eni_id in vpc.visible(now_s).enis

    def in_metadata(now_s: float) -> bool:
        view = vpc.imds_view(instance_id, now_s)
        assert view is not None
        return eni.eni_id in {each.eni_id for each in view.enis}

    assert [described(t) for t in (110.0, 110.9, 111.0, 200)] == [False, False, True, True]
    assert [in_metadata(t) for t in (110.0, 114.9, 115.0, 200)] == [False, False, True, True]
    vpc.apply(lambda state, _: unassign_ipv4(state, eni.eni_id, (), ()), now_s=300)
    assert described(300)


def test_metadata_knows_an_instance_from_its_first_moment() -> None:
    vpc, _ = make_vpc(imds_lag_s=60)
    instance = vpc.run_instance("m5.large", "subnet-00000001", now_s=100)
    view = vpc.imds_view(instance.instance_id, 100)
    assert view is not None
    assert (view.instance, len(view.enis)) == (instance, 1)
    assert view.enis[0].is_primary
    assert vpc.imds_view("i-0123456789abcdef0", 100) is None


def test_a_dry_run_says_what_would_happen_and_does_nothing() -> None:
    vpc, changes = make_vpc()
    before = vpc.state
    request = CreateInterface(subnet_id="subnet-00000001")
    with pytest.raises(Ec2Error, match="DryRunOperation") as caught:
        vpc.apply(partial(create_interface, request=request), now_s=0, dry_run=True)
    assert caught.value.http_status == 412
    with pytest.raises(Ec2Error, match="NotFound"):
        vpc.apply(lambda state, _: delete_interface(state, "eni-01234567"), now_s=0, dry_run=True)
    assert vpc.state is before
    assert changes == []


def test_network_cards_have_places_of_their_own() -> None:
    vpc, _ = make_vpc()
    instance_id = vpc.run_instance("p5.48xlarge", "subnet-00000001", now_s=0).instance_id  # 32 cards with 2 ENIs each
    attach(vpc, create(vpc), instance_id, now_s=0, device=1, card=0)
    with pytest.raises(Ec2Error, match="AttachmentLimitExceeded: Interface count 3 exceeds"):
        attach(vpc, create(vpc), instance_id, now_s=0, device=2, card=0)
    attach(vpc, create(vpc), instance_id, now_s=0, device=1, card=31)
    with pytest.raises(Ec2Error, match="Network card index 32 does not exist"):
        attach(vpc, create(vpc), instance_id, now_s=0, device=1, card=32)
    places = [
        (e.attachment.network_card_index, e.attachment.device_index)
        for e in vpc.state.enis_of(instance_id)
        if e.attachment
    ]
    assert places == [(0, 0), (0, 1), (31, 1)]


def test_an_eni_may_hold_more_alone_than_its_instance_allows() -> None:
    vpc, _ = make_vpc()
    instance_id = vpc.run_instance("t3.nano", "subnet-00000001", now_s=0).instance_id  # 2 addresses per ENI
    eni = create(vpc, ipv4=Ipv4Wish(count=2))
    with pytest.raises(Ec2Error, match="PrivateIpAddressLimitExceeded"):
        attach(vpc, eni, instance_id, now_s=0)
    with pytest.raises(Ec2Error, match="PrivateIpAddressLimitExceeded"):
        create(vpc, ipv4=Ipv4Wish(count=64))
    assert len(vpc.state.enis) == 2


def test_prefixes_count_as_one_address_each() -> None:
    vpc, _ = make_vpc()
    instance_id = vpc.run_instance("m5.large", "subnet-00000001", now_s=0).instance_id  # 10 addresses per ENI
    primary = vpc.state.enis_of(instance_id)[0]
    vpc.apply(partial(assign_ipv4, eni_id=primary.eni_id, wish=Ipv4Wish(prefix_count=9)), now_s=0)
    with pytest.raises(Ec2Error, match="PrivateIpAddressLimitExceeded"):
        vpc.apply(partial(assign_ipv4, eni_id=primary.eni_id, wish=Ipv4Wish(count=1)), now_s=0)
    held = vpc.state.enis[primary.eni_id]
    assert len(held.ipv4_prefixes) == 9
    assert all(p.prefixlen == 28 for p in held.ipv4_prefixes)


def test_a_moved_address_is_told_for_both_enis() -> None:
    vpc, changes = make_vpc()
    giver, taker = create(vpc, ipv4=Ipv4Wish(count=1)), create(vpc)
    address = giver.secondary_addresses[0]
    wish = Ipv4Wish(addresses=(address,), allow_reassignment=True)
    vpc.apply(partial(assign_ipv4, eni_id=taker.eni_id, wish=wish), now_s=0)
    assert changes == [AddressesChanged(eni_id=giver.eni_id), AddressesChanged(eni_id=taker.eni_id)]
    wish = Ipv4Wish(addresses=(giver.primary_address,), allow_reassignment=True)
    with pytest.raises(Ec2Error, match="cannot be moved"):
        vpc.apply(partial(assign_ipv4, eni_id=taker.eni_id, wish=wish), now_s=0)


def test_an_address_the_eni_has_is_granted_again_without_effect() -> None:
    vpc, _ = make_vpc()
    eni = create(vpc, ipv4=Ipv4Wish(count=1))
    wish = Ipv4Wish(addresses=eni.secondary_addresses)
    grant = vpc.apply(partial(assign_ipv4, eni_id=eni.eni_id, wish=wish), now_s=0)
    assert grant.addresses == eni.secondary_addresses
    assert vpc.state.enis[eni.eni_id] == eni


def test_explicit_prefixes_must_be_free_blocks_of_the_subnet() -> None:
    vpc, _ = make_vpc()
    eni = create(vpc)
    for prefix in ("10.0.0.0/28", "10.0.0.64/29", "10.9.0.0/28"):
        wish = Ipv4Wish(prefixes=(IPv4Network(prefix),))
        with pytest.raises(Ec2Error, match="InvalidParameterValue"):
            vpc.apply(partial(assign_ipv4, eni_id=eni.eni_id, wish=wish), now_s=0)
    wish = Ipv4Wish(prefixes=(IPv4Network("10.0.0.64/28"),))
    assert vpc.apply(partial(assign_ipv4, eni_id=eni.eni_id, wish=wish), now_s=0).prefixes == wish.prefixes
    with pytest.raises(Ec2Error, match="is in use"):
        create(vpc, primary_address=IPv4Address("10.0.0.70"))


def test_ipv6_needs_a_subnet_that_has_it() -> None:
    vpc, _ = make_vpc()
    eni = create(vpc)
    with pytest.raises(Ec2Error, match="no IPv6 CIDR block"):
        vpc.apply(partial(assign_ipv6, eni_id=eni.eni_id, wish=Ipv6Wish(count=1)), now_s=0)


def test_ipv6_addresses_and_prefixes_do_not_overlap() -> None:
    cidr = IPv6Network("2600:1f13:a:b00::/64")
    subnet = SubnetConfig(cidr=IPv4Network("10.0.0.0/24"), ipv6_cidr=cidr, subnet_id="subnet-00000001")
    vpc, _ = make_vpc(VpcConfig(subnets=(subnet,), seed=3))
    eni = create(vpc, ipv6=Ipv6Wish(count=20, prefix_count=20))
    assert len(set(eni.ipv6_addresses)) == len(set(eni.ipv6_prefixes)) == 20
    assert not any(a in p for a in eni.ipv6_addresses for p in eni.ipv6_prefixes)
    inside = eni.ipv6_prefixes[0][5]
    with pytest.raises(Ec2Error, match="is in use"):
        vpc.apply(partial(assign_ipv6, eni_id=eni.eni_id, wish=Ipv6Wish(addresses=(inside,))), now_s=0)
    around = IPv6Network((eni.ipv6_addresses[0], 80), strict=False)
    with pytest.raises(Ec2Error, match="is in use"):
        vpc.apply(partial(assign_ipv6, eni_id=eni.eni_id, wish=Ipv6Wish(prefixes=(around,))), now_s=0)
    with pytest.raises(Ec2Error, match="is in use"):
        vpc.apply(partial(assign_ipv6, eni_id=eni.eni_id, wish=Ipv6Wish(addresses=(cidr[1],))), now_s=0)


def test_scattered_placement_fragments_and_lowest_does_not() -> None:
    places = {}
    for placement in AddressPlacement:
        vpc, _ = make_vpc(VpcConfig(subnets=(SUBNET,), placement=placement, seed=5))
        eni = create(vpc, ipv4=Ipv4Wish(count=20))
        places[placement] = {int(a) // 16 for a in eni.secondary_addresses}
    assert len(places[AddressPlacement.LOWEST]) == 2
    assert len(places[AddressPlacement.SCATTERED]) > 8


def test_one_seed_gives_one_history_and_realistic_timings_are_not_zero() -> None:
    runs = []
    for _ in range(2):
        vpc, _ = make_vpc()
        vpc.run_instance("m5.large", "subnet-00000001", now_s=0)
        runs.append(vpc.state)
    assert runs[0] == runs[1]
    assert min(REALISTIC_TIMINGS.attach_s, REALISTIC_TIMINGS.detach_s, REALISTIC_TIMINGS.imds_lag_s) > 0
