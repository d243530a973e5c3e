"""What a forwarded packet costs with more and more pods: our layout and the AWS plugin's, alternately in one run.

A pod of a secondary ENI sends 18-byte UDP datagrams of one established flow to an address elsewhere in the VPC. They
are made once and sent by sendmmsg through a packet socket on the pod's interface, from a thread pinned to one core.
veth hands a packet on within the sender's softirq, so that one core does all of it: the sending, the node's forwarding,
and a drop at the ingress hook where the wire would be. Time per packet is 1 / packet rate of that core, sending
included, in both layouts alike; what the sending alone costs is measured the same way, into a drop at once.

(The kernel's own generator, pktgen, is not in every kernel; a packet socket without a queue is nearest to it.)

The sender is the pod in the middle, so that it walks as many rules as the average pod does. Slices of 1,000 packets
alternate between the layouts. What disturbs a slice (other work on the machine) only adds to it, so a layout's figure
is the 10th percentile of its slices; the median is printed beside it.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import socket
import statistics
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address

from agent.datapath.kernel import KernelDatapath
from agent.datapath.policy import DatapathPolicy
from bench import aws_layout
from bench.datapath_nodes import (
    ELSEWHERE,
    FIRST_POD,
    INSTANCE,
    PRIMARY,
    SECONDARY,
    SECONDARY_ENI,
    SECONDARY_TABLE,
    SUBNET,
    VPC,
    BenchNode,
    Netns,
    make_netns,
    make_node,
    wiring,
)
from bench.datapath_saturated import Arrivals, Flood, Rate, steer
from bench.datapath_saturated import rates as saturated_rates

POD_COUNTS = (4, 30, 110, 250, 737)
_BATCH = 250
_SLICE_PACKETS = 1_000
_SLICES = 400
_WARM_UP_SLICES = 10
_PORT = 9000
_SOL_PACKET, _PACKET_QDISC_BYPASS = 263, 20
"""include/linux/socket.h, include/uapi/linux/if_packet.h."""

_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr (recvmsg(2))."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vector", ctypes.POINTER(_Vector)),
        ("vector_length", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr (sendmmsg(2))."""

    _fields_ = (("header", _Header), ("sent", ctypes.c_uint))


def _frame(source: IPv4Address, destination: IPv4Address, ports: tuple[int, int], macs: tuple[str, str]) -> bytes:
    """Ethernet, IPv4 and UDP (without checksum) around 18 bytes. ports, macs: source first."""
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 46, 0, 0x4000, 64, 17, 0, source.packed, destination.packed)
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + header[12:]
    ethernet = bytes.fromhex((macs[1] + macs[0]).replace(":", "")) + b"\x08\x00"
    return ethernet + header + struct.pack("!HHHH", *ports, 26, 0) + bytes(18)


def _packet_socket(netns: Netns, ifname: str) -> socket.socket:
    with netns.entered():
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    made.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
    made.bind((ifname, 0))
    return made


def _link_address(netns: Netns, ifname: str) -> str:
    listed = json.loads(netns.run("ip", "-json", "link", "show", ifname))
    return str(listed[0]["address"])


