from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from agent.errors import CloudGone
from agent.ipam.model import AddressState, FindingKind, Holder
from agent.ipam.recovery import PRIMARY_AGAIN_S, DiscardLink, recover
from agent.ports.datapath import AttachmentSeen, CoolingSeen, KernelSeen
from tests.ipam_builders import a_holder, an_eni, eni_id, ip


def link(holder: Holder, *addresses: IPv4Address, index: int = 7) -> AttachmentSeen:
    return AttachmentSeen(holder=holder, host_ifname=f"eni{index:011x}", host_ifindex=index, addresses=addresses)


def test_pods_keep_their_addresses_and_cooling_ones_go_on_cooling() -> None:
    seen = KernelSeen(
        attachments=(link(a_holder("web"), ip(10)),),
        cooling=(CoolingSeen(address=ip(11), remaining_s=12.5),),
    )
    recovered = recover(seen, [an_eni(0, [ip(10), ip(11), ip(12)])], 1_000.0)
    ledger = recovered.ledger
    assert recovered.repairs == ()
    assert recovered.findings == ()
    assert {str(view.address): view.state for view in ledger.addresses()} == {
        "10.0.0.10": AddressState.HELD,
        "10.0.0.11": AddressState.COOLING,
        "10.0.0.12": AddressState.FREE,
    }
    assert ledger.next_cooled_s() == 1_012.5
    held = ledger.attachment(a_holder("web").key)
    assert held is not None
    assert (held.addresses, held.eni_id) == ((ip(10),), eni_id(0))
    assert ledger.reserve(a_holder("new"), 1_000.0) is None  # no ENI is set up yet


def test_a_link_without_a_pod_route_is_a_torn_add() -> None:
    recovered = recover(KernelSeen(attachments=(link(a_holder("torn")),), cooling=()), [an_eni(0, [ip(10)])], 0.0)
    (repair,) = recovered.repairs
    assert isinstance(repair, DiscardLink)
    assert repair.host_ifname == "eni00000000007"
    assert [finding.kind for finding in recovered.findings] == [FindingKind.LINK_TORN]
    assert recovered.ledger.attachments() == ()
    assert recovered.ledger.inventory.count(AddressState.FREE) == 1


def test_an_address_ec2_does_not_list_stays_with_its_pod_in_quarantine() -> None:
    seen = KernelSeen(attachments=(link(a_holder("web"), ip(99)),), cooling=())
    recovered = recover(seen, [an_eni(0, [ip(10)])], 0.0)
    assert recovered.repairs == ()
    assert [finding.kind for finding in recovered.findings] == [FindingKind.ADDRESS_VANISHED]
    assert recovered.ledger.inventory.count(AddressState.QUARANTINED) == 1
    assert recovered.ledger.at_address(ip(99))[0].holder == a_holder("web")


def test_of_two_links_with_one_key_the_newer_stays() -> None:
    seen = KernelSeen(
        attachments=(link(a_holder("web"), ip(11), index=9), link(a_holder("web"), ip(10), index=5)), cooling=()
    )
    recovered = recover(seen, [an_eni(0, [ip(10), ip(11)])], 0.0)
    assert [repair.host_ifname for repair in recovered.repairs] == ["eni00000000005"]
    (held,) = recovered.ledger.attachments()
    assert held.addresses == (ip(11),)


def test_a_torn_link_never_pushes_out_a_good_one_with_its_key() -> None:
    seen = KernelSeen(attachments=(link(a_holder("web"), ip(10), index=5), link(a_holder("web"), index=9)), cooling=())
    recovered = recover(seen, [an_eni(0, [ip(10)])], 0.0)
    assert [repair.host_ifname for repair in recovered.repairs] == ["eni00000000009"]
    assert [held.addresses for held in recovered.ledger.attachments()] == [(ip(10),)]


def test_an_address_with_two_holders_belongs_to_neither_alone() -> None:
    seen = KernelSeen(
        attachments=(link(a_holder("one"), ip(10), index=5), link(a_holder("two"), ip(10), index=6)), cooling=()
    )
    recovered = recover(seen, [an_eni(0, [ip(10)])], 0.0)
    assert [finding.kind for finding in recovered.findings] == [FindingKind.ADDRESS_HELD_TWICE]
    assert recovered.ledger.inventory.count(AddressState.QUARANTINED) == 1
    assert [held.holder.pod for held in recovered.ledger.at_address(ip(10))] == ["one", "two"]


def test_a_held_address_in_the_cooldown_set_stays_held_and_an_unknown_one_is_ignored() -> None:
    seen = KernelSeen(
        attachments=(link(a_holder("web"), ip(10)),),
        cooling=(CoolingSeen(address=ip(10), remaining_s=9.0), CoolingSeen(address=ip(77), remaining_s=9.0)),
    )
    ledger = recover(seen, [an_eni(0, [ip(10)])], 0.0).ledger
    assert [view.state for view in ledger.addresses()] == [AddressState.HELD]
    assert ledger.next_cooled_s() is None


def test_a_describe_older_than_the_instance_is_not_believed() -> None:
    # Started on such an answer, the agent would have no ENI until the next describe, a quarter of an hour later.
    with pytest.raises(CloudGone, match="primary ENI") as caught:
        recover(KernelSeen(attachments=(), cooling=()), [], 0.0)
    assert caught.value.retry_after_s == PRIMARY_AGAIN_S
