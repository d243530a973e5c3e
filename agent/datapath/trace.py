"""Where would a packet of a pod go? The kernel's own route query, and our table read as it is installed.

Nothing is sent and nothing is changed. The mark is worked out from the table's sets, map and chains in the kernel (so a
table somebody has edited shows); with that mark and the pod's link as input the kernel is asked for the route
(RTM_GETROUTE, rtnetlink(7)). It answers with the table, not with the rule: that is the first one which matches the
packet and leads to this table.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network, summarize_address_range
from typing import Any, Final

from nftables import Nftables
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from agent.datapath import cold, layout, messages, seen
from agent.datapath.desired import AF_INET, AF_INET6
from agent.datapath.messages import LinkSeen
from agent.datapath.netlink import HEADER, NLM_F_REQUEST, Message, NetlinkRefused, NetlinkSocket
from agent.errors import Cause, InvalidRequest
from agent.ipam.model import Address, Mac
from agent.ports.datapath import PathSeen

_RTM_GETROUTE: Final = 26
_RTM_F_LOOKUP_TABLE: Final = 0x1000
"""Answer with the table the route was found in (include/uapi/linux/rtnetlink.h)."""
_ROUTE_TYPES: Final = {1: "unicast", 2: "local", 3: "broadcast", 5: "multicast", 6: "blackhole", 7: "unreachable"}
_FR_ACT_TO_TBL: Final = 1
_SELECTORS: Final = "FRA_SRC FRA_DST FRA_FWMARK FRA_FWMASK FRA_IIFNAME"
_EXPLAINED: Final = frozenset(f"FRA_TABLE FRA_PRIORITY FRA_PROTOCOL FRA_SUPPRESS_PREFIXLEN {_SELECTORS}".split())
"""Attributes of a rule that are understood here; a rule with others is passed over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRead:
    """Our table as it is installed.

    sets: networks by set name. group_marks: the bits each link group's chain sets. classifies: packets that leave the
    VPC are marked. snat: (out interface, new source) of the chain that translates; None without one.
    """

    sets: Mapping[str, tuple[IPv4Network, ...]] = field(default_factory=dict)
    group_marks: Mapping[int, int] = field(default_factory=dict)
    classifies: bool = False
    snat: tuple[str, IPv4Address] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """What rules and the table look at."""

    ifname: str
    group: int
    source: Address
    destination: Address


def read_table() -> TableRead:
    """Our table in the kernel; empty when there is none. In the libnftables thread."""
    context = Nftables()
    context.set_json_output(val=True)
    code, text, _ = context.cmd(f"list table {layout.NFT_FAMILY} {layout.NFT_TABLE}")
    return TableRead() if code else parse_table(json.loads(text)["nftables"])


def parse_table(objects: Sequence[Mapping[str, Any]]) -> TableRead:
    """Pure: read libnftables' JSON (libnftables-json(5))."""
    sets: dict[str, tuple[IPv4Network, ...]] = {}
    chain_of_group: dict[int, str] = {}
    bits_of_chain: dict[str, int] = {}
    classifies = False
    snat: tuple[str, IPv4Address] | None = None
    for one in objects:
        if "set" in one and "interval" in one["set"].get("flags", ()):
            sets[one["set"]["name"]] = tuple(
                network for element in one["set"].get("elem", ()) for network in _networks(element)
            )
        elif "map" in one and one["map"]["name"] == "eni_by_group":
            for group, verdict in one["map"].get("elem", ()):
                chain_of_group[int(group)] = verdict["jump"]["target"]
        elif "rule" in one:
            chain, expressions = one["rule"]["chain"], one["rule"]["expr"]
            if chain.startswith("eni_"):
                bits_of_chain[chain] = _bits_set(expressions)
            elif chain == "classify":
                classifies = True
            elif chain == "source_nat":
                snat = _snat(expressions) or snat
    marks = {group: bits_of_chain.get(chain, 0) for group, chain in chain_of_group.items()}
    return TableRead(sets=sets, group_marks=marks, classifies=classifies, snat=snat)


