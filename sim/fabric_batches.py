"""Legs as `ip` commands and nftables scripts. Pure: text comes out, `sim.fabric` feeds it to the kernel.

How the fabric is like a VPC:

- In a VPC the mapping service knows which ENI has an address, and nobody ARPs across the network. Here a host route per
  address and prefix leads to the ENI's primary address, whose neighbour is permanent: the ENI's MAC.
- ARP for an address of the VPC is answered by the hypervisor: here by proxy ARP, without delay, on every leg.
- An address nobody has is silence: a blackhole route for each VPC CIDR.
- A packet whose source the ENI does not have is dropped: `known4` and `known6` hold the pairs (leg, source) that may
  pass; the rest is counted per ENI.
- An internet gateway maps public addresses to primary addresses: only instances' primary addresses pass `igw`. They are
  not translated, so that the far side can tell which one it was.
- 9001 bytes fit inside the VPC, 1500 to the internet: the links' MTU.

Sources: Amazon VPC User Guide ("Subnet CIDR blocks", "Internet gateways", "Network MTU"), EC2 User Guide ("Source/
destination checking").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from sim.fabric_legs import Leg, Network

VPC_MTU_BYTES = 9001
INTERNET_MTU_BYTES = 1500
INTERNET_IFNAME = "igw"
INTERNET_NODE_IFNAME = "eth0"
INTERNET_ROUTER = IPv4Address("203.0.113.1")
INTERNET_NETWORK = IPv4Network("203.0.113.0/24")
"""TEST-NET-3 (RFC 5737): never a VPC's own."""
METADATA_ADDRESS = IPv4Address("169.254.169.254")
GATEWAY6 = IPv6Address("fe80:ec2::1")
"""The VPC router's link-local address in every subnet (EC2 User Guide, "IPv6 routing in VPCs")."""
TABLE = "vpc"
INTERNET_OUT_COUNTER = "internet_out"
INTERNET_IN_COUNTER = "internet_in"

RULESET = f"""\
table inet {TABLE} {{
  set known4 {{ typeof iifname . ip saddr; flags interval; comment "what EC2 knows: (leg, source)"; }}
  set known6 {{ typeof iifname . ip6 saddr; flags interval; comment "what EC2 knows: (leg, source)"; }}
  set public4 {{ typeof ip saddr; comment "primary addresses of instances"; }}
  set dropped4 {{
    typeof iifname . ip saddr . ip daddr; flags dynamic,timeout; size 4096; timeout 10m;
    comment "what the source check dropped lately: (leg, source, destination)";
  }}
  map drops {{ type ifname : counter; comment "leg to the counter of its ENI"; }}
  counter {INTERNET_OUT_COUNTER} {{ comment "sources without a public address"; }}
  counter {INTERNET_IN_COUNTER} {{ comment "destinations without a public address"; }}
  chain source_check {{
    type filter hook prerouting priority raw; policy accept;
    iifname != "eni*" accept
    ip6 saddr {{ ::, fe80::/10 }} accept comment "neighbour discovery stays on the link"
    iifname . ip saddr @known4 accept
    iifname . ip6 saddr @known6 accept
    counter name iifname map @drops
    update @dropped4 {{ iifname . ip saddr . ip daddr counter }}
    drop
  }}
  chain internet_gateway {{
    type filter hook forward priority filter; policy accept;
    oifname "{INTERNET_IFNAME}" ip saddr != @public4 counter name {INTERNET_OUT_COUNTER} drop
    iifname "{INTERNET_IFNAME}" ip daddr != @public4 counter name {INTERNET_IN_COUNTER} drop
  }}
}}
"""

FABRIC_SYSCTLS = {
    # The source check is nftables' work; the kernel's own would drop what comes by a leg that is not the way back.
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 0,
    "ipv4/conf/default/proxy_arp": 1,
    "ipv4/conf/all/send_redirects": 0,
    "ipv4/conf/default/send_redirects": 0,
    "ipv4/ip_forward": 1,
    "ipv6/conf/all/forwarding": 1,
}

NODE_SYSCTLS = {
    # What an EKS-optimized Amazon Linux leaves: the effective rp_filter of a link is the maximum of `all` and its own.
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 1,
    "ipv4/ip_forward": 1,
    "ipv6/conf/all/disable_ipv6": 0,
    "ipv6/conf/default/disable_ipv6": 0,
}


def leg_sysctls(leg: Leg) -> dict[str, int]:
    """Proxy ARP answers after a random delay of up to 0.8 s unless told not to; only per link, there is no default."""
    return {f"ipv4/neigh/{leg.ifname}/proxy_delay": 0}


