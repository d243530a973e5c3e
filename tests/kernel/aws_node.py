"""A node as the AWS plugin leaves it, with pods, its file, and open TCP streams through all of them."""

from __future__ import annotations

import hashlib
import json
import selectors
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from bench import aws_layout
from tests.kernel.acceptance.world import N2, SUBNET_CIDR, VPC_CIDR, Siting, World, attached
from tests.kernel.datapath_node import Netns

TABLE: Final = 2
STREAM_PORT: Final = 8081
_PERIOD_S: Final = 0.005
_TICK_S: Final = 0.01


def pods(per_eni: int) -> tuple[dict[str, IPv4Address], dict[str, IPv4Address]]:
    """Names and addresses of the pods of the primary and of the secondary ENI."""
    return (
        {f"a{n}": IPv4Address("10.0.0.30") + n for n in range(per_eni)},
        {f"b{n}": IPv4Address("10.0.0.90") + n for n in range(per_eni)},
    )


def container_id(pod: str) -> str:
    return hashlib.sha256(pod.encode()).hexdigest()


@contextmanager
def aws_node(backend: aws_layout.Backend, per_eni: int, checkpoint: Path) -> Iterator[World]:
    """The file is written to `checkpoint`."""
    primary, secondary = pods(per_eni)
    siting = Siting(primary_pods=primary, secondary_pods=secondary)
    with attached(siting, instance_type="m5.4xlarge") as world:
        node_address = world.places["N"].address
        world.node.write("ipv4/conf/ens5/rp_filter", "2")
        world.node.run("sh", "-ec", aws_layout.node_script(backend, "ens5", node_address, [VPC_CIDR]))
        _batch(world.node.name, aws_layout.eni_batch("ens6", N2, SUBNET_CIDR, TABLE))
        host: list[str] = []
        for index, (name, address) in enumerate((*primary.items(), *secondary.items())):
            veth, mac = aws_layout.veth_name("default", name), f"02:cc:00:00:00:{index:02x}"
            inside = world.places[name].netns.name
            host.append(
                f"link add {veth} address {mac} mtu 9001 type veth peer name eth0 mtu 9001 netns {inside}\n"
                f"link set {veth} up\n" + aws_layout.pod_batch(veth, address, TABLE if name in secondary else None)
            )
        _batch(world.node.name, "".join(host))
        for index, (name, address) in enumerate((*primary.items(), *secondary.items())):
            inside = world.places[name].netns.name
            _batch(inside, aws_layout.pod_inside_batch("eth0", address, f"02:cc:00:00:00:{index:02x}"))
        checkpoint.write_text(checkpoint_text({**primary, **secondary}))
        yield world


def checkpoint_text(pods: dict[str, IPv4Address]) -> str:
    """The AWS plugin's file, as it writes it."""
    entries = [
        {
            "networkName": "aws-cni",
            "containerID": container_id(name),
            "ifName": "eth0",
            "ipv4": str(address),
            "allocationTimestamp": 1_700_000_000_000_000_000 + index,
            "metadata": {"k8sPodNamespace": "default", "k8sPodName": name},
        }
        for index, (name, address) in enumerate(pods.items())
    ]
    return json.dumps({"version": "vpc-cni-ipam/1", "allocations": entries}, separators=(",", ":")) + "\n"


