"""The topology of the acceptance list: one node of ours with two ENIs in the simulator's fabric, and everybody it talks
to.

    X    203.0.113.5      the internet                      N    10.0.0.4     the node; its primary ENI is ens5
    C    172.31.9.9       routed, outside the VPC           N2   10.0.0.20    its secondary ENI ens6, device 1
    META 169.254.169.254  instance metadata                 A1 A2  10.0.0.11, .12   pods of the primary ENI
    P    10.0.0.5         another node of the VPC           B1 B2  10.0.0.21, .22   pods of the secondary ENI

The fabric is `sim.fabric`: it routes an address to the ENI that EC2 says has it, drops and counts what leaves an ENI
that does not have its source, and its internet gateway passes primary addresses only. So an answer that arrives came
and went by the right ENI; `World.left_by` also says which ENIs the node sent on at all.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from nftables import Nftables

from agent.datapath.kernel import KernelDatapath
from agent.datapath.policy import DatapathPolicy
from agent.ipam.model import AttachmentKey, Eni, EniId, Holder, Instance, Mac, SubnetId
from agent.ports.datapath import PodWiring, PortMapping, Transport
from sim.fabric import INTERNET_ADDRESS, Fabric
from sim.model.attachments import AttachInterface, attach_interface
from sim.model.config import SubnetConfig, VpcConfig
from sim.model.interfaces import CreateInterface, create_interface
from sim.model.ipv4 import Ipv4Wish, assign_ipv4
from sim.model.records import EniRecord
from sim.model.vpc import Vpc
from sim.namespaces import run_inside
from tests.kernel.datapath_node import Netns

VPC_CIDR: Final = IPv4Network("10.0.0.0/16")
SUBNET_CIDR: Final = IPv4Network("10.0.0.0/24")
NODE: Final = IPv4Address("10.0.0.4")
ROUTED: Final = IPv4Address("172.31.9.9")
OTHER_NODE: Final = IPv4Address("10.0.0.5")
METADATA: Final = IPv4Address("169.254.169.254")
N2: Final = IPv4Address("10.0.0.20")
PRIMARY_ENI_PODS: Final = {"A1": IPv4Address("10.0.0.11"), "A2": IPv4Address("10.0.0.12")}
SECONDARY_ENI_PODS: Final = {"B1": IPv4Address("10.0.0.21"), "B2": IPv4Address("10.0.0.22")}
SECONDARY_TABLE: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Siting:
    """Which ENI has which pods, and what EC2 says of them.

    subnet: of the secondary ENI. prefixes: the pods' addresses are parts of /28 prefixes, not single ones.
    """

    primary_pods: Mapping[str, IPv4Address]
    secondary_pods: Mapping[str, IPv4Address]
    subnet: IPv4Network = SUBNET_CIDR
    secondary_address: IPv4Address = N2
    prefixes: bool = False

    def wish(self, pods: Mapping[str, IPv4Address]) -> Ipv4Wish:
        if not self.prefixes:
            return Ipv4Wish(addresses=tuple(pods.values()))
        return Ipv4Wish(prefixes=tuple({IPv4Network((address, 28), strict=False): None for address in pods.values()}))


PLAIN: Final = Siting(primary_pods=PRIMARY_ENI_PODS, secondary_pods=SECONDARY_ENI_PODS)
PREFIXES: Final = Siting(
    primary_pods={"A1": IPv4Address("10.0.0.33"), "A2": IPv4Address("10.0.0.34")},
    secondary_pods={"B1": IPv4Address("10.0.0.65"), "B2": IPv4Address("10.0.0.80")},
    prefixes=True,
)
"""B1 and B2 in a prefix each."""
CUSTOM: Final = Siting(
    primary_pods={},
    secondary_pods={name: IPv4Address("10.0.7.32") + n for n, name in enumerate(("A1", "A2", "B1", "B2"))},
    subnet=IPv4Network("10.0.7.0/24"),
    secondary_address=IPv4Address("10.0.7.20"),
    prefixes=True,
)
"""Custom networking, with prefixes: no pod on the primary ENI, the other one is in a subnet of its own."""

_SEEN: Final = """\
table ip seen {
  set legs { typeof iifname; }
  set came { typeof iifname . ip saddr; flags dynamic; }
  chain sent {
    type filter hook prerouting priority -400; policy accept;
    iifname @legs update @came { iifname . ip saddr }; }
}
"""

FOREIGN: Final = """\
ip -batch - <<'END'
link add foreign0 type veth peer name foreign1
addr add 192.168.77.1/24 dev foreign0
link set foreign0 up
link set foreign1 up
route add 192.168.78.0/24 via 192.168.77.2
route add 192.168.79.0/24 dev foreign0 table 777
rule add pref 100 fwmark 0x4200/0xff00 lookup 777
rule add pref 1536 from 192.168.77.9 lookup 777
END
nft -f - <<'END'
table inet foreign {
  chain in { type filter hook input priority 5; policy accept; ip saddr 192.0.2.1 drop; }
}
END
"""
"""What other software on the node may have; nobody of ours may touch it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Somebody who sends and answers: a namespace and the address there."""

    netns: Netns
    address: IPv4Address


class World:
    """Built once per variant. `places` by the names above."""

    def __init__(
        self, fabric: Fabric, node: Netns, places: Mapping[str, Place], enis: tuple[EniRecord, EniRecord]
    ) -> None:
        self.fabric = fabric
        self.node = node
        self.places = places
        self.enis = enis
        self.foreign_before = ""
        self._dropped_count = 0
        self._legs = {f"eni{eni.eni_id[-12:]}": f"ens{5 + device}" for device, eni in enumerate(enis)}
        self._nft: Any = run_inside(fabric.vpc_namespace, Nftables)
        self._nft.set_json_output(val=True)
        self._ask(_SEEN)
        self._ask(f"add element ip seen legs {{ {', '.join(self._legs)} }}")

    def _ask(self, commands: str) -> str:
        code, answer, errors = self._nft.cmd(commands)
        assert code == 0, errors
        return str(answer)

    def forget_what_left(self) -> None:
        self._ask("flush set ip seen came")

    def left_by(self) -> dict[str, set[str]]:
        """What the node sent since `forget_what_left`: its links, each with the source addresses."""
        listing = json.loads(self._ask("list set ip seen came"))
        elements = next(entry["set"] for entry in listing["nftables"] if "set" in entry).get("elem", [])
        found: dict[str, set[str]] = {}
        for element in elements:
            leg, source = element["concat"]
            found.setdefault(self._legs[leg], set()).add(source)
        return found

    def dropped_count(self) -> int:
        """What the fabric has dropped of the node's packets: for their source, or at the internet gateway."""
        listing = json.loads(self._ask("list counters table inet vpc"))
        return sum(entry["counter"]["packets"] for entry in listing["nftables"] if "counter" in entry)

    def newly_dropped_count(self) -> int:
        """As `dropped_count`, since this was last asked."""
        before, self._dropped_count = self._dropped_count, self.dropped_count()
        return self._dropped_count - before

    def give_elastic_addresses(self) -> None:
        """Let the pods' own addresses pass the internet gateway, as an elastic IP or a NAT gateway would."""
        pods = ", ".join(str(self.places[name].address) for name in ("A1", "A2", "B1", "B2"))
        self._ask(f"add element inet vpc public4 {{ {pods} }}")

    def foreign(self) -> str:
        """Everything in the node's kernel that is not ours, as text."""
        show = (
            "ip -N rule show; ip -N route show table 777; ip -N route show; ip -o link show type veth; nft list tables"
        )
        lines = self.node.run("sh", "-c", f"{show}; nft list table inet foreign").splitlines()
        return "\n".join(line for line in lines if "foreign" in line or "777" in line or "192.168.7" in line)


