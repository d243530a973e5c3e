"""Netlink messages that are not hot, by pyroute2's message classes: rules, ENI addresses and routes, what CHECK reads.

pyroute2 encodes and decodes here (40 to 300 us a message); the sockets are our own, so that batches, deadlines and the
kernel's error texts are the same everywhere.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Any, Final

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from agent.datapath import layout
from agent.datapath.desired import AF_INET, EniPlan, RuleSpec
from agent.datapath.messages import RouteSeen
from agent.datapath.netlink import (
    HEADER,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    Message,
)
from agent.ipam.model import Address

_RTM_NEWADDR: Final = 20
_RTM_GETADDR: Final = 22
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_RTM_GETROUTE: Final = 26
_RTM_NEWRULE: Final = 32
_RTM_DELRULE: Final = 33
_RTM_GETRULE: Final = 34
_FR_ACT_TO_TBL: Final = 1
_RTN_UNICAST: Final = 1
_SCOPE_UNIVERSE: Final = 0
_SCOPE_LINK: Final = 253
_SCOPE_NOWHERE: Final = 255
"""In a deletion: whatever scope the route has."""
_IFA_F_NOPREFIXROUTE: Final = 0x200

_RULE_ATTRIBUTES: Final = frozenset(
    {
        "FRA_TABLE",
        "FRA_PRIORITY",
        "FRA_PROTOCOL",
        "FRA_SRC",
        "FRA_DST",
        "FRA_FWMARK",
        "FRA_FWMASK",
        "FRA_SUPPRESS_PREFIXLEN",
    }
)
"""What a rule of ours may carry in a dump; the kernel adds suppress_prefixlength -1 to each."""


def _encode(shape: Any, kind: int, flags: int, fields: dict[str, int], attrs: list[tuple[str, Any]]) -> bytes:
    encoded = shape()
    encoded["header"]["type"] = kind
    encoded["header"]["flags"] = NLM_F_REQUEST | flags
    for name, value in fields.items():
        encoded[name] = value
    encoded["attrs"] = attrs
    encoded.encode()
    return bytes(encoded.data)


def decode(shape: Any, seen: Message) -> Any:
    decoded = shape(HEADER.pack(HEADER.size + len(seen.payload), seen.kind, 0, 0, 0) + bytes(seen.payload))
    decoded.decode()
    return decoded


# Policy rules --------------------------------------------------------------------------------------------------------


def add_rule(rule: RuleSpec) -> bytes:
    """EEXIST when a rule with the same selectors and action exists, whoever made it."""
    return _rule(_RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, rule)


def delete_rule(rule: RuleSpec) -> bytes:
    """Deletes one rule with exactly these selectors and our protocol; ENOENT when there is none."""
    return _rule(_RTM_DELRULE, 0, rule)


def _rule(kind: int, flags: int, rule: RuleSpec) -> bytes:
    attrs: list[tuple[str, Any]] = [
        ("FRA_PRIORITY", rule.pref),
        ("FRA_TABLE", rule.table_id),
        ("FRA_PROTOCOL", layout.PROTOCOL),
    ]
    if rule.mark_mask:
        attrs += [("FRA_FWMARK", rule.mark), ("FRA_FWMASK", rule.mark_mask)]
    if rule.source is not None:
        attrs.append(("FRA_SRC", str(rule.source)))
    if rule.destination is not None and rule.destination.prefixlen:
        attrs.append(("FRA_DST", str(rule.destination.network_address)))
    fields = {
        "family": rule.family,
        "action": _FR_ACT_TO_TBL,
        "src_len": 32 if rule.source is not None else 0,
        "dst_len": rule.destination.prefixlen if rule.destination is not None else 0,
    }
    return _encode(fibmsg, kind, flags, fields, attrs)


def dump_rules(family: int) -> bytes:
    return _encode(fibmsg, _RTM_GETRULE, NLM_F_DUMP, {"family": family}, [])


def parse_rule(seen: Message, *, foreign: bool = False) -> RuleSpec | None:
    """A rule of ours; None for everybody else's, unless `foreign` ones are wanted too, and for one with selectors we
    never write."""
    decoded = decode(fibmsg, seen)
    attrs = dict(decoded["attrs"])
    ours = attrs.get("FRA_PROTOCOL") == layout.PROTOCOL
    if not (ours or foreign) or decoded["action"] != _FR_ACT_TO_TBL or "FRA_TABLE" not in attrs:
        return None
    if not attrs.keys() <= _RULE_ATTRIBUTES or decoded["src_len"] not in (0, 32):
        return None
    if decoded["family"] != AF_INET and (decoded["src_len"] or decoded["dst_len"]):
        return None
    return RuleSpec(
        family=decoded["family"],
        pref=attrs.get("FRA_PRIORITY", 0),
        table_id=attrs["FRA_TABLE"],
        source=IPv4Address(attrs["FRA_SRC"]) if "FRA_SRC" in attrs else None,
        destination=IPv4Network((attrs["FRA_DST"], decoded["dst_len"])) if "FRA_DST" in attrs else None,
        mark=attrs.get("FRA_FWMARK", 0),
        mark_mask=attrs.get("FRA_FWMASK", 0),
    )


# ENI addresses and routes --------------------------------------------------------------------------------------------


def add_eni_address(ifindex: int, plan: EniPlan) -> bytes:
    """The ENI's own address with the subnet's length, and no connected route for it: main stays as it is."""
    attrs = [
        ("IFA_LOCAL", str(plan.address)),
        ("IFA_ADDRESS", str(plan.address)),
        ("IFA_FLAGS", _IFA_F_NOPREFIXROUTE),
    ]
    fields = {"family": AF_INET, "prefixlen": plan.prefix_length, "scope": _SCOPE_UNIVERSE, "index": ifindex}
    return _encode(ifaddrmsg, _RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, fields, attrs)


def eni_routes(ifindex: int, plan: EniPlan) -> tuple[bytes, bytes]:
    """The ENI's table: the gateway on the link, and the default route through it. The table's number makes it ours,
    so what an earlier owner (the AWS plugin) left there under the same prefixes is replaced."""
    near = {"dst_len": 32, "scope": _SCOPE_LINK}
    far = {"dst_len": 0, "scope": _SCOPE_UNIVERSE}
    base = {"family": AF_INET, "proto": layout.PROTOCOL, "type": _RTN_UNICAST}
    table: list[tuple[str, Any]] = [("RTA_TABLE", plan.table_id), ("RTA_OIF", ifindex)]
    flags = NLM_F_CREATE | NLM_F_REPLACE
    return (
        _encode(rtmsg, _RTM_NEWROUTE, flags, base | near, [("RTA_DST", str(plan.gateway)), *table]),
        _encode(rtmsg, _RTM_NEWROUTE, flags, base | far, [("RTA_GATEWAY", str(plan.gateway)), *table]),
    )


def delete_eni_route(table_id: int, seen: RouteSeen) -> bytes:
    """A route of ours in an ENI's table; ESRCH when it is gone."""
    attrs: list[tuple[str, Any]] = [("RTA_TABLE", table_id), ("RTA_OIF", seen.ifindex)]
    attrs += [] if seen.destination is None else [("RTA_DST", str(seen.destination))]
    fields = {
        "family": AF_INET,
        "proto": layout.PROTOCOL,
        "dst_len": 0 if seen.destination is None else 32,
        "scope": _SCOPE_NOWHERE,
    }
    return _encode(rtmsg, _RTM_DELROUTE, 0, fields, attrs)


