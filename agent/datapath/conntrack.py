"""Forgetting connections, by ctnetlink: of an address that is released, and of a UDP port that changes hands.

The kernel does the looking: a deletion that carries a filter takes every entry that matches, in one message. It walks
the whole table, some 50 ns an entry, and copies nothing out. A kernel that does not know filtered deletion (before
6.12) refuses the message, because the tuple in it is incomplete; then a filtered dump (5.8) says what to delete, and
before that a whole one. Layouts: include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from agent.datapath.netlink import (
    NETLINK_NETFILTER,
    NLM_F_DUMP,
    NetlinkSocket,
    Refusal,
    attribute,
    attributes,
    message,
)

_SUBSYSTEM: Final = 1
_GET: Final = _SUBSYSTEM << 8 | 1
_DELETE: Final = _SUBSYSTEM << 8 | 2
_AF_INET: Final = 2
_NFGENMSG: Final = struct.Struct(">BBH")
_U16_BE: Final = struct.Struct(">H")
_U32: Final = struct.Struct("=I")
_NESTED: Final = 0x8000

_TUPLE_ORIGINAL: Final = 1
_TUPLE_REPLY: Final = 2
_FILTER: Final = 25
_TUPLE_IP: Final = 1
_TUPLE_PROTOCOL: Final = 2
_IP_V4_SOURCE: Final = 1
_IP_V4_DESTINATION: Final = 2
_PROTOCOL_NUMBER: Final = 1
_PROTOCOL_DESTINATION_PORT: Final = 3
_FILTER_ORIGINAL_FLAGS: Final = 1
_FILTER_REPLY_FLAGS: Final = 2
_MATCH_SOURCE: Final = 1 << 0
_MATCH_DESTINATION: Final = 1 << 1
_MATCH_PROTOCOL: Final = 1 << 3
_MATCH_DESTINATION_PORT: Final = 1 << 5

_UDP: Final = 17
_GONE: Final = errno.ENOENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Connections whose tuple in one direction has all of this. None matches everything."""

    reply: bool = False
    source: IPv4Address | None = None
    destination: IPv4Address | None = None
    udp_destination_port: int | None = None

    def encoded(self) -> bytes:
        """The tuple and the filter that says which of its members count."""
        flags, address, protocol = 0, b"", b""
        if self.source is not None:
            flags |= _MATCH_SOURCE
            address += attribute(_IP_V4_SOURCE, self.source.packed)
        if self.destination is not None:
            flags |= _MATCH_DESTINATION
            address += attribute(_IP_V4_DESTINATION, self.destination.packed)
        if self.udp_destination_port is not None:
            flags |= _MATCH_PROTOCOL | _MATCH_DESTINATION_PORT
            protocol += attribute(_PROTOCOL_NUMBER, bytes((_UDP,)))
            protocol += attribute(_PROTOCOL_DESTINATION_PORT, _U16_BE.pack(self.udp_destination_port))
        members = attribute(_TUPLE_IP | _NESTED, address) if address else b""
        members += attribute(_TUPLE_PROTOCOL | _NESTED, protocol) if protocol else b""
        flags_name = _FILTER_REPLY_FLAGS if self.reply else _FILTER_ORIGINAL_FLAGS
        return attribute(self.tuple_name | _NESTED, members) + attribute(
            _FILTER | _NESTED, attribute(flags_name, _U32.pack(flags))
        )

    @property
    def tuple_name(self) -> int:
        return _TUPLE_REPLY if self.reply else _TUPLE_ORIGINAL

    def matches(self, encoded: memoryview) -> bool:
        """Whether a tuple read from the kernel has all of this."""
        source = destination = b""
        protocol = port = 0
        for name, value in attributes(encoded):
            inner = dict(attributes(value))
            if name == _TUPLE_IP:
                source = bytes(inner.get(_IP_V4_SOURCE, b""))
                destination = bytes(inner.get(_IP_V4_DESTINATION, b""))
            elif name == _TUPLE_PROTOCOL:
                protocol = inner[_PROTOCOL_NUMBER][0] if _PROTOCOL_NUMBER in inner else 0
                if _PROTOCOL_DESTINATION_PORT in inner:
                    port = _U16_BE.unpack(inner[_PROTOCOL_DESTINATION_PORT])[0]
        return (
            (self.source is None or self.source.packed == source)
            and (self.destination is None or self.destination.packed == destination)
            and (self.udp_destination_port is None or (protocol, port) == (_UDP, self.udp_destination_port))
        )


def of_pod(address: IPv4Address) -> tuple[Match, ...]:
    """Every connection a pod has: those it opened, and those whose other end hears it answer, whatever address they
    were opened to."""
    return Match(source=address), Match(reply=True, source=address)


def to_udp_port(port: int, addresses: Sequence[IPv4Address]) -> tuple[Match, ...]:
    """Datagrams to a port of the node: an entry made before the port was mapped keeps them from the pod."""
    return tuple(Match(destination=address, udp_destination_port=port) for address in addresses)


def delete_matching(match: Match) -> bytes:
    """ENOENT or success when nothing matches; EINVAL from a kernel that does not know filtered deletion."""
    return message(_DELETE, 0, _NFGENMSG.pack(_AF_INET, 0, 0) + match.encoded())


def dump_matching(match: Match) -> bytes:
    """A kernel that does not know the filter answers with everything."""
    return message(_GET, NLM_F_DUMP, _NFGENMSG.pack(_AF_INET, 0, 0) + match.encoded())


def forget(matches: Sequence[Match]) -> None:
    """Delete every connection that one of `matches` describes. Blocking. Nothing to delete is success.

    Raises: NetlinkRefused, OSError.
    """
    if not matches:
        return
    netfilter = NetlinkSocket(NETLINK_NETFILTER)
    try:
        for refusal in _refusals(netfilter, [delete_matching(match) for match in matches]):
            if refusal.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise refusal.as_error()
            one_by_one = tuple(_deletions(netfilter, matches[refusal.position]))
            for failed in _refusals(netfilter, one_by_one):
                raise failed.as_error()
    finally:
        netfilter.close()


def _refusals(netfilter: NetlinkSocket, messages: Sequence[bytes]) -> tuple[Refusal, ...]:
    if not messages:
        return ()
    return tuple(refusal for refusal in netfilter.batch(messages) if refusal.errno != _GONE)


def _deletions(netfilter: NetlinkSocket, match: Match) -> Iterator[bytes]:
    for seen in netfilter.dump(dump_matching(match)):
        tuples = dict(attributes(seen.payload, _NFGENMSG.size))
        if match.tuple_name in tuples and match.matches(tuples[match.tuple_name]):
            original = attribute(_TUPLE_ORIGINAL | _NESTED, bytes(tuples[_TUPLE_ORIGINAL]))
            yield message(_DELETE, 0, _NFGENMSG.pack(_AF_INET, 0, 0) + original)
