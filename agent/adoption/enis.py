"""Pure: which secondary ENIs a node has, as the kernel shows what the AWS plugin made of them."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from agent.adoption.model import SecondaryEni, Survey
from agent.datapath import layout

_FIRST_TABLE: Final = 2
_DEFAULT: Final = IPv4Network("0.0.0.0/0")


def secondary_enis(survey: Survey) -> tuple[tuple[SecondaryEni, ...], list[str]]:
    """The ENIs that rules 32765 name, or that have a table of their own, and what is wrong with them.

    Version 1.15 makes the tables, as all do, and no rules.
    """
    found: list[SecondaryEni] = []
    doubts: list[str] = []
    by_address = {address: (ifname, bits) for ifname, owned in survey.addresses.items() for address, bits in owned}
    macs = {link.ifname: link.mac for link in survey.links}
    for address, table_id in (*_by_rules(survey), *_by_tables(survey, doubts)):
        if any((eni.address, eni.table_id) == (address, table_id) for eni in found):
            continue  # named by both; or ours beside theirs: a take-over that was interrupted
        at = by_address.get(address)
        if at is None:
            doubts.append(f"rule {layout.ENI_SOURCE_RULE_PREF} names {address}, which no link of the node has")
            continue
        if not _FIRST_TABLE <= table_id <= layout.MARK_ENI_MASK:
            doubts.append(f"the ENI of {address} has table {table_id}: network cards above 0 are not supported")
            continue
        subnet = IPv4Network((address, at[1]), strict=False)
        found.append(SecondaryEni(mac=macs[at[0]], ifname=at[0], address=address, subnet=subnet, table_id=table_id))
    return tuple(found), doubts


def _by_rules(survey: Survey) -> Iterator[tuple[IPv4Address, int]]:
    for rule in survey.rules:
        if rule.pref == layout.ENI_SOURCE_RULE_PREF and rule.source is not None and rule.table_id is not None:
            yield rule.source.network_address, rule.table_id


def _by_tables(survey: Survey, doubts: list[str]) -> Iterator[tuple[IPv4Address, int]]:
    named = {table_id for _, table_id in _by_rules(survey)}
    for route in survey.routes:
        is_eni_table = _FIRST_TABLE <= route.table_id <= layout.MARK_ENI_MASK and route.table_id not in named
        if not is_eni_table or route.destination != _DEFAULT or route.gateway is None:
            continue
        owned = survey.addresses.get(route.ifname, ())
        if len(owned) == 1:
            yield owned[0][0], route.table_id
        else:
            doubts.append(f"table {route.table_id} leads to {route.ifname}, which has {len(owned)} addresses")