def mark_of(table: TableRead, packet: Packet, *, is_local: bool) -> tuple[int, tuple[str, ...], tuple[str, ...]]:
    """Pure: (mark, one reason per part of it, names of the sets that contain the destination).

    is_local: the destination is an address of the node itself, which the table leaves alone.
    """
    inside = tuple(
        name
        for name, networks in sorted(table.sets.items())
        if any(packet.destination in network for network in networks)
    )
    mark, reasons = 0, []
    if bits := table.group_marks.get(packet.group, 0):
        mark |= bits
        reasons.append(f"{bits:#x}: link group {packet.group} of {packet.ifname} belongs to ENI table {bits}")
    leaves = table.classifies and packet.destination.version == 4 and not inside and not is_local
    if leaves:
        mark |= layout.MARK_PRIMARY
        reasons.append(f"{layout.MARK_PRIMARY:#x}: {packet.destination} is outside the VPC: by the primary ENI")
    return mark, tuple(reasons), inside


def trace(route: NetlinkSocket, table: TableRead, host_ifname: str, source: Address, destination: Address) -> PathSeen:
    """See `KernelDatapath.trace`.

    Raises: InvalidRequest, NetlinkRefused, OSError.
    """
    link = seen.link_named(route, host_ifname)
    if link is None:
        raise InvalidRequest(
            Cause.ATTACHMENT_MISSING,
            f"there is no link {host_ifname} on this node",
            remedy="let the runtime delete the sandbox and make it again",
        )
    packet = Packet(ifname=host_ifname, group=link.group, source=source, destination=destination)
    unmarked = _ask(route, link, packet, mark=0)
    is_local = not isinstance(unmarked, str) and unmarked["type"] == 2
    mark, reasons, inside = mark_of(table, packet, is_local=is_local)
    answer = _ask(route, link, packet, mark=mark)
    if isinstance(answer, str):
        return PathSeen(mark=mark, mark_reasons=reasons, inside_sets=inside, refusal=answer)
    attrs = dict(answer["attrs"])
    table_id = attrs.get("RTA_TABLE", answer["table"])
    out = _link_with_index(route, attrs.get("RTA_OIF", 0))
    pref, text = _deciding_rule(route, packet, mark, table_id)
    return PathSeen(
        mark=mark,
        mark_reasons=reasons,
        inside_sets=inside,
        rule_pref=pref,
        rule=text,
        table_id=table_id,
        route_type=_ROUTE_TYPES.get(answer["type"], str(answer["type"])),
        out_ifname=out.ifname if out else "",
        out_mac=Mac(out.mac) if out else None,
        gateway=ip_address(attrs["RTA_GATEWAY"]) if "RTA_GATEWAY" in attrs else None,
        snat_address=_translated(table, packet, out, inside),
    )


def _translated(table: TableRead, packet: Packet, out: LinkSeen | None, inside: tuple[str, ...]) -> IPv4Address | None:
    if table.snat is None or out is None or inside or packet.destination.version != 4:
        return None
    ifname, address = table.snat
    return address if out.ifname == ifname and packet.source != address else None


def _ask(route: NetlinkSocket, link: LinkSeen, packet: Packet, *, mark: int) -> Any:
    """The decoded route, or the kernel's error name when there is none."""
    bits = packet.destination.max_prefixlen
    request = rtmsg()
    request["header"]["type"] = _RTM_GETROUTE
    request["header"]["flags"] = NLM_F_REQUEST
    request["family"] = AF_INET if packet.destination.version == 4 else AF_INET6
    request["dst_len"] = request["src_len"] = bits
    request["flags"] = _RTM_F_LOOKUP_TABLE
    request["attrs"] = [
        ("RTA_DST", str(packet.destination)),
        ("RTA_SRC", str(packet.source)),
        ("RTA_IIF", link.ifindex),
        ("RTA_MARK", mark),
    ]
    request.encode()
    try:
        found = route.get(bytes(request.data))
    except NetlinkRefused as exc:
        if exc.errno not in {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EXDEV, errno.EINVAL, errno.EACCES}:
            raise
        return errno.errorcode[exc.errno]
    return "ESRCH" if found is None else _decode(rtmsg, found)


