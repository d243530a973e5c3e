from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from agent.ipam.inventory import CONSISTENCY_S
from agent.ipam.ledger import Ledger
from agent.ipam.lifecycle import AddressEvent, IllegalMove, after
from agent.ipam.model import AddressState, Eni, FindingKind, Reservation
from tests.ipam_builders import a_holder, a_ledger, an_eni, eni_id, ip, single

LATER_S = 2 * CONSISTENCY_S


def states(ledger: Ledger) -> dict[str, AddressState]:
    return {str(view.address): view.state for view in ledger.addresses()}


def test_an_address_is_held_cools_and_is_free_again() -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]))
    attachment = ledger.reserve(a_holder("web"), 1.0)
    assert attachment is not None
    assert attachment.addresses == (ip(10),)
    assert states(ledger) == {"10.0.0.10": AddressState.HELD}
    assert ledger.release(attachment.holder.key, now_s=5.0, cooldown_s=30.0) == (ip(10),)
    assert ledger.reserve(a_holder("other"), 34.9) is None
    assert ledger.next_cooled_s() == 35.0
    assert ledger.cool(34.9) == ()
    assert ledger.cool(35.0) == (ip(10),)
    assert ledger.next_cooled_s() is None
    assert ledger.reserve(a_holder("other"), 35.0) is not None


def test_a_key_that_holds_an_address_gets_it_again() -> None:
    ledger = a_ledger(an_eni(0, [ip(10), ip(11)]))
    first = ledger.reserve(a_holder("web"), 1.0)
    assert ledger.reserve(a_holder("web"), 2.0) is first
    assert ledger.inventory.count(AddressState.HELD) == 1


def test_releasing_an_unknown_key_is_nothing() -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]))
    assert ledger.release(a_holder("nobody").key, now_s=1.0, cooldown_s=30.0) == ()


def test_the_address_free_for_the_longest_time_goes_first() -> None:
    ledger = a_ledger(an_eni(0, [ip(10), ip(11)]))
    first = ledger.reserve(a_holder("a"), 1.0)
    assert first is not None
    ledger.release(first.holder.key, now_s=2.0, cooldown_s=0.0)
    ledger.cool(2.0)
    second = ledger.reserve(a_holder("b"), 3.0)
    assert second is not None
    assert second.addresses == (ip(11),)


def test_addresses_of_an_eni_without_a_link_are_not_handed_out() -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]), ready=False)
    assert ledger.reserve(a_holder("web"), 1.0) is None
    ledger.inventory.eni_ready(eni_id(0), 254)
    assert ledger.reserve(a_holder("web"), 1.0) is not None
    assert ledger.reservation(a_holder("web").key) == Reservation(addresses=(ip(10),), eni_id=eni_id(0), table_id=254)


@pytest.mark.parametrize("foreign", [an_eni(1, [ip(10)], managed=False), an_eni(1, [ip(10)], card=1)])
def test_other_peoples_enis_and_other_cards_serve_no_pods(foreign: Eni) -> None:
    ledger = a_ledger(an_eni(0), foreign)
    assert ledger.reserve(a_holder("web"), 1.0) is None
    assert ledger.addresses() == ()
    assert len(ledger.enis()) == 2


def test_pods_are_found_by_key_address_and_name() -> None:
    ledger = a_ledger(an_eni(0, [ip(10), ip(11)]))
    old = ledger.reserve(a_holder("db-0", container_id="old"), 1.0)
    new = ledger.reserve(a_holder("db-0", container_id="new"), 2.0)
    assert old is not None
    assert new is not None
    assert ledger.of_pod("default", "db-0", "eth0") == (old, new)
    assert ledger.at_address(old.addresses[0]) == (old,)
    assert ledger.attachment(new.holder.key) is new
    ledger.release(old.holder.key, now_s=3.0, cooldown_s=30.0)
    assert ledger.of_pod("default", "db-0", "eth0") == (new,)
    assert ledger.at_address(old.addresses[0]) == ()


def test_unnamed_holders_never_supersede_each_other() -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]))
    ledger.reserve(a_holder("", container_id="plain"), 1.0)
    assert ledger.of_pod("default", "", "eth0") == ()


