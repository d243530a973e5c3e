"""Nodes for the datapath benches: namespaces that go with the process, two ENIs whose far ends drop what comes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from agent.datapath import namespaces
from agent.ipam.model import AttachmentKey, Eni, EniId, Holder, Instance, Mac, SubnetId
from agent.ports.datapath import PodWiring

VPC: Final = IPv4Network("10.0.0.0/16")
SUBNET: Final = IPv4Network("10.0.0.0/20")
PRIMARY: Final = IPv4Address("10.0.0.10")
SECONDARY: Final = IPv4Address("10.0.0.20")
ELSEWHERE: Final = IPv4Address("10.0.200.1")
FIRST_POD: Final = IPv4Address("10.0.1.0")
SECONDARY_TABLE: Final = 2
_CLONE_NEWNET: Final = 0x40000000
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Netns:
    """An unnamed namespace, held by a descriptor: it goes with the process, however that ends."""

    fd: int

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        with namespaces.inside(self.fd):
            yield

    def run(self, *argv: str, feed: str = "") -> str:
        with self.entered():
            done = subprocess.run(argv, input=feed, text=True, capture_output=True, check=False, timeout=300)
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)[:200]}: {done.stderr.strip()[:500]}")
        return done.stdout

    def ip(self, batch: str) -> None:
        self.run("ip", "-batch", "-", feed=batch)

    def sysctl(self, key: str, value: int) -> None:
        with self.entered():
            Path("/proc/sys/net", key).write_text(str(value))


def make_netns() -> Netns:
    made: list[int] = []

    def unshare() -> None:
        if _libc.unshare(_CLONE_NEWNET) == 0:
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))

    thread = threading.Thread(target=unshare)
    thread.start()
    thread.join()
    if not made:
        raise RuntimeError("unshare(CLONE_NEWNET) was refused: run as root")
    return Netns(fd=made[0])


def allow_many_namespaces() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(most, 8192), max(most, 8192)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchNode:
    """netns: the node's. sink: where its ENIs lead to; counts and drops what arrives, at the ingress hook."""

    netns: Netns
    sink: Netns


def make_node() -> BenchNode:
    """eth0 and eth1 as EC2 attaches them: the primary configured, the secondary bare; permanent gateway neighbours."""
    netns, sink = make_netns(), make_netns()
    # As an EKS-optimized Amazon Linux: strict reverse-path filtering on what comes later, such as pods' host veths.
    netns.sysctl("ipv4/conf/all/rp_filter", 0)
    netns.sysctl("ipv4/conf/default/rp_filter", 1)
    for device in (0, 1):
        netns.ip(
            f"link add eth{device} address 02:aa:00:00:00:{16 * (device + 1)} mtu 9001 type veth"
            f" peer name leg{device} address 02:bb:00:00:00:0{device} mtu 9001 netns {sink.path}\n"
        )
        sink.ip(f"link set leg{device} up\n")
        sink.run(
            "nft",
            f"table netdev sink{device} {{ counter got {{ }}; chain in {{ type filter hook ingress device leg{device} "
            "priority 0; meta protocol ip counter name got; drop; }; }",
        )
    netns.sysctl("ipv4/ip_forward", 1)
    netns.ip(
        f"link set lo up\nlink set eth0 up\nlink set eth1 up\naddr add {PRIMARY}/{SUBNET.prefixlen} dev eth0\n"
        f"route add default via {SUBNET[1]} dev eth0\n"
        f"neigh add {SUBNET[1]} lladdr 02:bb:00:00:00:00 dev eth0 nud permanent\n"
        f"neigh add {SUBNET[1]} lladdr 02:bb:00:00:00:01 dev eth1 nud permanent\n"
    )
    netns.sysctl("ipv4/conf/eth0/rp_filter", 2)
    return BenchNode(netns=netns, sink=sink)


INSTANCE: Final = Instance(
    instance_id="i-0",
    account_id="123456789012",
    instance_type="m5.24xlarge",
    region="r",
    zone="z",
    primary_mac=Mac("02:aa:00:00:00:16"),
    primary_address=PRIMARY,
    vpc_id="vpc-0",
    vpc_cidrs=(VPC,),
)


SECONDARY_ENI: Final = Eni(
    eni_id=EniId("eni-00000000000000001"),
    mac=Mac("02:aa:00:00:00:32"),
    card=0,
    device=1,
    subnet_id=SubnetId("subnet-0"),
    subnet_cidr=SUBNET,
    primary_address=SECONDARY,
    blocks=(),
    attachment_id="eni-attach-0",
    security_groups=(),
    delete_on_termination=True,
)


def wiring(netns: Netns, index: int, *, table_id: int = 254, name: str = "bench") -> PodWiring:
    key = AttachmentKey(container_id=f"{name}{index}", ifname="eth0")
    return PodWiring(
        holder=Holder(key=key, namespace="bench", pod=f"{name}-{index}"),
        netns=netns.path,
        addresses=(FIRST_POD + index,),
        table_id=table_id,
        mtu=9001,
    )
