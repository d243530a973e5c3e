"""The kernel objects the AWS plugin (v1.23, IPv4, secondary-IP mode) makes on a node, as shell scripts and `ip`
batches: a node that is to be adopted, and the peer in the forwarding bench. Text comes out, nothing runs here.

Per pod a route in `main`, a rule at 512 to it and, on a secondary ENI, a rule at 1536 from it; per node the chains
AWS-SNAT-CHAIN-0 and AWS-CONNMARK-CHAIN-0, three mangle rules and the rule for mark 0x80.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network

MARK = "0x80/0x80"


class Backend(StrEnum):
    """Where the NAT rules are. IPTABLES_NFT: versions before the connmark table; NFT_CONNMARK: since."""

    LEGACY = "iptables-legacy"
    IPTABLES_NFT = "iptables-nft"
    NFT_CONNMARK = "nft-connmark"

    @property
    def command(self) -> str:
        return "iptables-legacy" if self is Backend.LEGACY else "iptables-nft"


def veth_name(namespace: str, pod: str, prefix: str = "eni") -> str:
    return prefix + hashlib.sha1(f"{namespace}.{pod}".encode()).hexdigest()[:11]


def node_script(
    backend: Backend,
    primary_ifname: str,
    primary_address: IPv4Address,
    exempt: Sequence[IPv4Network],
    *,
    veth_prefix: str = "eni",
) -> str:
    """exempt: the VPC's CIDRs, then the excluded ones."""
    restore = f"{backend.command}-restore --noflush <<'END'\n"
    mangle = '-A PREROUTING -m comment --comment "AWS, primary ENI"'
    snat = '-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL'
    mark_restore = "-j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80"
    lines = [
        "*mangle",
        f"{mangle} -i {primary_ifname} -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark {MARK}",
        f"{mangle} -i {veth_prefix}+ {mark_restore}",
        f"{mangle} -i vlan+ {mark_restore}",
        "COMMIT",
        "*nat",
        ":AWS-SNAT-CHAIN-0 - [0:0]",
        '-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0',
        *(f'-A AWS-SNAT-CHAIN-0 -d {each} -m comment --comment "AWS SNAT CHAIN" -j RETURN' for each in exempt),
        f"{snat} -j SNAT --to-source {primary_address} --random-fully",
    ]
    if backend is not Backend.NFT_CONNMARK:
        lines += [
            ":AWS-CONNMARK-CHAIN-0 - [0:0]",
            f'-A PREROUTING -i {veth_prefix}+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0',
            '-A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80',
            *(
                f'-A AWS-CONNMARK-CHAIN-0 -d {each} -m comment --comment "AWS CONNMARK CHAIN" -j RETURN'
                for each in exempt
            ),
            f'-A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark {MARK}',
        ]
    script = restore + "\n".join([*lines, "COMMIT"]) + "\nEND\n"
    if backend is Backend.NFT_CONNMARK:
        script += _connmark_table(exempt, veth_prefix)
    return script + f"ip rule add pref 1024 fwmark {MARK} lookup main\n"


def _connmark_table(exempt: Sequence[IPv4Network], veth_prefix: str) -> str:
    returns = "\n".join(f"    counter ip daddr {each} return" for each in exempt)
    return f"""nft -f - <<'END'
table ip aws-cni {{
  chain snat-mark {{
{returns}
    counter ct mark set ct mark | 0x80
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority -90; policy accept;
    fib daddr type local return
    iifname "{veth_prefix}*" counter jump snat-mark
    counter meta mark set ct mark & 0x80
  }}
}}
END
"""


def eni_batch(ifname: str, address: IPv4Address, subnet: IPv4Network, table_id: int, mtu: int = 9001) -> str:
    """A secondary ENI."""
    gateway = subnet[1]
    return (
        f"link set {ifname} mtu {mtu} up\naddr add {address}/{subnet.prefixlen} broadcast + dev {ifname}\n"
        f"route replace {gateway}/32 dev {ifname} scope link table {table_id}\n"
        f"route replace default via {gateway} dev {ifname} table {table_id}\n"
        f"route del {subnet} dev {ifname} src {address}\n"
        f"rule add pref 32765 from {address} lookup {table_id}\n"
    )


def pod_batch(host_ifname: str, address: IPv4Address, table_id: int | None) -> str:
    """The host side of a pod, once its veth is up. table_id: None for a pod of the primary ENI."""
    source = f"rule add pref 1536 from {address} lookup {table_id}\n" if table_id else ""
    return (
        f"route replace {address}/32 dev {host_ifname} scope link\nrule add pref 512 to {address} lookup main\n{source}"
    )


def pod_inside_batch(ifname: str, address: IPv4Address, host_mac: str) -> str:
    """The pod's side, with the fixed next hop nobody answers for."""
    return (
        f"link set lo up\nlink set {ifname} up\nroute replace 169.254.1.1 dev {ifname} scope link\n"
        f"route add default via 169.254.1.1 dev {ifname}\naddr add {address}/32 dev {ifname}\n"
        f"neigh add 169.254.1.1 lladdr {host_mac} dev {ifname} nud permanent\n"
    )
