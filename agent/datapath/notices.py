"""Pure: which of the kernel's notifications say that something of ours may not be as it was made.

Our own changes come back as notifications too. They are told from others' by comparing them with the memory: what is
as it should be needs no look. What is being taken away is no longer in the memory. What has just been made is, and then
its first notifications show it half made, but the last one shows it whole.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from agent.datapath import layout, messages
from agent.datapath.memory import HostMemory
from agent.datapath.messages import RTM_DELNEIGH, RTM_DELROUTE, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE
from agent.datapath.netlink import Message, attributes
from agent.datapath.shaping import RTM_DELQDISC, RTM_NEWQDISC
from agent.ipam.model import Address

_RTM_DELADDR: Final = 21
_RTM_DELRULE: Final = 33
_RTM_NEWNETCONF: Final = 80

_NETCONF_IFINDEX: Final = 1
_NETCONF_FORWARDING: Final = 2
_NETCONF_RP_FILTER: Final = 3
_ALL_LINKS: Final = -1
_NETCONF_HEADER_BYTES: Final = 4
"""struct netconfmsg is one byte, padded (include/uapi/linux/netconf.h)."""

_ADDRESS_HEADER_BYTES: Final = 8
_ADDRESS_LOCAL: Final = 2
_RULE_HEADER_BYTES: Final = 12
_RULE_PROTOCOL: Final = 21
"""struct ifaddrmsg and struct fib_rule_hdr (include/uapi/linux/{if_addr,fib_rules}.h)."""

_QDISC_IFINDEX: Final = struct.Struct("=4xi")
_INT: Final = struct.Struct("=i")

_NFT_NEWGEN: Final = 10 << 8 | 15
_NFT_ELEMENTS: Final = frozenset({10 << 8 | 12, 10 << 8 | 14})
_NFT_TABLE_NAME: Final = 1
_NFT_SET_NAME: Final = 2
_NFGENMSG_BYTES: Final = 4
_OUR_TABLE: Final = layout.NFT_TABLE.encode() + b"\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What a notification says of something of ours. as_made: it is (again) as it should be."""

    about: tuple[str | int | Address, ...]
    as_made: bool


def notice_of(kind: int, payload: memoryview, memory: HostMemory) -> Notice | None:
    """Read a notification about links, routes, rules, neighbours or settings; None when it is about nothing of
    ours."""
    if kind == RTM_NEWLINK:
        return _link(payload, memory)
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        return _route(kind, payload, memory)
    if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
        return _neighbour(kind, payload, memory)
    if kind == _RTM_NEWNETCONF:
        return _settings(payload, memory)
    if kind in (RTM_NEWQDISC, RTM_DELQDISC):
        ifindex = _QDISC_IFINDEX.unpack_from(payload)[0]
        side = memory.side_of(ifindex)
        # Its rate is not looked at here: a new one may be another.
        return None if side is None or side.to_pod is None else Notice(about=("qdisc", ifindex), as_made=False)
    if kind == _RTM_DELADDR:
        found = dict(attributes(payload, _ADDRESS_HEADER_BYTES))
        ours = memory.has_eni_address(bytes(found.get(_ADDRESS_LOCAL, b"")))
        return Notice(about=("address", kind), as_made=False) if ours else None
    if kind == _RTM_DELRULE:
        found = dict(attributes(payload, _RULE_HEADER_BYTES))
        ours = bytes(found.get(_RULE_PROTOCOL, b"")) == bytes((layout.PROTOCOL,))
        return Notice(about=("rule", kind), as_made=False) if ours else None
    return None


class Disturbed(Enum):
    """What of the table a notification is about."""

    NOTHING = auto()
    PORTS = auto()
    TABLE = auto()


def disturbed_of_table(kind: int, payload: memoryview) -> Disturbed:
    """Read an nftables notification. What pods and time change in the table is told apart from the rest of it."""
    if kind == _NFT_NEWGEN:
        return Disturbed.NOTHING
    found = dict(attributes(payload, _NFGENMSG_BYTES))
    if bytes(found.get(_NFT_TABLE_NAME, b"")) != _OUR_TABLE:
        return Disturbed.NOTHING
    if kind not in _NFT_ELEMENTS:
        return Disturbed.TABLE
    name = bytes(found.get(_NFT_SET_NAME, b"")).rstrip(b"\0").decode(errors="replace")
    if name == layout.COOLING_SET:
        return Disturbed.NOTHING
    return Disturbed.PORTS if name in layout.HOST_PORT_SETS else Disturbed.TABLE


def _link(payload: memoryview, memory: HostMemory) -> Notice | None:
    link = messages.parse_link(payload)
    side = memory.side_of(link.ifindex)
    if side is not None:
        found = (link.ifname, link.mac, link.mtu, link.group, link.alias, link.up)
        as_made = found == (side.ifname, side.mac, side.mtu, side.group, side.alias, True)
    elif memory.has_eni(link.mac) and not layout.is_ours(link.group):
        as_made = memory.is_eni_as_made(link)
    else:
        return None
    return Notice(about=("link", link.ifindex), as_made=as_made)


def _route(kind: int, payload: memoryview, memory: HostMemory) -> Notice | None:
    table_id = messages.table_of(payload)
    if table_id != layout.PODS_TABLE:
        lost = kind == RTM_DELROUTE and memory.has_table(table_id)
        return Notice(about=("table", table_id), as_made=False) if lost else None
    route = messages.parse_pod_route(Message(kind=kind, payload=payload))
    if route is None:
        # Somebody else's, and it may have taken the place of one of ours.
        return Notice(about=("table", table_id), as_made=False) if kind == RTM_NEWROUTE else None
    side = memory.side_of(route.ifindex)
    if side is None or route.address not in side.addresses:
        return None
    return Notice(about=("route", route.address), as_made=kind == RTM_NEWROUTE)


def _neighbour(kind: int, payload: memoryview, memory: HostMemory) -> Notice | None:
    neighbour = messages.parse_neighbour(payload)
    side = None if neighbour is None else memory.side_of(neighbour.ifindex)
    if neighbour is None or side is None or neighbour.address not in side.addresses:
        return None
    as_made = kind == RTM_NEWNEIGH and neighbour.permanent and neighbour.mac == side.pod_mac
    return Notice(about=("neighbour", neighbour.ifindex, neighbour.address), as_made=as_made)


def _settings(payload: memoryview, memory: HostMemory) -> Notice | None:
    values: dict[int, int] = {}
    for name, value in attributes(payload, _NETCONF_HEADER_BYTES):
        if len(value) == _INT.size:
            values[name] = int(_INT.unpack(value)[0])
    ifindex = values.get(_NETCONF_IFINDEX, 0)
    wanted = {_NETCONF_FORWARDING: 1}
    if memory.knows_link(ifindex):
        wanted[_NETCONF_RP_FILTER] = 2 if memory.side_of(ifindex) is None else 1
    elif ifindex != _ALL_LINKS:
        return None
    # One notification is about one setting, or, for a new link, about all of them.
    told = {name: value for name, value in wanted.items() if name in values}
    if not told:
        return None
    return Notice(about=("settings", ifindex), as_made=all(values[name] == value for name, value in told.items()))
