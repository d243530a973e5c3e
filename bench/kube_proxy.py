"""kube-proxy's rules in its three forms, for a handful of Services: the chains, marks, priorities and translations that
kube-proxy v1.31 writes (its `iptables` mode by either iptables, and its `nftables` mode), as shell commands.

A Service has TCP and UDP unless told otherwise, and two endpoint chains behind a statistic match, as if two endpoints
were ready.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

PORT: Final = 80
ENDPOINT_PORT: Final = 8080
FIRST_CLUSTER_IP: Final = IPv4Address("172.20.1.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """cluster_ip: None for a node port alone. masquerade: externalTrafficPolicy Cluster."""

    name: str
    endpoint: IPv4Address
    cluster_ip: IPv4Address | None = None
    node_port: int = 0
    masquerade: bool = False
    protocols: tuple[str, ...] = ("tcp", "udp")


def services(
    local: IPv4Address, node_port_pod: IPv4Address, remote: IPv4Address, outside: IPv4Address
) -> list[Service]:
    """The Services of the acceptance list: a pod here, the internet, a pod elsewhere, and the node ports."""
    return [
        Service(name="here", endpoint=local, cluster_ip=IPv4Address("172.20.0.50")),
        Service(name="outside", endpoint=outside, cluster_ip=IPv4Address("172.20.0.60")),
        Service(name="elsewhere", endpoint=remote, cluster_ip=IPv4Address("172.20.0.70")),
        Service(name="np-local", endpoint=node_port_pod, node_port=30080),
        Service(name="np-cluster", endpoint=node_port_pod, node_port=30081, masquerade=True),
        Service(name="np-remote", endpoint=remote, node_port=30082, masquerade=True),
    ]


def _hash(kind: str, service: Service, protocol: str) -> str:
    return f"KUBE-{kind}-{hashlib.sha256(f'{service.name}/{protocol}'.encode()).hexdigest()[:14].upper()}"


def iptables(command: str, wanted: list[Service]) -> str:
    """command: `iptables-legacy` or `iptables-nft`."""
    chains = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"]
    rules = [
        '-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        '-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        '-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING',
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
    ]
    for service in wanted:
        for protocol in service.protocols:
            _iptables_service(service, protocol, chains, rules)
    rules.append('-A KUBE-SERVICES -m comment --comment "last" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS')
    filters = [
        ":KUBE-FORWARD - [0:0]",
        '-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD',
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
        "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ]
    lines = ["*filter", *filters, "COMMIT", "*nat", *(f":{chain} - [0:0]" for chain in chains), *rules, "COMMIT"]
    return f"{command}-restore --noflush <<'END'\n" + "\n".join(lines) + "\nEND\n"


def _iptables_service(service: Service, protocol: str, chains: list[str], rules: list[str]) -> None:
    chain, external = _hash("SVC", service, protocol), _hash("EXT", service, protocol)
    first, second = _hash("SEP-A", service, protocol), _hash("SEP-B", service, protocol)
    chains += [chain, first, second]
    if service.cluster_ip:
        rules.append(f"-A KUBE-SERVICES -d {service.cluster_ip}/32 -p {protocol} --dport {PORT} -j {chain}")
    if service.node_port:
        chains.append(external)
        rules.append(f"-A KUBE-NODEPORTS -p {protocol} --dport {service.node_port} -j {external}")
        if service.masquerade:
            rules.append(f"-A {external} -j KUBE-MARK-MASQ")
        rules.append(f"-A {external} -j {chain}")
    rules += [
        f"-A {chain} -m statistic --mode random --probability 0.5 -j {first}",
        f"-A {chain} -j {second}",
    ]
    for endpoint in (first, second):
        rules += [
            f"-A {endpoint} -s {service.endpoint}/32 -j KUBE-MARK-MASQ",
            f"-A {endpoint} -p {protocol} -m {protocol} -j DNAT --to-destination {service.endpoint}:{ENDPOINT_PORT}",
        ]


_NFTABLES: Final = """\
table ip kube-proxy {{
  comment "rules for kube-proxy"
  chain mark-for-masquerade {{ meta mark set meta mark | 0x4000; }}
  chain masquerading {{
    meta mark & 0x4000 == 0 return
    meta mark set meta mark ^ 0x4000
    masquerade fully-random
  }}
  {chains}
  map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; {ips} }}
  map service-nodeports {{ type inet_proto . inet_service : verdict; {node_ports} }}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @service-ips
    fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports
  }}
  chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
  chain nat-output {{ type nat hook output priority -100; jump services; }}
  chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
  chain filter-forward {{ type filter hook forward priority -110; ct state invalid drop; }}
}}
"""


def _elements(listed: list[str]) -> str:
    return f"elements = {{ {', '.join(listed)} }};" if listed else ""


def nftables(wanted: list[Service]) -> str:
    maps: dict[str, list[str]] = {"service-ips": [], "service-nodeports": []}
    chains: list[str] = []
    for service in wanted:
        for protocol in service.protocols:
            name = f"{service.name}/{protocol}".replace("/", "-")
            if service.cluster_ip:
                maps["service-ips"].append(f"{service.cluster_ip} . {protocol} . {PORT} : goto service-{name}")
            if service.node_port:
                maps["service-nodeports"].append(f"{protocol} . {service.node_port} : goto external-{name}")
            masquerade = "jump mark-for-masquerade; " if service.masquerade else ""
            dnat = f"ip saddr {service.endpoint} jump mark-for-masquerade; meta l4proto {protocol} dnat to"
            dispatch = f"numgen random mod 2 vmap {{ 0 : goto endpoint-a-{name}, 1 : goto endpoint-b-{name} }}"
            chains += [
                f"chain endpoint-a-{name} {{ {dnat} {service.endpoint}:{ENDPOINT_PORT}; }}",
                f"chain endpoint-b-{name} {{ {dnat} {service.endpoint}:{ENDPOINT_PORT}; }}",
                f"chain service-{name} {{ {dispatch}; }}",
                f"chain external-{name} {{ {masquerade}goto service-{name}; }}",
            ]
    text = _NFTABLES.format(
        chains="\n".join(chains),
        ips=_elements(maps["service-ips"]),
        node_ports=_elements(maps["service-nodeports"]),
    )
    return f"nft -f - <<'END'\n{text}\nEND\n"


FORMS: Final[dict[str, Callable[[list[Service]], str]]] = {
    "iptables-legacy": lambda wanted: iptables("iptables-legacy", wanted),
    "iptables-nft": lambda wanted: iptables("iptables-nft", wanted),
    "nftables": nftables,
}