def _decode(shape: Any, message: Message) -> Any:
    decoded = shape(HEADER.pack(HEADER.size + len(message.payload), message.kind, 0, 0, 0) + bytes(message.payload))
    decoded.decode()
    return decoded


def _link_with_index(route: NetlinkSocket, ifindex: int) -> LinkSeen | None:
    links = (messages.parse_link(one.payload) for one in route.dump(messages.dump_links()))
    return next((link for link in links if link.ifindex == ifindex), None)


def _deciding_rule(route: NetlinkSocket, packet: Packet, mark: int, table_id: int) -> tuple[int | None, str]:
    family = AF_INET if packet.destination.version == 4 else AF_INET6
    rules = [_decode(fibmsg, one) for one in route.dump(cold.dump_rules(family))]
    for rule in sorted(rules, key=lambda rule: dict(rule["attrs"]).get("FRA_PRIORITY", 0)):
        attrs = dict(rule["attrs"])
        leads_there = rule["action"] == _FR_ACT_TO_TBL and attrs.get("FRA_TABLE", rule["table"]) == table_id
        if leads_there and _matches(rule, attrs, packet, mark):
            return attrs.get("FRA_PRIORITY", 0), _as_text(rule, attrs, table_id)
    return None, ""


def _matches(rule: Any, attrs: Mapping[str, Any], packet: Packet, mark: int) -> bool:
    if not attrs.keys() <= _EXPLAINED or attrs.get("FRA_IIFNAME", packet.ifname) != packet.ifname:
        return False
    for attribute, length, address in (
        ("FRA_SRC", rule["src_len"], packet.source),
        ("FRA_DST", rule["dst_len"], packet.destination),
    ):
        if attribute in attrs and address not in ip_network(f"{attrs[attribute]}/{length}", strict=False):
            return False
    mask = attrs.get("FRA_FWMASK", 0xFFFFFFFF if "FRA_FWMARK" in attrs else 0)
    return bool(mark & mask == attrs.get("FRA_FWMARK", 0) & mask)


def _as_text(rule: Any, attrs: Mapping[str, Any], table_id: int) -> str:
    source = f"{attrs['FRA_SRC']}/{rule['src_len']}" if "FRA_SRC" in attrs else "all"
    words = [f"{attrs.get('FRA_PRIORITY', 0)}: from {source}"]
    if "FRA_DST" in attrs:
        words.append(f"to {attrs['FRA_DST']}/{rule['dst_len']}")
    if "FRA_FWMARK" in attrs:
        words.append(f"fwmark {attrs['FRA_FWMARK']:#x}/{attrs.get('FRA_FWMASK', 0xFFFFFFFF):#x}")
    if "FRA_IIFNAME" in attrs:
        words.append(f"iif {attrs['FRA_IIFNAME']}")
    return " ".join([*words, f"lookup {table_id}"])


def _networks(element: Any) -> tuple[IPv4Network, ...]:
    match element:
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            return (IPv4Network(f"{address}/{length}"),)
        case {"range": [str(first), str(last)]}:
            return tuple(summarize_address_range(IPv4Address(first), IPv4Address(last)))
        case str(address):
            return (IPv4Network(address),)
    return ()


def _bits_set(expressions: Sequence[Any]) -> int:
    for one in expressions:
        match one:
            case {"mangle": {"value": {"|": [_, int(bits)]}}}:
                return bits
    return 0


def _snat(expressions: Sequence[Any]) -> tuple[str, IPv4Address] | None:
    ifname, address = "", None
    for one in expressions:
        match one:
            case {"match": {"left": {"meta": {"key": "oifname"}}, "right": str(name)}}:
                ifname = name
            case {"snat": {"addr": str(text)}}:
                address = IPv4Address(text)
    return (ifname, address) if address is not None else None
