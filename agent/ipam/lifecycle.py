"""The life of an address, as a table. Nothing else decides which state follows which.

FREE         EC2 lists it here and nobody uses it
HELD         an attachment has it
COOLING      released a moment ago; packets for the former holder may still arrive
RETIRING     being given back to EC2
QUARANTINED  held, but EC2 does not list it on its ENI, or two attachments claim it; only its holder, or EC2
             listing it again, can end this
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from agent.ipam.model import Address, AddressState


class AddressEvent(StrEnum):
    """What can happen to an address."""

    APPEAR = "appear"
    """EC2 lists it on its ENI."""
    VANISH = "vanish"
    """EC2 does not list it on its ENI."""
    ADOPT = "adopt"
    """A holder found in the kernel for an address EC2 does not list."""
    CLASH = "clash"
    """A second holder found in the kernel."""
    HOLD = "hold"
    RELEASE = "release"
    REST = "rest"
    """Found in the kernel's cooldown set."""
    COOLED = "cooled"
    RETIRE = "retire"
    KEEP = "keep"
    """EC2 did not take it back."""


_S, _E = AddressState, AddressEvent

TRANSITIONS: Mapping[tuple[AddressState | None, AddressEvent], AddressState | None] = {
    (None, _E.APPEAR): _S.FREE,
    (None, _E.ADOPT): _S.QUARANTINED,
    (_S.FREE, _E.HOLD): _S.HELD,
    (_S.FREE, _E.REST): _S.COOLING,
    (_S.FREE, _E.RETIRE): _S.RETIRING,
    (_S.FREE, _E.VANISH): None,
    (_S.HELD, _E.RELEASE): _S.COOLING,
    (_S.HELD, _E.VANISH): _S.QUARANTINED,
    (_S.HELD, _E.CLASH): _S.QUARANTINED,
    (_S.COOLING, _E.COOLED): _S.FREE,
    (_S.COOLING, _E.VANISH): None,
    (_S.RETIRING, _E.KEEP): _S.FREE,
    (_S.RETIRING, _E.VANISH): None,
    (_S.QUARANTINED, _E.APPEAR): _S.HELD,
    (_S.QUARANTINED, _E.CLASH): _S.QUARANTINED,
    (_S.QUARANTINED, _E.RELEASE): _S.COOLING,
}
"""(state, event) -> state. None means: not known to the agent. Whatever is not here is a bug in the caller."""


class IllegalMove(Exception):
    """A bug: an event that must not happen to an address in its state."""

    def __init__(self, address: Address, state: AddressState | None, event: AddressEvent) -> None:
        super().__init__(f"address {address} is {state or 'unknown'}: it cannot {event}")


def after(address: Address, state: AddressState | None, event: AddressEvent) -> AddressState | None:
    """The state that follows.

    Raises: IllegalMove when the table has no such move.
    """
    if (state, event) not in TRANSITIONS:
        raise IllegalMove(address, state, event)
    return TRANSITIONS[state, event]