def _batch(netns: str, text: str) -> None:
    done = subprocess.run(
        ["ip", "-n", netns, "-batch", "-"], input=text, text=True, capture_output=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def kernel_of(world: World) -> dict[str, list[str]]:
    """Everything of the node's kernel that the AWS plugin or we might have written, as sorted lines."""
    commands = {
        "rules": "ip -N rule show",
        "main": "ip -N route show",
        "eni table": f"ip -N route show table {TABLE} | sed 's/ proto [0-9]*//'",
        "pods table": "ip -N route show table 20512 || true",
        "links": "ip -o link show type veth | sed 's/.*: \\(eni[^@]*\\).* group \\([^ ]*\\).*/\\1 \\2/'",
        "legacy": "iptables-legacy-save | grep -v '^[#:]' || true",
        "nft": "iptables-nft-save | grep -v '^[#:]' || true",
        "tables": "nft list tables",
        "connmark": "nft list table ip aws-cni | sed 's/packets [0-9]* bytes [0-9]*//' || true",
    }
    return {
        name: sorted(line.strip() for line in world.node.run("sh", "-c", f"{command} 2>/dev/null").splitlines())
        for name, command in commands.items()
    }


@dataclass(slots=True)
class Stream:
    """One connection: a byte goes out when the last one has come back."""

    name: str
    client: socket.socket
    server: socket.socket
    sent_at_s: float = 0.0
    gap_s: float = 0.0
    count: int = 0
    waiting: bool = False
    broken: str = ""
    left: bool = False


@dataclass(slots=True)
class Streams:
    """Many streams, driven by one thread.

    Time is the thread's own: a turn of its loop counts for at most 10 ms, so that a machine that does not run the
    thread is not taken for a network that does not carry its packets. A lost segment comes back after 200 ms at the
    earliest (Linux, TCP_RTO_MIN), which is many turns.
    """

    streams: list[Stream] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def open(self, world: World, name: str, client: str, server: str, target: IPv4Address, port: int) -> None:
        """One connection from `client` to target:port, where `server` listens on STREAM_PORT."""
        self.connect(name, world.places[client].netns, world.places[server].netns, target, port)

    def connect(self, name: str, client: Netns, server: Netns, target: IPv4Address, port: int) -> None:
        """As `open`, between two network namespaces."""
        with server.entered():
            listener = socket.create_server(("", STREAM_PORT), reuse_port=True)
        with listener:
            listener.settimeout(5)
            with client.entered():
                outgoing = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            self._stack.enter_context(outgoing)
            outgoing.settimeout(5)
            outgoing.connect((str(target), port))
            incoming, _ = listener.accept()
            self._stack.enter_context(incoming)
        for each in (outgoing, incoming):
            each.setblocking(False)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.streams.append(Stream(name, outgoing, incoming))

    def forget(self, name: str) -> None:
        """Expect nothing more of the streams with this word in their names: an end of theirs goes away."""
        for stream in self.streams:
            stream.left = stream.left or name in stream.name.split()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._drive)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._stack.close()

    def worst_gap_s(self) -> float:
        """Since this was last asked."""
        worst_s = max(stream.gap_s for stream in self.streams)
        for stream in self.streams:
            stream.gap_s = 0.0
        return worst_s

    def wait_for(self, more: int) -> None:
        """Until every stream has come round so many times more."""
        goals = [(stream, stream.count + more) for stream in self.streams if not stream.left]
        deadline_s = time.monotonic() + 60
        while any(stream.count < goal and not stream.broken for stream, goal in goals):
            assert time.monotonic() < deadline_s, "the streams stand still"
            self._stop.wait(0.01)

    def _drive(self) -> None:
        selector = selectors.DefaultSelector()
        for stream in self.streams:
            selector.register(stream.client, selectors.EVENT_READ, (stream, "answer"))
            selector.register(stream.server, selectors.EVENT_READ, (stream, "question"))
        now_s, last_s = 0.0, time.monotonic()
        while not self._stop.is_set():
            events = selector.select(_PERIOD_S)
            turned_s = time.monotonic()
            now_s += min(turned_s - last_s, _TICK_S)
            last_s = turned_s
            for key, _ in events:
                stream, kind = key.data
                _turn(stream, kind, now_s)
            for stream in self.streams:
                if stream.left:
                    continue
                if stream.waiting:
                    stream.gap_s = max(stream.gap_s, now_s - stream.sent_at_s)
                elif not stream.broken and now_s - stream.sent_at_s >= _PERIOD_S:
                    stream.sent_at_s, stream.waiting = now_s, True
                    stream.client.send(b"?")
        selector.close()


def _turn(stream: Stream, kind: str, now_s: float) -> None:
    end = stream.client if kind == "answer" else stream.server
    try:
        data = end.recv(100)
        if not data:
            raise ConnectionResetError("closed by the other side")
        if kind == "question":
            stream.server.send(data)
            return
    except BlockingIOError:
        return
    except OSError as exc:
        stream.broken = stream.broken or ("" if stream.left else str(exc))
        stream.waiting = False
        return
    stream.gap_s = max(stream.gap_s, now_s - stream.sent_at_s)
    stream.count += 1
    stream.waiting = False
