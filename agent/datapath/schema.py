"""Pure: the nftables table as text. Everything that varies with pods or time lives in sets, maps and chains beside it.

Why the hook priorities are what they are:
- ingress_mark -150: after conntrack (-200), before destination NAT and routing; an ENI does not depend on the
  destination.
- classify filter -90: after destination NAT (-100), so that a Service whose endpoint is outside the VPC counts as
  outside. Of type filter, because the nat core stops at the first chain that binds a connection: a nat chain at -90
  does not run for what kube-proxy translated.
- unexpected -300: before conntrack, on what stands in the packet: no reply to a host port is addressed to 127.0.0.0/8
  on the wire, so a pod that sends there wants the node's own services, which `route_localnet` would let it reach.
- hostports -95: after kube-proxy, so that a Service wins over a host port, and before classify, which must see where
  the packet goes.
- source_nat 110: after kube-proxy, Docker and portmap at 100; whoever binds first wins, and all give the same address.
Marks are only ever or-ed in, or replaced within 0x3f; other software's bits stay.

Interfaces are matched by name, not by index: the name survives a link that is detached and comes back.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from agent.datapath import layout
from agent.datapath.policy import DatapathPolicy, SnatPort
from agent.ports.datapath import CoolingSeen

_TABLE = f"{layout.NFT_FAMILY} {layout.NFT_TABLE}"
_GROUPS = f"{layout.POD_GROUPS.start}-{layout.POD_GROUPS.stop - 1}"
_NOT_ENI_MASK = 0xFFFFFFFF ^ layout.MARK_ENI_MASK
_ASIDE = f"{_TABLE}_aside"
_NAMES_CHAIN = re.compile(r"^\w+ (?:chain|rule) | eni_by_group ")
_COMMENT = re.compile(r'^\s*comment "enoki schema ([0-9a-f]{16})"$', re.MULTILINE)
_ENI_CHAIN = re.compile(r"^\s*chain eni_(\d+) \{$", re.MULTILINE)

_OUTSIDE = "ip daddr != @vpc4 ip daddr != @exclude4"
_CHAIN = re.compile(r"^\tchain (\w+) \{$")
_SET = re.compile(r"^\t(?:set|map) (\w+) \{$")
_VOLATILE_SETS = frozenset({layout.COOLING_SET, *layout.HOST_PORT_SETS})
_PORT_FLAG = {SnatPort.FULLY_RANDOM: " fully-random", SnatPort.HASHED: " random", SnatPort.KEPT: ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableSeen:
    """What is installed.

    schema_hash: empty for a table without our comment. eni_indexes: of the chains `eni_<n>`.
    rule_counts: of every other chain, by name.
    """

    schema_hash: str
    eni_indexes: frozenset[int]
    rule_counts: Mapping[str, int]


def schema(primary_ifname: str, primary_address: IPv4Address, policy: DatapathPolicy) -> str:
    """The inside of the table: sets without what varies, chains with their rules. One text per (node, policy)."""
    bit = f"{policy.primary_mark:#x}"
    return "".join(
        (
            _sets(policy),
            _ingress_mark(primary_ifname, bit, policy),
            _HOST_PORTS,
            "" if policy.external_snat else _classify(bit),
            _source_nat(primary_ifname, primary_address, policy),
        )
    )


def _sets(policy: DatapathPolicy) -> str:
    bound = "ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service"
    return f"""\
	{_set("vpc4", ())}
	{_set("exclude4", policy.exclude_snat_cidrs)}
	set {layout.COOLING_SET} {{ type ipv4_addr; flags timeout; comment "released addresses, not yet free"; }}
	map eni_by_group {{ type devgroup : verdict; comment "group of the host veth to the chain of its ENI"; }}
	map {layout.HOST_PORT_MAP} {{ type inet_proto . inet_service : ipv4_addr . inet_service; }}
	map {layout.HOST_PORT_IP_MAP} {{ type {bound}; }}
	set {layout.HAIRPIN_SET} {{ type ipv4_addr . ipv4_addr; comment "pods that have a host port"; }}
"""


def _ingress_mark(primary_ifname: str, bit: str, policy: DatapathPolicy) -> str:
    restore = f"""\
		ct mark & {bit} == {bit} meta iifgroup {_GROUPS} counter meta mark set meta mark | {bit} \
