"""Pure: the rules that both layouts have, and how `ip` is told to change them."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from agent.adoption.commands import NatSettings
from agent.adoption.model import Rule, SecondaryEni, Survey
from agent.datapath import layout

IP: Final = ("ip", "-batch", "-")


def batch(lines: Sequence[str]) -> str:
    """What `IP` is fed with."""
    return "".join(f"{line}\n" for line in lines)


def shared_rules(enis: Sequence[SecondaryEni], nat: NatSettings) -> tuple[tuple[int, str], ...]:
    """(preference, selector and action) of the rules that are the same in both layouts.

    The kernel takes one of each protocol, so ours and theirs stand beside one another for a moment.
    """
    main = f"lookup {layout.MAIN_TABLE}"
    mark = ((layout.PRIMARY_MARK_RULE_PREF, f"fwmark {nat.mark:#x}/{nat.mark:#x} {main}"),) if nat.restores_mark else ()
    services = ((layout.SERVICE_RULE_PREF, f"to {cidr} {main}") for cidr in nat.external_service_cidrs)
    sources = ((layout.ENI_SOURCE_RULE_PREF, f"from {eni.address} lookup {eni.table_id}") for eni in enis)
    return (*mark, *services, *sources)


def owners_of(survey: Survey, pref: int, text: str) -> list[int]:
    """Protocols of the rules that say this, in the kernel's order."""
    return [rule.protocol for rule in survey.rules if rule.pref == pref and _says(rule, text)]


def _says(rule: Rule, text: str) -> bool:
    words = text.split()
    if words[0] in ("from", "to"):
        selected = rule.source if words[0] == "from" else rule.destination
        return selected == IPv4Network(words[1]) and rule.table_id == int(words[3])
    return rule.mark == int(words[1].partition("/")[0], 0) and rule.table_id == int(words[3])


def has_rule(
    survey: Survey, pref: int, *, source: IPv4Address | None = None, destination: IPv4Address | None = None
) -> bool:
    wanted = (IPv4Network(source) if source else None, IPv4Network(destination) if destination else None)
    return any(rule.pref == pref and (rule.source, rule.destination) == wanted for rule in survey.rules)