def test_a_describe_adds_and_forgets_addresses_nobody_holds() -> None:
    ledger = a_ledger(an_eni(0, [ip(10), ip(11)]))
    assert ledger.observe_enis([an_eni(0, [ip(11), ip(12)])], LATER_S) == ()
    assert states(ledger) == {"10.0.0.11": AddressState.FREE, "10.0.0.12": AddressState.FREE}


def test_a_held_address_ec2_forgets_is_quarantined_and_comes_back() -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]))
    attachment = ledger.reserve(a_holder("web"), 1.0)
    assert attachment is not None
    (finding,) = ledger.observe_enis([an_eni(0)], LATER_S)
    assert finding.kind is FindingKind.ADDRESS_VANISHED
    assert finding.evidence["address"] == "10.0.0.10"
    assert states(ledger) == {"10.0.0.10": AddressState.QUARANTINED}
    assert ledger.attachment(attachment.holder.key) is attachment
    assert ledger.observe_enis([an_eni(0)], LATER_S + 1) == ()
    (finding,) = ledger.observe_enis([an_eni(0, [ip(10)])], LATER_S + 2)
    assert finding.kind is FindingKind.ADDRESS_RETURNED
    assert states(ledger) == {"10.0.0.10": AddressState.HELD}


def test_an_address_taken_away_while_it_cools_is_gone_for_good() -> None:
    ledger = a_ledger(an_eni(0, [ip(10), ip(11)]))
    ledger.reserve(a_holder("web"), 1.0)
    ledger.release(a_holder("web").key, now_s=LATER_S, cooldown_s=30.0)
    ledger.observe_enis([an_eni(0, [ip(11)])], LATER_S + 1)
    assert ledger.next_cooled_s() is None
    ledger.observe_enis([an_eni(0, [ip(10), ip(11)])], LATER_S + 2)
    assert ledger.cool(LATER_S + 30.0) == ()
    assert states(ledger) == {"10.0.0.10": AddressState.FREE, "10.0.0.11": AddressState.FREE}


def test_a_cooldown_that_ec2_cut_short_ends_nothing_later() -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]))
    ledger.reserve(a_holder("web"), 1.0)
    ledger.release(a_holder("web").key, now_s=LATER_S, cooldown_s=30.0)
    ledger.observe_enis([an_eni(0)], LATER_S + 1)
    assert ledger.cool(LATER_S + 30.0) == ()
    assert states(ledger) == {}


def test_a_quarantined_address_is_forgotten_after_its_cooldown() -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]))
    attachment = ledger.reserve(a_holder("web"), 1.0)
    assert attachment is not None
    ledger.observe_enis([an_eni(0)], LATER_S)
    assert ledger.release(attachment.holder.key, now_s=LATER_S, cooldown_s=30.0) == (ip(10),)
    assert ledger.cool(LATER_S + 30.0) == ()
    assert states(ledger) == {}


def test_an_eni_that_vanishes_under_its_pods_quarantines_them() -> None:
    ledger = a_ledger(an_eni(0), an_eni(1, [ip(10), ip(11)]))
    attachment = ledger.reserve(a_holder("web"), 1.0)
    assert attachment is not None
    ledger.observe_enis([an_eni(0)], LATER_S)
    assert states(ledger) == {str(attachment.addresses[0]): AddressState.QUARANTINED}
    assert [usage.eni.device for usage in ledger.enis()] == [0]
    assert ledger.reservation(attachment.holder.key) is None
    ledger.observe_enis([an_eni(0), an_eni(1, [ip(10), ip(11)])], LATER_S + 1)
    assert states(ledger) == {"10.0.0.10": AddressState.HELD, "10.0.0.11": AddressState.FREE}


def test_an_address_that_moved_to_another_eni_is_quarantined_while_held() -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]), an_eni(1))
    ledger.reserve(a_holder("web"), 1.0)
    (finding,) = ledger.observe_enis([an_eni(0), an_eni(1, [ip(10)])], LATER_S)
    assert finding.kind is FindingKind.ADDRESS_VANISHED
    assert states(ledger) == {"10.0.0.10": AddressState.QUARANTINED}
    ledger.release(a_holder("web").key, now_s=LATER_S, cooldown_s=30.0)
    ledger.cool(LATER_S + 30.0)
    ledger.observe_enis([an_eni(0), an_eni(1, [ip(10)])], LATER_S + 31.0)
    (view,) = ledger.addresses()
    assert (view.state, view.eni_id) == (AddressState.FREE, eni_id(1))