comment "reply goes back through the primary ENI"
"""
    save = f"""\
		ct state new iifname "{primary_ifname}" fib daddr . iif type local counter ct mark set ct mark | {bit} \
comment "came in through the primary ENI"
"""
    return f"""\
	chain ingress_mark {{
		type filter hook prerouting priority -150; policy accept;
		meta iifgroup vmap @eni_by_group
{restore if policy.restores_primary_mark else ""}{save if policy.node_port_support else ""}\
	}}
"""


_HOST_PORTS = f"""\
	chain unexpected {{
		type filter hook prerouting priority -300; policy accept;
		meta iifgroup {_GROUPS} ip daddr 127.0.0.0/8 counter drop comment "a pod is not the node"
	}}
	chain hostports {{
		fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @{layout.HOST_PORT_IP_MAP}
		fib daddr type local dnat ip to meta l4proto . th dport map @{layout.HOST_PORT_MAP}
	}}
	chain hostports_in {{
		type nat hook prerouting priority -95; policy accept;
		jump hostports
	}}
	chain hostports_out {{
		type nat hook output priority -95; policy accept;
		jump hostports
	}}
"""


def _classify(bit: str) -> str:
    return f"""\
	chain classify {{
		type filter hook prerouting priority -90; policy accept;
		ct state new meta iifgroup {_GROUPS} meta nfproto ipv4 {_OUTSIDE} fib daddr type != local counter \
ct mark set ct mark | {bit} meta mark set meta mark | {bit} comment "leaves the VPC"
	}}
"""


def _source_nat(primary_ifname: str, primary_address: IPv4Address, policy: DatapathPolicy) -> str:
    as_node = f"snat ip to {primary_address}"
    leaving = f"""\
		oifname "{primary_ifname}" ip saddr != {primary_address} {_OUTSIDE} counter \
{as_node}{_PORT_FLAG[policy.randomize_snat]} comment "leaves the VPC as the node"
"""
    return f"""\
	chain source_nat {{
		type nat hook postrouting priority 110; policy accept;
		ip saddr . ip daddr @{layout.HAIRPIN_SET} ct status dnat counter {as_node} fully-random \
comment "a pod reaches itself by its host port"
		ip saddr 127.0.0.0/8 oifgroup {_GROUPS} ct status dnat counter {as_node} fully-random \
comment "the node reaches a host port by its loopback"
{"" if policy.external_snat else leaving}\
	}}
"""


def _set(name: str, networks: Sequence[IPv4Network]) -> str:
    elements = f" elements = {{ {_listed(networks)} }};" if networks else ""
    return f"set {name} {{ type ipv4_addr; flags interval; auto-merge;{elements} }}"


def _listed(networks: Sequence[IPv4Network]) -> str:
    return ", ".join(str(network) for network in networks)


def schema_hash(text: str) -> str:
    """16 hex digits; they stand in the table's comment, so that a later start sees whether anything has to be
    rebuilt."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def install(
    text: str,
    vpc_cidrs: Sequence[IPv4Network],
    cooling: Sequence[CoolingSeen],
    eni_indexes: Sequence[int],
    host_ports: str = "",
) -> str:
    """Replace the whole table, with everything that varied, in one transaction: no packet sees it half made.

    host_ports: commands that fill the maps of host ports.
    """
    return "".join(
        (
            f"add table {_TABLE}\ndelete table {_TABLE}\n",
            f'table {_TABLE} {{\n\tcomment "enoki schema {schema_hash(text)}"\n{text}}}\n',
            set_vpc_cidrs(vpc_cidrs),
            _cool(cooling),
            host_ports,
            *(add_eni(index) for index in eni_indexes),
        )
    )


def replacement(installation: str) -> tuple[str, ...]:
    """`install` for a table that is there and has packets in it: transactions, to be applied in this order.

    A second table says the same meanwhile. Saying it twice does no harm: marks are or-ed, the first translation binds.
    """
    sets, rules = in_two(installation)
    return (
        sets.replace(_TABLE, _ASIDE),
        rules.replace(_TABLE, _ASIDE),
        f"flush table {_TABLE}\n",
        sets,
        rules,
        *delete_aside(),
    )