# What CHECK and ENI set-up read ---------------------------------------------------------------------------------------


def dump_addresses(ifindex: int, family: int = 0) -> bytes:
    """Of one link, or of all for 0; of one family, or of all for 0."""
    return _encode(ifaddrmsg, _RTM_GETADDR, NLM_F_DUMP, {"index": ifindex, "family": family}, [])


def parse_address(seen: Message) -> Address:
    attrs = dict(decode(ifaddrmsg, seen)["attrs"])
    return ip_address(attrs.get("IFA_LOCAL") or attrs["IFA_ADDRESS"])


def dump_routes(family: int, table_id: int, ifindex: int) -> bytes:
    """The routes of one table that lead to one link, or to any for 0; ENOENT while the table does not exist."""
    attrs = [("RTA_TABLE", table_id), *([("RTA_OIF", ifindex)] if ifindex else [])]
    return _encode(rtmsg, _RTM_GETROUTE, NLM_F_DUMP, {"family": family}, attrs)


def parse_route(seen: Message) -> RouteSeen:
    decoded = decode(rtmsg, seen)
    attrs = dict(decoded["attrs"])
    return RouteSeen(
        destination=ip_address(attrs["RTA_DST"]) if "RTA_DST" in attrs else None,
        gateway=ip_address(attrs["RTA_GATEWAY"]) if "RTA_GATEWAY" in attrs else None,
        ifindex=attrs.get("RTA_OIF", 0),
        protocol=decoded["proto"],
    )
