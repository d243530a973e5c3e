"""Token buckets on both ends of a veth, as netlink messages. Each end limits what it sends: the host's end what goes to
the pod, the container's end what comes from it, so that neither an ifb link nor an ingress qdisc is needed.

Layouts: include/uapi/linux/{rtnetlink,pkt_sched}.h; units: net/sched/sch_tbf.c, where a clock tick of the burst is 64
ns (include/net/pkt_sched.h, PSCHED_SHIFT).
"""

from __future__ import annotations

import struct
from typing import Final

from agent.datapath.desired import Bucket
from agent.datapath.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    Message,
    NetlinkSocket,
    attribute,
    attributes,
    message,
)

RTM_NEWQDISC: Final = 36
RTM_DELQDISC: Final = 37
_RTM_GETQDISC: Final = 38
_ROOT: Final = 0xFFFFFFFF
_HANDLE: Final = 1 << 16
_TICK_NS: Final = 64

_TCA_KIND: Final = 1
_TCA_OPTIONS: Final = 2
_TBF_PARAMETERS: Final = 1
_TBF_RATE64: Final = 4
_TBF_BURST: Final = 6
_LINKLAYER_ETHERNET: Final = 1

_TCMSG: Final = struct.Struct("=BxxxiIII")
_RATE: Final = struct.Struct("=BBHhHI")
_QUEUE: Final = struct.Struct("=III")
_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")


def set_bucket(ifindex: int, bucket: Bucket) -> bytes:
    """Make it the link's root qdisc, in place of whatever is there."""
    rate32 = min(bucket.rate_bytes_per_s, 0xFFFFFFFF)
    ticks = min(bucket.burst_bytes * 1_000_000_000 // bucket.rate_bytes_per_s // _TICK_NS, 0xFFFFFFFF)
    parameters = (
        _RATE.pack(0, _LINKLAYER_ETHERNET, 0, 0, 0, rate32)
        + _RATE.pack(0, 0, 0, 0, 0, 0)
        + _QUEUE.pack(bucket.limit_bytes, ticks, 0)
    )
    options = attribute(_TBF_PARAMETERS, parameters) + attribute(_TBF_BURST, _U32.pack(bucket.burst_bytes))
    if rate32 != bucket.rate_bytes_per_s:
        options += attribute(_TBF_RATE64, _U64.pack(bucket.rate_bytes_per_s))
    body = (
        _TCMSG.pack(0, ifindex, _HANDLE, _ROOT, 0) + attribute(_TCA_KIND, b"tbf\0") + attribute(_TCA_OPTIONS, options)
    )
    return message(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_REPLACE, body)


def dump_qdiscs(ifindex: int = 0) -> bytes:
    """The qdiscs of one link, or of all. The kernel does not filter them before Linux 5.x: look at `parse_qdisc`."""
    return message(_RTM_GETQDISC, NLM_F_DUMP, _TCMSG.pack(0, ifindex, 0, 0, 0))


def parse_qdisc(seen: Message) -> tuple[int, Bucket] | None:
    """(interface index, bucket) of a token bucket that is a link's root; None for any other qdisc.

    The kernel does not tell the burst in bytes, only the time it takes at the rate: it comes back rounded, see `alike`.
    """
    _, ifindex, _, parent, _ = _TCMSG.unpack_from(seen.payload)
    found = dict(attributes(seen.payload, _TCMSG.size))
    if parent != _ROOT or bytes(found.get(_TCA_KIND, b"")) != b"tbf\0":
        return None
    options = dict(attributes(found[_TCA_OPTIONS]))
    parameters = options[_TBF_PARAMETERS]
    rate = _RATE.unpack_from(parameters)[5]
    if _TBF_RATE64 in options:
        rate = _U64.unpack(options[_TBF_RATE64])[0]
    limit_bytes, ticks, _ = _QUEUE.unpack_from(parameters, 2 * _RATE.size)
    burst_bytes = ticks * _TICK_NS * rate // 1_000_000_000
    return ifindex, Bucket(rate_bytes_per_s=rate, burst_bytes=burst_bytes, limit_bytes=limit_bytes)


def bucket_of(route: NetlinkSocket, ifindex: int) -> Bucket | None:
    """Raises: NetlinkRefused, OSError."""
    found = (parse_qdisc(seen) for seen in route.dump(dump_qdiscs(ifindex)))
    return next((each[1] for each in found if each is not None and each[0] == ifindex), None)


def buckets(route: NetlinkSocket) -> dict[int, Bucket]:
    """Every token bucket that is the root of a link, by interface index. Raises: NetlinkRefused, OSError."""
    return dict(found for each in route.dump(dump_qdiscs()) if (found := parse_qdisc(each)) is not None)