def test_a_grant_is_believed_more_than_a_describe_that_lags() -> None:
    ledger = a_ledger(an_eni(0))
    ledger.inventory.granted(eni_id(0), [single(ip(10))], 100.0)
    ledger.observe_enis([an_eni(0)], 100.0 + CONSISTENCY_S - 1)
    assert states(ledger) == {"10.0.0.10": AddressState.FREE}
    ledger.observe_enis([an_eni(0)], 100.0 + CONSISTENCY_S)
    assert states(ledger) == {}


def test_a_new_eni_survives_a_describe_that_lags() -> None:
    ledger = a_ledger(an_eni(0))
    ledger.inventory.add_eni(an_eni(1, [ip(10)]), 100.0)
    ledger.observe_enis([an_eni(0)], 101.0)
    assert [usage.eni.device for usage in ledger.enis()] == [0, 1]
    ledger.observe_enis([an_eni(0)], 100.0 + CONSISTENCY_S)
    assert [usage.eni.device for usage in ledger.enis()] == [0]


def test_an_address_just_given_back_is_not_adopted_from_a_describe_that_lags() -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]))
    ledger.inventory.retire([single(ip(10))], 100.0)
    assert ledger.reserve(a_holder("web"), 100.0) is None
    ledger.inventory.retired([single(ip(10))], 101.0)
    ledger.observe_enis([an_eni(0, [ip(10)])], 102.0)
    assert states(ledger) == {}
    ledger.observe_enis([an_eni(0, [ip(10)])], 101.0 + CONSISTENCY_S)
    assert states(ledger) == {"10.0.0.10": AddressState.FREE}


def test_ec2_may_grant_an_address_it_has_just_taken_back() -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]))
    ledger.inventory.retire([single(ip(10))], 100.0)
    ledger.inventory.retired([single(ip(10))], 101.0)
    ledger.inventory.granted(eni_id(0), [single(ip(10))], 102.0)
    ledger.observe_enis([an_eni(0, [ip(10)])], 103.0)
    assert states(ledger) == {"10.0.0.10": AddressState.FREE}


def test_what_ec2_did_not_take_back_is_free_again() -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]))
    ledger.inventory.retire([single(ip(10))], 100.0)
    ledger.inventory.kept([single(ip(10))], 101.0)
    assert ledger.reserve(a_holder("web"), 101.0) is not None


@pytest.mark.parametrize("listed", [[ip(10)], []])
def test_a_doubtful_address_waits_for_a_describe_that_can_be_believed(listed: list[IPv4Address]) -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]))
    ledger.inventory.retire([single(ip(10))], 100.0)
    ledger.inventory.doubt([single(ip(10))], 101.0)
    ledger.observe_enis([an_eni(0, [ip(10)])], 102.0)
    assert states(ledger) == {"10.0.0.10": AddressState.RETIRING}
    ledger.observe_enis([an_eni(0, listed)], 101.0 + CONSISTENCY_S)
    assert states(ledger) == ({"10.0.0.10": AddressState.FREE} if listed else {})


def test_a_held_address_cannot_be_retired() -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]))
    ledger.reserve(a_holder("web"), 1.0)
    with pytest.raises(IllegalMove, match=r"10\.0\.0\.10 is held: it cannot retire"):
        ledger.inventory.retire([single(ip(10))], 2.0)
    assert states(ledger) == {"10.0.0.10": AddressState.HELD}


@pytest.mark.parametrize("cooldown_s", [None, 30.0])
def test_an_eni_with_held_or_cooling_addresses_cannot_be_retired(cooldown_s: float | None) -> None:
    ledger = a_ledger(an_eni(0), an_eni(1, [ip(10), ip(11)]))
    ledger.reserve(a_holder("web"), 1.0)
    if cooldown_s is not None:
        ledger.release(a_holder("web").key, now_s=2.0, cooldown_s=cooldown_s)
    with pytest.raises(ValueError, match="must not be released"):
        ledger.inventory.retire_eni(eni_id(1), 3.0)
    assert ledger.reserve(a_holder("other"), 4.0) is not None


