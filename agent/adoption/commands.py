"""Pure: the AWS plugin's objects (v1.23) as commands: how to make them, and how to take them away.

Marks, chains, comments and priorities are the AWS plugin's; whoever takes over a node has to name them as they are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Final

_SNAT_FLAG: Final = {"prng": " --random-fully", "hashrandom": " --random", "none": ""}
_OURS: Final = re.compile(r"AWS-(SNAT|CONNMARK)-CHAIN-\d+|AWS, (primary ENI|outbound connections|CONNMARK|SNAT)")
_CHAIN: Final = re.compile(r"^:(AWS-(?:SNAT|CONNMARK)-CHAIN-\d+) ", re.MULTILINE)
CONNMARK_TABLE: Final = "aws-cni"


class Backend(StrEnum):
    """Which iptables the AWS plugin uses on this node."""

    LEGACY = "iptables-legacy"
    NFT = "iptables-nft"


@dataclass(frozen=True, slots=True, kw_only=True)
class NatSettings:
    """What the AWS plugin's NAT rules are made from.

    exempt: the VPC's CIDRs, then those excluded from translation.
    snat_port: a value of AWS_VPC_K8S_CNI_RANDOMIZESNAT.
    external_service_cidrs: destinations that leave by the primary ENI, AWS_EXTERNAL_SERVICE_CIDRS.
    """

    primary_ifname: str
    primary_address: IPv4Address
    exempt: tuple[IPv4Network, ...]
    veth_prefix: str
    external_snat: bool
    node_port_support: bool
    snat_port: str
    mark: int
    external_service_cidrs: tuple[IPv4Network, ...] = ()

    @property
    def restores_mark(self) -> bool:
        """Whether there is a rule for the mark at all."""
        return self.node_port_support or not self.external_snat


def removal(saved: str) -> str:
    """Input for `iptables-restore --noflush` that takes away what is the AWS plugin's, and nothing else; empty when
    there is nothing.

    saved: output of `iptables-save`.
    """
    text = ""
    for block in re.split(r"(?m)^(?=\*)", saved):
        table = re.match(r"\*(\w+)", block)
        chains = _CHAIN.findall(block)
        rules = [
            f"-D{line[2:]}"
            for line in block.splitlines()
            if line.startswith("-A ") and _OURS.search(line) and line.split()[1] not in chains
        ]
        if table and (chains or rules):
            # A chain is flushed by naming it; it can be deleted when nobody jumps to it any more.
            lines = [*(f":{chain} - [0:0]" for chain in chains), *rules, *(f"-X {chain}" for chain in chains)]
            text += "\n".join([f"*{table[1]}", *lines, "COMMIT"]) + "\n"
    return text


def installation(settings: NatSettings, backend: Backend) -> str:
    """Input for `iptables-restore --noflush` that makes the AWS plugin's rules, as its version 1.23 does."""
    mark = f"{settings.mark:#x}/{settings.mark:#x}"
    restore = f"-j CONNMARK --restore-mark --nfmask {settings.mark:#x} --ctmask {settings.mark:#x}"
    primary = '-m comment --comment "AWS, primary ENI"'
    pods = f"-i {settings.veth_prefix}+"
    mangle: list[str] = []
    if settings.node_port_support:
        local = "-m addrtype --dst-type LOCAL --limit-iface-in"
        mangle.append(f"-A PREROUTING -i {settings.primary_ifname} {primary} {local} -j CONNMARK --set-xmark {mark}")
    if settings.restores_mark:
        mangle.append(f"-A PREROUTING {pods} {primary} {restore}")
    if settings.node_port_support:
        mangle.append(f"-A PREROUTING -i vlan+ {primary} {restore}")
    nat: list[str] = [] if settings.external_snat else _snat(settings)
    if backend is Backend.LEGACY and not settings.external_snat:
        nat += [
            ":AWS-CONNMARK-CHAIN-0 - [0:0]",
            f'-A PREROUTING {pods} -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0',
            f'-A PREROUTING -m comment --comment "AWS, CONNMARK" {restore}',
            *_returns("AWS-CONNMARK-CHAIN-0", "AWS CONNMARK CHAIN", settings.exempt),
            f'-A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark {mark}',
        ]
    tables = (("mangle", mangle), ("nat", nat))
    return "".join("\n".join([f"*{name}", *lines, "COMMIT"]) + "\n" for name, lines in tables if lines)


def replacement(saved: str, settings: NatSettings, backend: Backend) -> str:
    """`removal` and `installation` as one transaction for each table: no packet sees it without the rules.

    A take-over or a way back that was interrupted may have left them whole, and in use.
    """
    tables: dict[str, list[str]] = {}
    for text in (removal(saved), installation(settings, backend)):
        lines: list[str] = []
        for line in text.splitlines():
            if line.startswith("*"):
                lines = tables.setdefault(line, [])
            elif line.startswith(":"):
                # A chain that is made anew is flushed by that, and must not be deleted first.
                lines[:] = [*(kept for kept in lines if kept != f"-X {line.split()[0][1:]}"), line]
            elif line != "COMMIT":
                lines.append(line)
    return "".join("\n".join([name, *lines, "COMMIT"]) + "\n" for name, lines in tables.items())


def _snat(settings: NatSettings) -> list[str]:
    final = '-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL'
    return [
        ":AWS-SNAT-CHAIN-0 - [0:0]",
        '-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0',
        *_returns("AWS-SNAT-CHAIN-0", "AWS SNAT CHAIN", settings.exempt),
        f"{final} -j SNAT --to-source {settings.primary_address}{_SNAT_FLAG[settings.snat_port]}",
    ]


def _returns(chain: str, comment: str, exempt: Sequence[IPv4Network]) -> list[str]:
    return [f'-A {chain} -d {each} -m comment --comment "{comment}" -j RETURN' for each in exempt]


def connmark_table(settings: NatSettings) -> str:
    """The table `ip aws-cni` as text for `nft -f`: where iptables is nf_tables, it stands for the connmark chain."""
    returns = "\n".join(f"    counter ip daddr {each} return" for each in settings.exempt)
    return f"""table ip {CONNMARK_TABLE} {{
  chain snat-mark {{
{returns}
    counter ct mark set ct mark | {settings.mark:#x}
  }}
  chain nat-prerouting {{
    type nat hook prerouting priority -90; policy accept;
    fib daddr type local return
    iifname "{settings.veth_prefix}*" counter jump snat-mark
    counter meta mark set ct mark & {settings.mark:#x}
  }}
}}
"""