def fabric_commands(internet_namespace: str, vpc_cidrs: Iterable[IPv4Network]) -> list[str]:
    """`ip` commands in the fabric, once: the metadata address, the internet leg, silence for unknown addresses."""
    return [
        f"address add {METADATA_ADDRESS}/32 dev lo",
        (
            f"link add {INTERNET_IFNAME} mtu {INTERNET_MTU_BYTES} type veth"
            f" peer name {INTERNET_NODE_IFNAME} mtu {INTERNET_MTU_BYTES} netns {internet_namespace}"
        ),
        f"address add {INTERNET_ROUTER}/{INTERNET_NETWORK.prefixlen} dev {INTERNET_IFNAME}",
        f"link set {INTERNET_IFNAME} up",
        *(f"route add blackhole {cidr}" for cidr in vpc_cidrs),
    ]


def internet_commands(addresses: Iterable[IPv4Address]) -> list[str]:
    """`ip` commands in the internet's namespace: its addresses, and the way back into the VPC."""
    return [
        *(f"address add {a}/{INTERNET_NETWORK.prefixlen} dev {INTERNET_NODE_IFNAME}" for a in addresses),
        f"link set {INTERNET_NODE_IFNAME} up",
        f"route add default via {INTERNET_ROUTER}",
    ]


def plug(leg: Leg) -> list[str]:
    """`ip` commands in the fabric that make a leg. The node's end is born in its namespace: down, without address."""
    return [
        (
            f"link add {leg.ifname} mtu {VPC_MTU_BYTES} type veth"
            f" peer name {leg.node_ifname} address {leg.mac} mtu {VPC_MTU_BYTES} netns {leg.node_namespace}"
        ),
        f'link set {leg.ifname} up alias "{leg.eni_id} {leg.node_namespace} {leg.node_ifname}"',
        f"address add {leg.gateway}/32 dev {leg.ifname}",
        f"address add {GATEWAY6}/64 dev {leg.ifname} nodad",
        f"neighbour replace {leg.primary_address} lladdr {leg.mac} dev {leg.ifname} nud permanent",
        f"neighbour replace {leg.link_local} lladdr {leg.mac} dev {leg.ifname} nud permanent",
        f"route replace {leg.primary_address}/32 dev {leg.ifname}",
        *add_routes(leg, leg.owned),
    ]


def unplug(leg: Leg) -> list[str]:
    """`ip` commands in the fabric that remove a leg; its routes, neighbours and the node's end go with it."""
    return [f"link delete {leg.ifname}"]


def add_routes(leg: Leg, networks: Iterable[Network]) -> list[str]:
    """`ip` commands in the fabric that lead networks to an ENI."""
    return [f"route replace {network} via {_next_hop(leg, network)} onlink" for network in _routed(leg, networks)]


def delete_routes(leg: Leg, networks: Iterable[Network]) -> list[str]:
    """`ip` commands in the fabric that undo `add_routes`."""
    return [f"route delete {network} {_next_hop(leg, network)}" for network in _routed(leg, networks)]


def _routed(leg: Leg, networks: Iterable[Network]) -> Sequence[Network]:
    primary = IPv4Network(leg.primary_address)
    return [n for n in _ordered(networks) if n != primary]


def _next_hop(leg: Leg, network: Network) -> str:
    gateway = leg.primary_address if isinstance(network, IPv4Network) else leg.link_local
    return f"{gateway} dev {leg.ifname}"


def configure_primary(leg: Leg) -> list[str]:
    """`ip` commands in the node, as DHCP leaves the primary interface on Amazon Linux 2023 (systemd-networkd)."""
    interface = f"{leg.primary_address}/{leg.subnet.prefixlen}"
    return [
        f"link set {leg.node_ifname} up",
        f"address add {interface} broadcast + dev {leg.node_ifname}",
        f"route add default via {leg.gateway} dev {leg.node_ifname} proto dhcp src {leg.primary_address} metric 512",
    ]


def permissions(old: Leg | None, new: Leg | None) -> str:
    """An nftables script that changes what may come out of a leg; empty when nothing changes.

    A leg's counter outlives it, so that nothing that was counted is lost.
    """
    before = old.sources if old else frozenset[Network]()
    after = new.sources if new else frozenset[Network]()
    lines = []
    for leg, verb, networks in ((old, "delete", before - after), (new, "add", after - before)):
        for network in _ordered(networks):
            if leg is not None:
                version = 4 if isinstance(network, IPv4Network) else 6
                lines.append(f'{verb} element inet {TABLE} known{version} {{ "{leg.ifname}" . {network} }}')
    if new is not None and old is None:
        lines.append(f"add counter inet {TABLE} {new.eni_id}")
        lines.append(f'add element inet {TABLE} drops {{ "{new.ifname}" : "{new.eni_id}" }}')
    if old is not None and new is None:
        lines.append(f'delete element inet {TABLE} drops {{ "{old.ifname}" }}')
    if (old is not None and old.public) != (new is not None and new.public):
        verb, leg = ("add", new) if new is not None else ("delete", old)
        if leg is not None:
            lines.append(f"{verb} element inet {TABLE} public4 {{ {leg.primary_address} }}")
    return "".join(line + "\n" for line in lines)


def _ordered(networks: Iterable[Network]) -> list[Network]:
    return sorted(networks, key=lambda network: (network.version, network.network_address.packed))
