"""Pure: the node's values as the API shows them."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

from agent.errors import AgentError
from agent.ipam.model import AddressView as OneAddress
from agent.ipam.model import EniUsage
from agent.node import Parts
from api.schemas import (
    AddressCounts,
    AddressStateName,
    AddressView,
    ConditionView,
    EniView,
    PoolEniView,
)


def _counts(usage: EniUsage) -> AddressCounts:
    return AddressCounts(
        free_count=len(usage.free),
        held_count=usage.held_count,
        cooling_count=usage.cooling_count,
        retiring_count=usage.retiring_count,
        quarantined_count=usage.quarantined_count,
    )


def sum_counts(usages: Sequence[EniUsage]) -> AddressCounts:
    each = [_counts(usage) for usage in usages]
    return AddressCounts(**{name: sum(getattr(one, name) for one in each) for name in AddressCounts.model_fields})


def pool_eni_view(usage: EniUsage, addresses: Sequence[OneAddress]) -> PoolEniView:
    own = [one for one in addresses if one.eni_id == usage.eni.eni_id]
    return PoolEniView(
        eni_id=usage.eni.eni_id,
        counts=_counts(usage),
        addresses=[AddressView(address=one.address, state=AddressStateName(one.state)) for one in own],
    )


def eni_view(usage: EniUsage, addresses: Sequence[OneAddress], parts: Parts) -> EniView:
    eni = usage.eni
    # Not `eni.blocks`: those are of the last describe, and the ledger also knows what was granted since.
    prefixes = [one.block.network for one in usage.blocks if one.block.is_prefix]
    own = [one.address for one in addresses if one.eni_id == eni.eni_id and one.listed]
    singles = [ip_network(address) for address in own if not any(address in prefix for prefix in prefixes)]
    return EniView(
        eni_id=eni.eni_id,
        mac=eni.mac,
        card=eni.card,
        device=eni.device,
        subnet_id=eni.subnet_id,
        subnet_cidr=eni.subnet_cidr,
        primary_address=eni.primary_address,
        table_id=parts.ledger.table_id(eni.eni_id),
        managed=eni.managed,
        interface_type=eni.interface_type,
        excluded=eni.excluded,
        slot_count=parts.limits.slots,
        blocks=[*prefixes, *singles],
        counts=_counts(usage),
    )


def condition(failure: AgentError) -> ConditionView:
    return ConditionView(
        cause=failure.cause,
        message=failure.message,
        evidence=failure.evidence,
        remedy=failure.remedy,
        retry_after_s=failure.retry_after_s,
    )