@contextmanager
def built(
    policy: DatapathPolicy, *, siting: Siting = PLAIN, mtu: int = 9001, before: str = "", after: str = ""
) -> Iterator[World]:
    """The node with our datapath.

    before, after: shell commands run in the node's namespace before ours is installed, and after it.
    """
    with attached(siting, before=before) as world:
        with world.node.entered():
            asyncio.run(_wire(policy, mtu, world, siting))
        if after:
            world.node.run("sh", "-ec", after)
        yield world


@contextmanager
def attached(
    siting: Siting,
    *,
    instance_type: str = "m5.large",
    before: str = "",
) -> Iterator[World]:
    """The node with its ENIs attached and its containers made, and nothing of ours yet."""
    with ExitStack() as stack:
        subnets = tuple(SubnetConfig(cidr=cidr) for cidr in dict.fromkeys((SUBNET_CIDR, siting.subnet)))
        vpc = Vpc(VpcConfig(seed=7, subnets=subnets))
        fabric = Fabric(Netns.unused_name("acc"), vpc)
        stack.callback(fabric.remove)
        fabric.build()
        enis = _launch(vpc, instance_type, siting)
        subnet_id = next(iter(vpc.state.subnets))
        elsewhere_id = vpc.run_instance("m5.large", subnet_id, now_s=0.0).instance_id
        assert (enis[0].primary_address, vpc.state.enis_of(elsewhere_id)[0].primary_address) == (NODE, OTHER_NODE)
        node, elsewhere = (Netns(name=name) for name in fabric.node_namespaces.values())
        outside, router = Netns(name=fabric.internet_namespace), Netns(name=fabric.vpc_namespace)
        router.ip(f"addr add {ROUTED}/32 dev lo")
        places = {
            "X": Place(netns=outside, address=INTERNET_ADDRESS),
            "C": Place(netns=router, address=ROUTED),
            "META": Place(netns=router, address=METADATA),
            "P": Place(netns=elsewhere, address=OTHER_NODE),
            "N": Place(netns=node, address=NODE),
            "N2": Place(netns=node, address=siting.secondary_address),
        }
        for name, address in (*siting.primary_pods.items(), *siting.secondary_pods.items()):
            places[name] = Place(netns=stack.enter_context(Netns.made("pod")), address=address)
        node.run("sh", "-ec", f"{FOREIGN}\n{before}")
        # A row may expect the refusal of a port; the kernel sends one a second to the same address (ip-sysctl.rst).
        node.write("ipv4/icmp_ratelimit", "0")
        world = World(fabric, node, places, enis)
        world.foreign_before = world.foreign()
        yield world


