"""Pure: what a ledger tells whoever listens: each change of an address and of an ENI, after it has happened."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent.ipam.lifecycle import AddressEvent
from agent.ipam.model import Address, AddressState, EniId, Holder


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressChanged:
    """holders: who has the address, or has just let it go. before, after: None for not known to the agent."""

    address: Address
    eni_id: EniId | None
    before: AddressState | None
    after: AddressState | None
    event: AddressEvent
    holders: tuple[Holder, ...]


class EniEvent(StrEnum):
    """What can happen to an ENI."""

    CREATED = "created"
    """EC2 made it for us."""
    SEEN = "seen"
    """A describe showed it for the first time."""
    READY = "ready"
    """Its link, table and rules are set up: pods can use it."""
    LEAVING = "leaving"
    """It is being given back."""
    STAYED = "stayed"
    """Giving it back ended without a clear answer; the next describe decides."""
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class EniChanged:
    """device: None when it is not known any more. table_id: None while it is not set up."""

    eni_id: EniId
    event: EniEvent
    device: int | None
    table_id: int | None


Change = AddressChanged | EniChanged


def tell_nobody(change: Change) -> None:
    """The listener of a ledger nobody listens to."""
