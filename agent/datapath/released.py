"""What a DEL says of an address in the same breath as it takes the pod's route away: it cools, and until when.

    $ ip route show table released
    unreachable 10.0.0.11 proto enoki metric 5851

The metric is the second of uptime (/proc/uptime) at which the cooldown is over; uptime and routes end together, at a
reboot. The route stands for the moment it takes to enter the address into the nftables set `cooling`, which makes the
kernel walk every chain in the namespace and therefore happens after the DEL (docs/decisions/0045). Layout: struct
rtmsg, include/uapi/linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import math
import struct
import time
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address
from typing import Final

from agent.datapath import layout
from agent.datapath.desired import AF_INET
from agent.datapath.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    NetlinkRefused,
    NetlinkSocket,
    attribute,
    attributes,
    message,
)

_NEWROUTE: Final = 24
_DELROUTE: Final = 25
_GETROUTE: Final = 26
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_U32: Final = struct.Struct("=I")
_DESTINATION: Final = 1
_PRIORITY: Final = 6
_TABLE: Final = 15
_SCOPE_UNIVERSE: Final = 0
_UNREACHABLE: Final = 7
_GONE: Final = frozenset({errno.ESRCH})


def uptime_s() -> float:
    """Seconds since the machine booted, suspended ones too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def put(route: NetlinkSocket, addresses: Iterable[IPv4Address], until_s: float) -> None:
    """Say that every address cools until that moment of uptime, or the end of its second. Repeatable.

    Raises: NetlinkRefused, OSError.
    """
    flags = NLM_F_CREATE | NLM_F_REPLACE
    batch = [message(_NEWROUTE, flags, _route(address, until_s)) for address in addresses]
    if batch:
        route.apply(batch)


def read(route: NetlinkSocket) -> Mapping[IPv4Address, int]:
    """Every address in the table, and the second of uptime at which its cooldown ends or has ended.

    Raises: NetlinkRefused, OSError.
    """
    header = _ROUTE.pack(AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
    try:
        dumped = route.dump(message(_GETROUTE, NLM_F_DUMP, header + _number(_TABLE, layout.RELEASED_TABLE)))
    except NetlinkRefused as exc:
        # The table exists only while it holds a route.
        if exc.errno != errno.ENOENT:
            raise
        return {}
    found: dict[IPv4Address, int] = {}
    for each in dumped:
        address, ends_s = _parsed(each.payload)
        if address is not None:
            found[address] = max(ends_s, found.get(address, 0))
    return found


def delete(route: NetlinkSocket, released: Mapping[IPv4Address, float]) -> None:
    """Take these routes away, each with the moment it was put for. Gone already is success.

    Raises: NetlinkRefused, OSError.
    """
    batch = [message(_DELROUTE, 0, _route(address, until_s)) for address, until_s in released.items()]
    if batch:
        route.apply(batch, ignore=_GONE)


def _route(address: IPv4Address, until_s: float) -> bytes:
    header = _ROUTE.pack(AF_INET, 32, 0, 0, 0, layout.PROTOCOL, _SCOPE_UNIVERSE, _UNREACHABLE, 0)
    rest = attribute(_DESTINATION, address.packed) + _number(_PRIORITY, math.ceil(until_s))
    return header + rest + _number(_TABLE, layout.RELEASED_TABLE)


def _parsed(payload: memoryview) -> tuple[IPv4Address | None, int]:
    """The address and its second; no address for what we never write."""
    family, bits, _, _, _, protocol, _, kind, _ = _ROUTE.unpack_from(payload)
    found = dict(attributes(payload, _ROUTE.size))
    ours = (family, bits, protocol, kind) == (AF_INET, 32, layout.PROTOCOL, _UNREACHABLE)
    if not ours or _DESTINATION not in found or _PRIORITY not in found:
        return None, 0
    return IPv4Address(bytes(found[_DESTINATION])), int(_U32.unpack(found[_PRIORITY])[0])


def _number(name: int, value: int) -> bytes:
    return attribute(name, _U32.pack(value))
