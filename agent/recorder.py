"""From the ledger's changes to events: the one place where addresses and ENIs get into the journal."""

from __future__ import annotations

from typing import assert_never

from agent.events.model import Kind, Publish, Scalar
from agent.ipam.changes import AddressChanged, Change, EniChanged
from agent.ipam.ledger import Ledger
from agent.ipam.model import AddressState, EniId, Holder

FOUND = "found"
"""The `change` of an address that was held, and of an ENI that was there, when the agent started."""
UNKNOWN = "unknown"
"""The state of an address the agent does not know (yet, or any more)."""


class Recorder:
    """Listens to one ledger."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish

    def recovered(self, ledger: Ledger) -> None:
        """Enter what the start found, and listen from now on."""
        for usage in ledger.enis():
            self._eni(usage.eni.eni_id, FOUND, usage.eni.device, ledger.table_id(usage.eni.eni_id))
        for one in ledger.addresses():
            for holder in one.holders:
                self._address(str(one.address), one.eni_id, UNKNOWN, one.state, FOUND, holder)
        ledger.inventory.tell = self.tell

    def tell(self, change: Change) -> None:
        """See `Inventory.tell`."""
        match change:
            case AddressChanged():
                before, after = change.before or UNKNOWN, change.after or UNKNOWN
                for holder in change.holders or (None,):
                    self._address(str(change.address), change.eni_id, before, after, change.event, holder)
            case EniChanged():
                self._eni(change.eni_id, change.event, change.device, change.table_id)
            case _:
                assert_never(change)

    def _address(
        self,
        address: str,
        eni_id: EniId | None,
        before: AddressState | str,
        after: AddressState | str,
        change: str,
        holder: Holder | None,
    ) -> None:
        # Plain strings: events are written as JSON, and outlive the enumerations.
        fields: dict[str, Scalar] = {
            "address": address,
            "eni": eni_id or "",
            "before": str(before),
            "after": str(after),
            "change": str(change),
        }
        self._publish(Kind.ADDRESS, **fields, **({} if holder is None else holder_fields(holder)))

    def _eni(self, eni_id: EniId, change: str, device: int | None, table_id: int | None) -> None:
        known = {name: value for name, value in (("device", device), ("table", table_id)) if value is not None}
        self._publish(Kind.ENI, eni=eni_id, change=str(change), **known)


def holder_fields(holder: Holder) -> dict[str, Scalar]:
    """How events name a holder."""
    return {
        "namespace": holder.namespace,
        "pod": holder.pod,
        "container_id": holder.key.container_id,
        "ifname": holder.key.ifname,
    }
