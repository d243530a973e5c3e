"""Pure: which of the kernel's notifications say that something of ours may not be as it was made.

Our own changes come back as notifications too. Most are told from others' by comparing them with the memory: what is as
it should be needs no look. What is being made is not in the memory yet, and what is being taken away no longer.
"""

from __future__ import annotations

import struct
from enum import Enum, auto
from typing import Final

from agent.datapath import layout, messages
from agent.datapath.memory import HostMemory
from agent.datapath.messages import RTM_DELNEIGH, RTM_DELROUTE, RTM_NEWLINK, RTM_NEWNEIGH, RTM_NEWROUTE
from agent.datapath.netlink import Message, attributes
from agent.datapath.shaping import RTM_DELQDISC, RTM_NEWQDISC

_RTM_DELADDR: Final = 21
_RTM_DELRULE: Final = 33
_RTM_NEWNETCONF: Final = 80

_NETCONF_IFINDEX: Final = 1
_NETCONF_FORWARDING: Final = 2
_NETCONF_RP_FILTER: Final = 3
_ALL_LINKS: Final = -1
_NETCONF_HEADER_BYTES: Final = 4
"""struct netconfmsg is one byte, padded (include/uapi/linux/netconf.h)."""

_QDISC_IFINDEX: Final = struct.Struct("=4xi")
_INT: Final = struct.Struct("=i")

_NFT_NEWGEN: Final = 10 << 8 | 15
_NFT_ELEMENTS: Final = frozenset({10 << 8 | 12, 10 << 8 | 14})
_NFT_TABLE_NAME: Final = 1
_NFT_SET_NAME: Final = 2
_NFGENMSG_BYTES: Final = 4
_OUR_TABLE: Final = layout.NFT_TABLE.encode() + b"\0"


def disturbs_node(kind: int, payload: memoryview, memory: HostMemory) -> bool:
    """Whether a notification about links, routes, rules, neighbours or settings is a reason to look at the node."""
    if kind == RTM_NEWLINK:
        return _link_differs(payload, memory)
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        return _route_differs(kind, payload, memory)
    if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
        return _neighbour_differs(kind, payload, memory)
    if kind in (RTM_NEWQDISC, RTM_DELQDISC):
        side = memory.side_of(_QDISC_IFINDEX.unpack_from(payload)[0])
        return side is not None and side.to_pod is not None
    if kind == _RTM_NEWNETCONF:
        return _settings_differ(payload, memory)
    return kind in (_RTM_DELADDR, _RTM_DELRULE)


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


def _link_differs(payload: memoryview, memory: HostMemory) -> bool:
    link = messages.parse_link(payload)
    side = memory.side_of(link.ifindex)
    if side is None:
        return memory.has_eni(link.mac) and not memory.is_eni_as_made(link)
    return (link.ifname, link.mac, link.mtu, link.group, link.alias, link.up) != (
        side.ifname,
        side.mac,
        side.mtu,
        side.group,
        side.alias,
        True,
    )


def _route_differs(kind: int, payload: memoryview, memory: HostMemory) -> bool:
    table_id = messages.table_of(payload)
    if table_id != layout.PODS_TABLE:
        return kind == RTM_DELROUTE and memory.has_table(table_id)
    route = messages.parse_pod_route(Message(kind=kind, payload=payload))
    if route is None:
        # Somebody else's, and it may have taken the place of one of ours.
        return kind == RTM_NEWROUTE
    side = memory.side_of(route.ifindex)
    return side is not None and (kind == RTM_DELROUTE) == (route.address in side.addresses)


def _neighbour_differs(kind: int, payload: memoryview, memory: HostMemory) -> bool:
    neighbour = messages.parse_neighbour(payload)
    side = None if neighbour is None else memory.side_of(neighbour.ifindex)
    if neighbour is None or side is None or neighbour.address not in side.addresses:
        return False
    return kind == RTM_DELNEIGH or not neighbour.permanent or neighbour.mac != side.pod_mac


def _settings_differ(payload: memoryview, memory: HostMemory) -> bool:
    values: dict[int, int] = {}
    for name, value in attributes(payload, _NETCONF_HEADER_BYTES):
        if len(value) == _INT.size:
            values[name] = int(_INT.unpack(value)[0])
    ifindex = values.get(_NETCONF_IFINDEX, 0)
    if values.get(_NETCONF_FORWARDING) == 0 and (ifindex == _ALL_LINKS or memory.knows_link(ifindex)):
        return True
    if memory.side_of(ifindex) is not None:
        return values.get(_NETCONF_RP_FILTER, 1) != 1
    return memory.knows_link(ifindex) and values.get(_NETCONF_RP_FILTER, 2) != 2