def test_the_primary_eni_cannot_be_retired() -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]))
    with pytest.raises(ValueError, match="must not be released"):
        ledger.inventory.retire_eni(eni_id(0), 3.0)


def test_nobody_gets_an_address_of_an_eni_that_is_leaving() -> None:
    ledger = a_ledger(an_eni(0), an_eni(1, [ip(10)]))
    ledger.inventory.retire_eni(eni_id(1), 100.0)
    # Somebody assigns one from outside while the ENI is on its way out.
    ledger.observe_enis([an_eni(0), an_eni(1, [ip(10), ip(11)])], 200.0)
    assert ledger.reserve(a_holder("web"), 200.0) is None
    ledger.inventory.eni_gone(eni_id(1), 201.0)
    assert states(ledger) == {}
    ledger.observe_enis([an_eni(0), an_eni(1, [ip(10), ip(11)])], 202.0)
    assert [usage.eni.device for usage in ledger.enis()] == [0]


def test_an_eni_whose_deletion_is_doubtful_is_set_up_again_before_use() -> None:
    ledger = a_ledger(an_eni(0), an_eni(1, [ip(10)]))
    ledger.inventory.retire_eni(eni_id(1), 100.0)
    ledger.inventory.eni_doubted(eni_id(1), 101.0)
    ledger.observe_enis([an_eni(0), an_eni(1, [ip(10)])], 101.0 + CONSISTENCY_S)
    assert states(ledger) == {"10.0.0.10": AddressState.FREE}
    assert ledger.reserve(a_holder("web"), 140.0) is None
    ledger.inventory.eni_ready(eni_id(1), 2)
    assert ledger.reserve(a_holder("web"), 140.0) is not None


def test_two_holders_of_one_address_are_both_kept() -> None:
    ledger = a_ledger(an_eni(0, [ip(10)]))
    assert ledger.adopt(a_holder("one"), [ip(10)], 1.0) == ()
    (finding,) = ledger.adopt(a_holder("two"), [ip(10)], 1.0)
    assert finding.kind is FindingKind.ADDRESS_HELD_TWICE
    assert ledger.observe_enis([an_eni(0, [ip(10)])], 2.0) == ()
    assert states(ledger) == {"10.0.0.10": AddressState.QUARANTINED}
    assert ledger.release(a_holder("one").key, now_s=3.0, cooldown_s=30.0) == ()
    ledger.observe_enis([an_eni(0, [ip(10)])], 4.0)
    assert states(ledger) == {"10.0.0.10": AddressState.HELD}
    assert ledger.release(a_holder("two").key, now_s=5.0, cooldown_s=30.0) == (ip(10),)


def test_an_attachment_of_an_address_ec2_never_listed_learns_its_eni() -> None:
    ledger = a_ledger(an_eni(0))
    (finding,) = ledger.adopt(a_holder("web"), [ip(10)], 1.0)
    assert finding.kind is FindingKind.ADDRESS_VANISHED
    assert ledger.reservation(a_holder("web").key) is None
    ledger.observe_enis([an_eni(0, [ip(10)])], 2.0)
    assert states(ledger) == {"10.0.0.10": AddressState.HELD}
    reservation = ledger.reservation(a_holder("web").key)
    assert reservation is not None
    assert reservation.eni_id == eni_id(0)


def test_the_lifecycle_has_no_way_from_held_back_to_ec2() -> None:
    for event in (AddressEvent.RETIRE, AddressEvent.COOLED, AddressEvent.HOLD, AddressEvent.KEEP):
        with pytest.raises(IllegalMove):
            after(ip(1), AddressState.HELD, event)
    with pytest.raises(IllegalMove, match="is cooling: it cannot retire"):
        after(ip(1), AddressState.COOLING, AddressEvent.RETIRE)
    with pytest.raises(IllegalMove, match="is unknown: it cannot hold"):
        after(ip(1), None, AddressEvent.HOLD)
