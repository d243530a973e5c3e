"""One exchange between two places: a question there, the answer back, and what the answering side saw.

TCP ends with a reset that the client has seen, so nothing of an exchange is under way when it is over.
"""

from __future__ import annotations

import itertools
import socket
import struct
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from tests.kernel.datapath_node import Netns

ANSWER_S: Final = 3.0
"""For an exchange that should work: only a failing test waits this long."""
SILENCE_S: Final = 0.06
"""For one that should not."""

_ICMP_ECHO_REPLY: Final = 0
_ICMP_ECHO: Final = 8
_IP_PKTINFO: Final = 8
"""include/uapi/linux/in.h; Python 3.11 has no name for it."""
_count = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """peer: the source address the server saw. port_kept: whether its source port was the client's own (None: ICMP)."""

    peer: IPv4Address
    port_kept: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Who asks whom. target, port: what the client sends to; server, server_port: where the server listens."""

    client: Netns
    source: IPv4Address | None
    target: IPv4Address
    port: int
    server: Netns
    server_port: int


def ask(protocol: str, path: Path, wait_s: float) -> Answer | None:
    """None when no question or no answer came through within `wait_s`."""
    with ExitStack() as stack:
        try:
            return {"tcp": _tcp, "udp": _udp, "icmp": _icmp}[protocol](path, wait_s, stack)
        except (TimeoutError, ConnectionError):
            return None
        except OSError as exc:
            if exc.errno in (113, 101):  # EHOSTUNREACH, ENETUNREACH: an answer of its own kind, and no path
                return None
            raise


def _socket(netns: Netns, kind: int, protocol: int, wait_s: float, stack: ExitStack) -> socket.socket:
    with netns.entered():
        made = stack.enter_context(socket.socket(socket.AF_INET, kind, protocol))
    made.settimeout(wait_s)
    return made


def _tcp(path: Path, wait_s: float, stack: ExitStack) -> Answer:
    listener = _socket(path.server, socket.SOCK_STREAM, 0, wait_s, stack)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", path.server_port))
    listener.listen(1)
    client = _socket(path.client, socket.SOCK_STREAM, 0, wait_s, stack)
    if path.source:
        client.bind((str(path.source), 0))
    client.connect((str(path.target), path.port))
    server, peer = listener.accept()
    stack.enter_context(server)
    server.settimeout(wait_s)
    client.sendall(b"question")
    assert server.recv(100) == b"question"
    server.sendall(b"answer")
    assert client.recv(100) == b"answer"
    own_port = client.getsockname()[1]
    server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    server.close()
    with suppress(ConnectionResetError):
        client.recv(100)
    return Answer(peer=IPv4Address(peer[0]), port_kept=peer[1] == own_port)


def _udp(path: Path, wait_s: float, stack: ExitStack) -> Answer:
    server = _socket(path.server, socket.SOCK_DGRAM, 0, wait_s, stack)
    # Bound to the wildcard, a server would answer with the address of the link: wrong for an ENI's own address.
    server.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    server.bind(("", path.server_port))
    client = _socket(path.client, socket.SOCK_DGRAM, 0, wait_s, stack)
    if path.source:
        client.bind((str(path.source), 0))
    client.connect((str(path.target), path.port))
    question = f"question {next(_count)}".encode()
    client.send(question)
    received, ancillary, _, peer = server.recvmsg(100, 100)
    assert received == question
    # Answered from the address that was asked, as a server bound to it would.
    server.sendmsg([question], [(level, kind, _from(data)) for level, kind, data in ancillary], 0, peer)
    assert client.recv(100) == question
    return Answer(peer=IPv4Address(peer[0]), port_kept=peer[1] == client.getsockname()[1])


def _from(pktinfo: bytes) -> bytes:
    """struct in_pktinfo (ip(7)): the index cleared, the local address as the source."""
    _, _, asked = struct.unpack("=I4s4s", pktinfo[:12])
    return struct.pack("=I4s4s", 0, asked, bytes(4))


def _icmp(path: Path, wait_s: float, stack: ExitStack) -> Answer:
    watcher = _socket(path.server, socket.SOCK_RAW, socket.IPPROTO_ICMP, wait_s, stack)
    client = _socket(path.client, socket.SOCK_RAW, socket.IPPROTO_ICMP, wait_s, stack)
    if path.source:
        client.bind((str(path.source), 0))
    number = next(_count) & 0xFFFF
    payload = f"question {number}".encode()
    header = struct.pack("!BBHHH", _ICMP_ECHO, 0, 0, number, 1)
    checksum = _checksum(header + payload)
    client.sendto(struct.pack("!BBHHH", _ICMP_ECHO, 0, checksum, number, 1) + payload, (str(path.target), 0))
    peer = _await_icmp(watcher, _ICMP_ECHO, payload, wait_s)
    _await_icmp(client, _ICMP_ECHO_REPLY, payload, wait_s)
    return Answer(peer=peer, port_kept=None)


def _await_icmp(raw: socket.socket, kind: int, payload: bytes, wait_s: float) -> IPv4Address:
    deadline_s = time.monotonic() + wait_s
    while time.monotonic() < deadline_s:
        packet, sender = raw.recvfrom(2000)
        body = packet[(packet[0] & 0x0F) * 4 :]
        if body[0] == kind and body[8:] == payload:
            return IPv4Address(sender[0])
    raise TimeoutError


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