def in_two(installation: str) -> tuple[str, str]:
    """`install` as two transactions: sets with their elements, then the rules that look into them.

    One transaction misroutes, one new connection in a few hundred on a busy node (Linux 6.18): the elements of a new
    interval set are there a moment after the rules, and those of an old one go a moment before them; meanwhile nothing
    is in the VPC, and is translated.
    """
    before, inner = installation.split("\tchain ", 1)
    chains, after = inner.split("\n}\n", 1)
    elements = [line for line in after.splitlines(keepends=True) if not _NAMES_CHAIN.search(line)]
    naming = [line for line in after.splitlines(keepends=True) if _NAMES_CHAIN.search(line)]
    return f"{before}}}\n{''.join(elements)}", f"table {_TABLE} {{\n\tchain {chains}\n}}\n{''.join(naming)}"


def list_aside() -> str:
    """The second table of `replacement`, which an agent that was killed there leaves."""
    return f"list table {_ASIDE}"


def delete_aside() -> tuple[str, str]:
    """Transactions that remove it."""
    return (f"flush table {_ASIDE}\n", f"delete table {_ASIDE}\n")


def set_vpc_cidrs(cidrs: Sequence[IPv4Network]) -> str:
    """Swap the whole set."""
    return f"flush set {_TABLE} vpc4\nadd element {_TABLE} vpc4 {{ {_listed(cidrs)} }}\n"


def add_eni(index: int) -> str:
    """The chain that marks packets with the ENI's number, and the group that leads to it. Repeatable."""
    chain = f"{_TABLE} eni_{index}"
    return (
        f"add chain {chain}\nflush chain {chain}\n"
        f"add rule {chain} meta mark set meta mark & {_NOT_ENI_MASK:#x} | {index:#x} return\n"
        f"add element {_TABLE} eni_by_group {{ {layout.POD_GROUP_BASE + index} : jump eni_{index} }}\n"
    )


def delete_eni(index: int) -> str:
    """Fails as a whole when there is no such chain."""
    return (
        f"delete element {_TABLE} eni_by_group {{ {layout.POD_GROUP_BASE + index} : jump eni_{index} }}\n"
        f"delete chain {_TABLE} eni_{index}\n"
    )


def list_table() -> str:
    """The command that prints it."""
    return f"list table {_TABLE}"


def parse_table(listing: str) -> TableSeen:
    """Read the text that `list table` prints (nft(8), 1.0.6)."""
    comment = _COMMENT.search(listing)
    return TableSeen(
        schema_hash=comment[1] if comment else "",
        eni_indexes=frozenset(int(found[1]) for found in _ENI_CHAIN.finditer(listing)),
        rule_counts=rule_counts(listing),
    )


def rule_counts(text: str) -> Mapping[str, int]:
    """Rules by chain, of a schema or of a listing: one line each. A start that finds its hash in the table's comment
    still notices a chain that somebody emptied."""
    counts: dict[str, int] = {}
    chain = ""
    for line in text.splitlines():
        opened = _CHAIN.match(line)
        if opened is not None:
            chain = opened[1]
            counts[chain] = 0
        elif line.strip() == "}":
            chain = ""
        elif chain and line.strip() and not line.strip().startswith("type "):
            counts[chain] += 1
    return {name: count for name, count in counts.items() if not name.startswith("eni_")}


def stable(listing: str) -> str:
    """A listing without what pods and time change in it: two of them are equal unless somebody else was at work."""
    kept: list[str] = []
    volatile = elements = False
    for line in listing.splitlines():
        opened = _SET.match(line)
        if opened is not None:
            volatile = opened[1] in _VOLATILE_SETS
        if volatile and line.strip().startswith("elements ="):
            elements = True
        if not elements:
            kept.append(line)
        if elements and line.rstrip().endswith("}"):
            elements = False
    return "\n".join(kept)


def _cool(cooling: Sequence[CoolingSeen]) -> str:
    timed = [
        f"{each.address} timeout {max(1, round(each.remaining_s * 1000))}ms"
        for each in cooling
        if each.remaining_s != float("inf")
    ]
    return f"add element {_TABLE} {layout.COOLING_SET} {{ {', '.join(timed)} }}\n" if timed else ""