def _launch(vpc: Vpc, instance_type: str, siting: Siting) -> tuple[EniRecord, EniRecord]:
    subnet_id = next(iter(vpc.state.subnets))
    instance_id = vpc.run_instance(instance_type, subnet_id, now_s=0.0).instance_id
    primary_id = vpc.state.enis_of(instance_id)[0].eni_id
    if siting.primary_pods:
        wish = siting.wish(siting.primary_pods)
        vpc.apply(partial(assign_ipv4, eni_id=primary_id, wish=wish), now_s=0.0)
    request = CreateInterface(
        subnet_id=tuple(vpc.state.subnets)[-1],
        primary_address=siting.secondary_address,
        ipv4=siting.wish(siting.secondary_pods),
    )
    eni = vpc.apply(partial(create_interface, request=request), now_s=0.0)
    attachment = AttachInterface(eni_id=eni.eni_id, instance_id=instance_id, device_index=1)
    vpc.apply(partial(attach_interface, request=attachment, now_s=0.0), now_s=0.0)
    primary, secondary = vpc.state.enis_of(instance_id)
    return primary, secondary


async def _wire(policy: DatapathPolicy, mtu: int, world: World, siting: Siting) -> None:
    """As the agent does it at its start and for each ADD; then the process is gone, and the kernel is on its own."""
    datapath = KernelDatapath(policy)
    try:
        await datapath.prepare_node(instance_of(world.enis[0]))
        for device, eni in enumerate(world.enis):
            await datapath.ensure_eni(eni_of(eni, device, siting.subnet if device else SUBNET_CIDR))
        for name in ("A1", "A2", "B1", "B2"):
            table_id = SECONDARY_TABLE if name in siting.secondary_pods else 254
            await datapath.wire(wiring_of(name, world.places[name], table_id=table_id, mtu=mtu))
    finally:
        datapath.close()


def wiring_of(name: str, place: Place, *, table_id: int, mtu: int) -> PodWiring:
    key = AttachmentKey(container_id=f"acceptance-{name.lower()}", ifname="eth0")
    return PodWiring(
        holder=Holder(key=key, namespace="default", pod=name.lower()),
        netns=place.netns.path,
        addresses=(place.address,),
        table_id=table_id,
        mtu=mtu,
        port_mappings=_host_ports(name),
    )


def _host_ports(name: str) -> tuple[PortMapping, ...]:
    """B1 has 31000 on every address of the node; A1 has 31001 on the primary ENI's alone."""
    port, bound_to = {"B1": (31000, None), "A1": (31001, NODE)}.get(name, (0, None))
    if not port:
        return ()
    return tuple(
        PortMapping(host_port=port, container_port=8080, transport=transport, host_address=bound_to)
        for transport in (Transport.TCP, Transport.UDP)
    )


def instance_of(primary: EniRecord) -> Instance:
    return Instance(
        instance_id="i-0123456789abcdef0",
        account_id="123456789012",
        instance_type="m5.large",
        region="us-west-2",
        zone="us-west-2a",
        primary_mac=Mac(primary.mac),
        primary_address=primary.primary_address,
        vpc_id=primary.vpc_id,
        vpc_cidrs=(VPC_CIDR,),
    )


def eni_of(record: EniRecord, device: int, subnet: IPv4Network = SUBNET_CIDR) -> Eni:
    return Eni(
        eni_id=EniId(record.eni_id),
        mac=Mac(record.mac),
        card=0,
        device=device,
        subnet_id=SubnetId(record.subnet_id),
        subnet_cidr=subnet,
        primary_address=record.primary_address,
        blocks=(),
        attachment_id=f"eni-attach-{device:017x}",
        security_groups=(),
        delete_on_termination=True,
    )