class Sender:
    """One flow out of a pod, many packets per call.

    gateway_mac: of the host veth.
    """

    def __init__(self, netns: Netns, ifname: str, source: IPv4Address, gateway_mac: str) -> None:
        self._source = source
        self._socket = _packet_socket(netns, ifname)
        macs = (_link_address(netns, ifname), gateway_mac)
        frame = _frame(source, ELSEWHERE, (_PORT, _PORT), macs)
        self._payload = ctypes.create_string_buffer(frame, len(frame))
        self._vector = _Vector(ctypes.addressof(self._payload), len(frame))
        self._batch = (_Message * _BATCH)()
        for each in self._batch:
            each.header.vector, each.header.vector_length = ctypes.pointer(self._vector), 1
        with netns.entered():
            self._listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def establish(self, node: BenchNode) -> None:
        """One packet out and one answer in, so that connection tracking calls the flow established."""
        self._listener.bind((str(self._source), _PORT))
        self._listener.settimeout(5)
        with _packet_socket(node.sink, "leg1") as far:
            self._socket.send(self._payload.raw)
            macs = (_link_address(node.sink, "leg1"), _link_address(node.netns, "eth1"))
            far.send(_frame(ELSEWHERE, self._source, (_PORT, _PORT), macs))
        self._listener.recv(100)

    def send(self, packet_count: int) -> float:
        """Seconds it took."""
        started_s = time.perf_counter()
        for _ in range(packet_count // _BATCH):
            if (sent := _libc.sendmmsg(self._socket.fileno(), self._batch, _BATCH, 0)) != _BATCH:
                raise OSError(ctypes.get_errno(), f"sendmmsg sent {sent} of {_BATCH}")
        return time.perf_counter() - started_s

    def send_batch(self) -> int:
        """The number of packets offered: all, or as many as it took until the queue behind the link refused one."""
        sent: int = _libc.sendmmsg(self._socket.fileno(), self._batch, _BATCH, 0)
        if sent < 0 and ctypes.get_errno() != errno.ENOBUFS:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return min(max(sent, 0) + 1, _BATCH)

    def close(self) -> None:
        self._socket.close()
        self._listener.close()


@dataclass(slots=True)
class Side:
    """One layout on its own node.

    grow: bring the node to so many pods. pods: what can send, by index.
    """

    name: str
    node: BenchNode
    grow: Callable[[int], None]
    pods: dict[int, Netns]

    def host_ifname(self, index: int) -> str:
        """The host veth of a pod."""
        address = str(FIRST_POD + index)
        routed = json.loads(self.node.netns.run("ip", "-json", "route", "show", "table", "all", address))
        return str(routed[0]["dev"])

    def sender(self, index: int) -> Sender:
        netns, address = self.pods[index], FIRST_POD + index
        made = Sender(netns, "eth0", address, _link_address(self.node.netns, self.host_ifname(index)))
        made.establish(self.node)
        return made

    def received(self) -> int:
        """Packets at the secondary ENI's far end."""
        return int(
            self.node.sink.run("nft", "list", "counter", "netdev", "sink1", "got").split("packets ")[1].split()[0]
        )

    def rule_count(self) -> int:
        return len(self.node.netns.run("ip", "rule").splitlines())


def _table_of(index: int) -> int | None:
    """Every fourth pod is on the primary ENI: of m5.4xlarge's first 116 pods, 29 are."""
    return None if index % 4 == 0 else SECONDARY_TABLE


def middle(count: int) -> int:
    """The index of the pod that sends: on the secondary ENI, with as many pods before it as after it."""
    index = count // 2
    return index if _table_of(index) else index + 1


def our_side(runner: asyncio.Runner) -> tuple[Side, Callable[[], None]]:
    node = make_node()
    datapath = KernelDatapath(DatapathPolicy(names_directory=None))
    pods: dict[int, Netns] = {}

    async def prepare() -> None:
        await datapath.prepare_node(INSTANCE)
        await datapath.ensure_eni(SECONDARY_ENI)

    async def wire(index: int) -> None:
        await datapath.wire(wiring(pods[index], index, table_id=_table_of(index) or 254))

    def grow(count: int) -> None:
        with node.netns.entered():
            for index in range(len(pods), count):
                pods[index] = make_netns()
                runner.run(wire(index))

    with node.netns.entered():
        runner.run(prepare())
    return Side("ours", node, grow, pods), datapath.close


def aws_side(backend: aws_layout.Backend) -> Side:
    node = make_node()
    crowd = make_netns()
    pods = {middle(count): make_netns() for count in POD_COUNTS}
    made = 0
    node.netns.run("sh", "-ec", aws_layout.node_script(backend, "eth0", PRIMARY, [VPC]))
    node.netns.ip(aws_layout.eni_batch("eth1", SECONDARY, SUBNET, SECONDARY_TABLE))

    def grow(count: int) -> None:
        nonlocal made
        batch = []
        inside_batches: list[tuple[Netns, str]] = []
        for index in range(made, count):
            name, mac = aws_layout.veth_name("bench", f"pod-{index}"), f"02:cc:00:00:{index >> 8:02x}:{index & 255:02x}"
            inside, far = (pods[index], "eth0") if index in pods else (crowd, f"eth{index}")
            batch.append(
                f"link add {name} address {mac} mtu 9001 type veth peer name {far} mtu 9001 netns {inside.path}\n"
                f"link set {name} up\n" + aws_layout.pod_batch(name, FIRST_POD + index, _table_of(index))
            )
            if index in pods:
                inside_batches.append((inside, aws_layout.pod_inside_batch("eth0", FIRST_POD + index, mac)))
        node.netns.ip("".join(batch))
        for inside, text in inside_batches:
            inside.ip(text)
        made = count

    return Side(f"AWS layout ({backend})", node, grow, pods)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Nanoseconds per packet: the 10th percentile of the slices, and their median."""

    pods: int
    rules: int
    ns: float
    median_ns: float


def _undisturbed(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=10)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """By side, for each of POD_COUNTS: with one core for everything, and with one that only forwards (empty where there
    is only one)."""

    costs: dict[str, list[Cost]]
    rates: dict[str, list[Rate]]


def measure(sides: list[Side]) -> Measured:
    costs: dict[str, list[Cost]] = {side.name: [] for side in sides}
    rates: dict[str, list[Rate]] = {side.name: [] for side in sides}
    cores = os.sched_getaffinity(0)
    for count in POD_COUNTS:
        for side in sides:
            side.grow(count)
        senders = [side.sender(middle(count)) for side in sides]
        os.sched_setaffinity(0, {max(cores)})
        try:
            for side, cost in zip(sides, _alternate(sides, senders, count), strict=True):
                costs[side.name].append(cost)
            if len(cores) > 1:
                for side, rate in zip(sides, _saturate(sides, senders, count, cores), strict=True):
                    rates[side.name].append(rate)
        finally:
            os.sched_setaffinity(0, cores)
            for sender in senders:
                sender.close()
    return Measured(costs=costs, rates=rates)


def _alternate(sides: list[Side], senders: list[Sender], count: int) -> list[Cost]:
    slices: list[list[float]] = [[] for _ in sides]
    before = [side.received() for side in sides]
    for number in range(_WARM_UP_SLICES + _SLICES):
        for sender, taken in zip(senders, slices, strict=True):
            elapsed_s = sender.send(_SLICE_PACKETS)
            if number >= _WARM_UP_SLICES:
                taken.append(elapsed_s / _SLICE_PACKETS * 1e9)
    costs = []
    for side, taken, had in zip(sides, slices, before, strict=True):
        arrived = side.received() - had
        if arrived != (_WARM_UP_SLICES + _SLICES) * _SLICE_PACKETS:
            raise RuntimeError(f"{side.name}: only {arrived} packets left by the secondary ENI")
        costs.append(
            Cost(pods=count, rules=side.rule_count(), ns=_undisturbed(taken), median_ns=statistics.median(taken))
        )
    return costs


def _saturate(sides: list[Side], senders: list[Sender], count: int, cores: set[int]) -> list[Rate]:
    with ExitStack() as stack:
        floods = []
        for side, sender in zip(sides, senders, strict=True):
            ifname = side.host_ifname(middle(count))
            steer(side.node.netns, ifname, min(cores))
            stack.callback(steer, side.node.netns, ifname, None)
            arrivals = Arrivals(side.node.sink, "leg1")
            stack.callback(arrivals.close)
            floods.append(Flood(arrivals, sender.send_batch))
        return saturated_rates(floods, count)


def sending_alone_ns() -> float:
    """What the sender costs by itself: into a veth whose far end drops at the ingress hook."""
    near, far = make_netns(), make_netns()
    near.ip(f"link add eth0 type veth peer name far netns {far.path}\nlink set eth0 up\n")
    far.ip("link set far up\n")
    far.run("nft", "table netdev t { chain c { type filter hook ingress device far priority 0; counter drop; }; }")
    sender = Sender(near, "eth0", FIRST_POD, _link_address(far, "far"))
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        taken = [sender.send(_SLICE_PACKETS) / _SLICE_PACKETS * 1e9 for _ in range(_WARM_UP_SLICES + _SLICES)]
    finally:
        os.sched_setaffinity(0, cores)
        sender.close()
    return _undisturbed(taken[_WARM_UP_SLICES:])


def report() -> str:
    alone_ns = sending_alone_ns()
    with asyncio.Runner() as runner:
        ours, close = our_side(runner)
        sides = [ours, aws_side(aws_layout.Backend.NFT_CONNMARK), aws_side(aws_layout.Backend.LEGACY)]
        try:
            measured = measure(sides)
        finally:
            close()
    text = ["One core sends and forwards:", _table(measured.costs, alone_ns)]
    if all(measured.rates.values()):
        text += ["One core sends, another forwards:", _rate_table(measured.rates)]
    else:
        text.append("With one core the sending cannot be taken out of the figures.")
    return "\n\n".join(text)


def _table(costs: dict[str, list[Cost]], alone_ns: float) -> str:
    names = list(costs)
    titles = [f"{name}: rules | ns (median)" for name in names]
    titles += [f"rate, ours / {name}" for name in names[1:]]
    titles += [f"without the sending, {name} / ours" for name in names[1:]]
    lines = [f"| pods | {' | '.join(titles)} |", "|" + "---|" * (4 * len(names) - 1)]
    for ours, *theirs in zip(*costs.values(), strict=True):
        cells = [f"{cost.rules:,} | {cost.ns:,.0f} ({cost.median_ns:,.0f})" for cost in (ours, *theirs)]
        cells += [f"{cost.ns / ours.ns:.2f}x" for cost in theirs]
        cells += [f"{(cost.ns - alone_ns) / (ours.ns - alone_ns):.2f}x" for cost in theirs]
        lines.append(f"| {ours.pods} | {' | '.join(cells)} |")
    own = {cost.pods: cost.ns for cost in costs[names[0]]}
    theirs_at_250 = next(cost.ns for cost in costs[names[1]] if cost.pods == 250)
    verdict = (
        f"Ours at 737 pods against ours at 4: {own[737] / own[4]:.3f}x (to reach: at most 1.05x). "
        f"Our packet rate at 250 pods against the AWS layout's: {theirs_at_250 / own[250]:.2f}x (to reach: at least "
        f"2.5x). The sending alone, which is part of every figure: {alone_ns:,.0f} ns."
    )
    return "\n".join([*lines, "", verdict])


def _rate_table(rates: dict[str, list[Rate]]) -> str:
    names = list(rates)
    titles = [f"{name}: packets/s (median)" for name in names]
    titles += [f"ours / {name}" for name in names[1:]]
    lines = [f"| pods | {' | '.join(titles)} |", "|" + "---|" * (2 * len(names))]
    for ours, *theirs in zip(*rates.values(), strict=True):
        cells = [f"{rate.per_s:,.0f} ({rate.median_per_s:,.0f})" for rate in (ours, *theirs)]
        cells += [f"{ours.per_s / rate.per_s:.2f}x" for rate in theirs]
        lines.append(f"| {ours.pods} | {' | '.join(cells)} |")
    own = {rate.pods: rate.per_s for rate in rates[names[0]]}
    theirs_at_250 = next(rate.per_s for rate in rates[names[1]] if rate.pods == 250)
    verdict = (
        f"Ours at 4 pods against ours at 737: {own[4] / own[737]:.3f}x (to reach: at most 1.05x). "
        f"Our packet rate at 250 pods against the AWS layout's: {own[250] / theirs_at_250:.2f}x (to reach: at least "
        "2.5x)."
    )
    return "\n".join([*lines, "", verdict])


if __name__ == "__main__":
    print(report())
