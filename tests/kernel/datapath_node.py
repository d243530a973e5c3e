"""A node, its VPC and its containers as network namespaces, for the datapath's tests.

    internet 203.0.113.5 ┐                        ┌ eth0 10.0.0.10   primary ENI
    other node 10.0.9.9  ┴ fabric (routes only) ──┴ eth1 10.0.0.20   secondary ENI, device 1
                                                    pods: one namespace each

The fabric drops what a VPC would drop: strict reverse-path filtering on its legs makes a packet disappear that leaves
by an ENI which does not own its source address. The test's own thread stands inside the node's namespace while a test
runs, and so do the threads the datapath starts.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from pathlib import Path
from typing import IO

from agent.datapath import namespaces
from agent.datapath.kernel import KernelDatapath
from agent.datapath.policy import DatapathPolicy
from agent.ipam.model import Address, AttachmentKey, Eni, EniId, Holder, Instance, Mac, SubnetId
from agent.ports.datapath import PodWiring

PRIMARY_MAC = Mac("02:aa:00:00:00:10")
SECONDARY_MAC = Mac("02:aa:00:00:00:20")
NODE = IPv4Address("10.0.0.10")
OTHER_NODE = IPv4Address("10.0.9.9")
INTERNET = IPv4Address("203.0.113.5")
VPC = IPv4Network("10.0.0.0/16")
PRIMARY_PODS = tuple(IPv4Address(f"10.0.0.{host}") for host in range(11, 15))
SECONDARY_PODS = tuple(IPv4Address(f"10.0.0.{host}") for host in range(21, 25))

_ECHO_PORT = 7007
_ANSWER_TIMEOUT_S = 3.0
_SILENCE_TIMEOUT_S = 0.4
_count = itertools.count()

INSTANCE = Instance(
    instance_id="i-0123456789abcdef0",
    account_id="123456789012",
    instance_type="m5.large",
    region="eu-test-1",
    zone="eu-test-1a",
    primary_mac=PRIMARY_MAC,
    primary_address=NODE,
    vpc_id="vpc-0123456789abcdef0",
    vpc_cidrs=(VPC,),
)


def why_not() -> str:
    """Why kernel tests cannot run here; empty when they can."""
    if os.geteuid() != 0:
        return "needs root: creates network namespaces"
    if subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode != 0:
        return "needs iproute2 with network namespaces"
    return ""


def eni(device: int, mac: Mac, address: str) -> Eni:
    return Eni(
        eni_id=EniId(f"eni-{device:017x}"),
        mac=mac,
        card=0,
        device=device,
        subnet_id=SubnetId("subnet-0123456789abcdef0"),
        subnet_cidr=IPv4Network("10.0.0.0/24"),
        primary_address=IPv4Address(address),
        blocks=(),
        attachment_id=f"eni-attach-{device:017x}",
        security_groups=(),
        delete_on_termination=True,
    )


PRIMARY_ENI = eni(0, PRIMARY_MAC, "10.0.0.10")
SECONDARY_ENI = eni(1, SECONDARY_MAC, "10.0.0.20")


def run(*argv: str) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr.strip()}"
    return done.stdout


@dataclass(frozen=True, slots=True, kw_only=True)
class Netns:
    """A network namespace that exists until its `made` block ends."""

    name: str

    @property
    def path(self) -> str:
        return f"/run/netns/{self.name}"

    @staticmethod
    def unused_name(role: str) -> str:
        return f"ek{os.getpid()}-{role}-{next(_count)}"

    @classmethod
    @contextmanager
    def made(cls, role: str) -> Iterator[Netns]:
        netns = cls(name=cls.unused_name(role))
        run("ip", "netns", "add", netns.name)
        try:
            yield netns
        finally:
            subprocess.run(["ip", "netns", "del", netns.name], capture_output=True, check=False, timeout=20)

    @contextmanager
    def kept_busy(self) -> Iterator[None]:
        """Links come and go in this namespace meanwhile, so that the kernel's network lock is rarely free."""
        churn = "".join(
            f"link add a{n} up type veth peer name b{n}\nlink set b{n} up\nlink del a{n}\n" for n in range(9999)
        )
        argv = ["ip", "netns", "exec", self.name, "ip", "-batch", "-"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as busy:
            assert busy.stdin is not None
            feeder = threading.Thread(target=_feed, args=(busy.stdin, churn))
            feeder.start()
            try:
                yield
                assert busy.poll() is None
            finally:
                busy.kill()
                feeder.join()

    @contextmanager
    def entered(self) -> Iterator[None]:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with namespaces.inside(fd):
                yield
        finally:
            os.close(fd)

    def run(self, *argv: str) -> str:
        return run("ip", "netns", "exec", self.name, *argv)

    def ip(self, arguments: str) -> str:
        """Numbers, not names: a machine may or may not have names for ours."""
        return self.run("ip", "-N", *arguments.split())

    def write(self, key: str, value: str) -> None:
        with self.entered():
            Path("/proc/sys/net", key).write_text(value)

    def udp(self, address: Address | None = None) -> socket.socket:
        """A socket in this namespace: a server on `address`, or a client whose source the kernel chooses."""
        family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
        with self.entered():
            made = socket.socket(family, socket.SOCK_DGRAM)
        made.settimeout(_ANSWER_TIMEOUT_S)
        if address is not None:
            made.bind((str(address), _ECHO_PORT))
        return made


def _feed(pipe: IO[str], text: str) -> None:
    with suppress(BrokenPipeError):
        pipe.write(text)
        pipe.flush()


def exchange(client: socket.socket, server: socket.socket, destination: Address, *, attempts: int = 10) -> Address:
    """Send a datagram there and back, again when one is lost; the source address the server saw.

    Lost, because links and IPv6 addresses become usable a moment after the kernel said so. One attempt asks for more.
    """
    server.settimeout(_ANSWER_TIMEOUT_S / attempts)
    client.settimeout(_ANSWER_TIMEOUT_S / attempts)
    question = next(_count).to_bytes(8, "big")
    for _ in range(attempts):
        client.sendto(question, (str(destination), _ECHO_PORT))
        with suppress(TimeoutError):
            while (received := server.recvfrom(100))[0] != question:
                pass
            server.sendto(question, received[1])
            while client.recv(100) != question:
                pass
            return ip_address(received[1][0])
    raise AssertionError(f"no answer from {destination} to {attempts} datagrams")


def is_dropped(client: socket.socket, server: socket.socket, destination: Address) -> bool:
    server.settimeout(_SILENCE_TIMEOUT_S)
    client.sendto(b"ping", (str(destination), _ECHO_PORT))
    try:
        server.recvfrom(100)
    except TimeoutError:
        return True
    return False


@dataclass(slots=True, kw_only=True)
class Node:
    """The node's namespace, its fabric, and the containers made so far."""

    netns: Netns
    fabric: Netns
    stack: ExitStack
    containers: int = field(default=0)

    def container(self) -> Netns:
        return self.stack.enter_context(Netns.made("pod"))

    def wiring(
        self, container: Netns, *addresses: Address, table_id: int = 254, pod: str = "", container_id: str = ""
    ) -> PodWiring:
        key = AttachmentKey(container_id=container_id or container.name, ifname="eth0")
        return PodWiring(
            holder=Holder(key=key, namespace="default", pod=pod or container.name),
            netns=container.path,
            addresses=addresses,
            table_id=table_id,
            mtu=9001,
        )

    def host_links(self) -> list[str]:
        """Names of all links of the node except its own."""
        names = [line.split(":")[1].split("@")[0].strip() for line in self.netns.ip("-o link show").splitlines()]
        return [name for name in names if name not in ("lo", "eth0", "eth1")]


@contextmanager
def node_made() -> Iterator[Node]:
    """A node with two ENIs as a VPC would attach them; the calling thread is inside it."""
    with ExitStack() as stack:
        fabric = stack.enter_context(Netns.made("vpc"))
        node = stack.enter_context(Netns.made("node"))
        _cable(fabric, node, "eth0", PRIMARY_MAC, (NODE, *PRIMARY_PODS))
        _cable(fabric, node, "eth1", SECONDARY_MAC, (IPv4Address("10.0.0.20"), *SECONDARY_PODS))
        fabric.ip("link set lo up")
        for address in (OTHER_NODE, INTERNET):
            fabric.ip(f"addr add {address}/32 dev lo")
        fabric.write("ipv4/ip_forward", "1")
        node.ip("link set lo up")
        node.ip("link set eth0 up")
        node.ip(f"addr add {NODE}/24 dev eth0")
        node.ip("route add default via 10.0.0.1 dev eth0")
        stack.enter_context(node.entered())
        yield Node(netns=node, fabric=fabric, stack=stack)


def _cable(fabric: Netns, node: Netns, ifname: str, mac: Mac, owned: tuple[IPv4Address, ...]) -> None:
    leg = f"leg-{ifname}"
    fabric.ip(f"link add {leg} type veth peer name {ifname} address {mac} netns {node.name}")
    fabric.write(f"ipv4/conf/{leg}/rp_filter", "1")
    fabric.ip(f"addr add 10.0.0.1/32 dev {leg}")
    fabric.ip(f"link set {leg} up")
    for address in owned:
        fabric.ip(f"neigh add {address} lladdr {mac} dev {leg} nud permanent")
        fabric.ip(f"route add {address}/32 dev {leg}")


@asynccontextmanager
async def datapath_running(
    policy: DatapathPolicy | None = None, *, watching: bool = True
) -> AsyncIterator[KernelDatapath]:
    """The datapath, prepared for INSTANCE.

    watching: with its monitor. Without it nothing is put right: for looking at what is broken.
    """
    datapath = KernelDatapath(policy or DatapathPolicy(names_directory=None))
    monitor = asyncio.create_task(datapath.run()) if watching else None
    try:
        await datapath.prepare_node(INSTANCE)
        yield datapath
    finally:
        if monitor is not None:
            monitor.cancel()
            await asyncio.gather(monitor, return_exceptions=True)
        datapath.close()
