"""Every change of the ledger becomes an event that names address, states and holder."""

from __future__ import annotations

from typing import Any

from agent.events.journal import Journal
from agent.ipam.ledger import Ledger
from agent.ipam.model import AttachmentKey, Holder
from agent.recorder import Recorder
from tests.ipam_builders import an_eni, ip


def recorded(ledger: Ledger) -> Journal:
    journal = Journal(request_id=lambda: "")
    Recorder(journal.publish).recovered(ledger)
    return journal


def told(journal: Journal) -> list[dict[str, Any]]:
    return [dict(event.fields) for event in journal.events()]


def holder(name: str) -> Holder:
    return Holder(key=AttachmentKey(container_id=name, ifname="eth0"), namespace="default", pod=f"pod-{name}")


def test_the_life_of_an_address() -> None:
    ledger = Ledger()
    primary = an_eni(0, [ip(10)])
    ledger.observe_enis([primary], 0.0)
    journal = recorded(ledger)
    ledger.inventory.eni_ready(primary.eni_id, 254)
    ledger.reserve(holder("a"), 1.0)
    ledger.release(holder("a").key, now_s=2.0, cooldown_s=30.0)
    ledger.cool(40.0)
    found, ready, held, cooling, free = told(journal)
    assert (found["eni"], found["change"]) == (primary.eni_id, "found")
    assert (ready["change"], ready["table"]) == ("ready", 254)
    assert (held["before"], held["after"], held["pod"], held["container_id"]) == ("free", "held", "pod-a", "a")
    assert (cooling["before"], cooling["after"], cooling["pod"]) == ("held", "cooling", "pod-a")
    assert (free["before"], free["after"]) == ("cooling", "free")
    assert "pod" not in free


def test_what_the_start_found_is_said() -> None:
    ledger = Ledger()
    primary = an_eni(0, [ip(10)])
    ledger.observe_enis([primary], 0.0)
    address = primary.blocks[0].network.network_address
    ledger.adopt(holder("a"), [address], 0.0)
    eni, held = told(recorded(ledger))
    assert eni["change"] == "found"
    assert (held["change"], held["after"], held["address"], held["pod"]) == ("found", "held", str(address), "pod-a")


def test_an_eni_comes_and_goes() -> None:
    ledger = Ledger()
    primary, second = an_eni(0, [ip(10)]), an_eni(1, [ip(20)])
    ledger.observe_enis([primary], 0.0)
    journal = recorded(ledger)
    ledger.inventory.add_eni(second, 1.0)
    ledger.inventory.eni_ready(second.eni_id, 2)
    ledger.inventory.retire_eni(second.eni_id, 2.0)
    ledger.inventory.eni_gone(second.eni_id, 3.0)
    changes = [one["change"] for one in told(journal) if one["eni"] == second.eni_id and "address" not in one]
    assert changes == ["created", "ready", "leaving", "gone"]
    assert [one["after"] for one in told(journal) if "address" in one] == ["free", "retiring", "unknown"]
