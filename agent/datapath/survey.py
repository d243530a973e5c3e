"""The kernel as `/v1/doctor` looks at it. Reads only: what nftables can do is asked with its check mode, which the
kernel validates and throws away (nft(8), "--check").
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from nftables import Nftables
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from agent.datapath import cold, layout, messages, seen
from agent.datapath.desired import AF_INET
from agent.datapath.netlink import NLM_F_DUMP, NetlinkRefused, NetlinkSocket, message
from agent.surveyed import ChainFacts, KernelFacts, LinkFacts, RuleFacts

_RTM_GETNETCONF: Final = 82
_PROBE: Final = "enoki_probe"
_PROBES: Final = {
    "nft sets with timeouts": "add set inet {t} s {{ type ipv4_addr; flags timeout; }}",
    "nft interval sets": "add set inet {t} s {{ type ipv4_addr; flags interval; }}",
    "nft verdict maps by group": "add map inet {t} m {{ type devgroup : verdict; }}",
    "nft fib": "add chain inet {t} c; add rule inet {t} c fib daddr type local counter",
    "nft ct mark": "add chain inet {t} c; add rule inet {t} c ct mark and 0x80 == 0x80 meta mark set meta mark or 0x80",
    "nft nat": "add chain inet {t} c {{ type nat hook postrouting priority 110; }}; "
    "add rule inet {t} c snat ip to 192.0.2.1 fully-random",
}
_CONFIGS: Final = {
    "tbf (bandwidth limits)": ("CONFIG_NET_SCH_TBF", "sch_tbf"),
    "ingress policing": ("CONFIG_NET_SCH_INGRESS", "sch_ingress"),
}
_TABLE: Final = re.compile(r"table (\w+) (\S+) \{")
_SETS_MARK: Final = re.compile(r"(?:meta|ct) mark set ((?:(?:meta|ct) )?mark (?:and|or|xor) )?(0x[0-9a-f]+)\b")


def survey(
    route: NetlinkSocket, nft: tuple[tuple[ChainFacts, ...], tuple[str, ...], dict[str, bool | None]]
) -> KernelFacts:
    """In a netlink thread. nft: what `survey_nftables` found. Raises: NetlinkRefused, OSError."""
    chains, foreign_marks, features = nft
    rules = tuple(_rules(route))
    counts = Counter(one.ifindex for one in seen.pod_routes(route))
    links = tuple(
        LinkFacts(
            ifname=one.ifname,
            kind=one.kind,
            mac=one.mac,
            mtu=one.mtu,
            alias=one.alias,
            is_ours=one.kind == "veth" and layout.is_ours(one.group),
            is_leaving=one.group == layout.LEAVING_GROUP,
            route_count=counts[one.ifindex],
            address_assigned=_number(Path(f"/sys/class/net/{one.ifname}/addr_assign_type")),
        )
        for one in (messages.parse_link(each.payload) for each in route.dump(messages.dump_links()))
    )
    tables = {layout.PODS_TABLE} | {one.table_id for one in rules if one.is_ours and one.table_id != layout.MAIN_TABLE}
    return KernelFacts(
        links=links,
        rules=rules,
        chains=chains,
        features={**features, "RTM_GETNETCONF": _has_netconf(route), "conntrack": _has_conntrack(), **_configured()},
        foreign_marks=foreign_marks,
        foreign_routes={table: _foreign_routes(route, table) for table in sorted(tables)},
        has_table=any(one.table == layout.NFT_TABLE for one in chains),
        legacy_tables=_legacy_tables(),
    )


def survey_nftables() -> tuple[tuple[ChainFacts, ...], tuple[str, ...], dict[str, bool | None]]:
    """In the libnftables thread: base chains, others' rules that set marks of ours, features."""
    context = Nftables()
    context.set_json_output(val=True)
    code, text, _ = context.cmd("list chains")
    found = [] if code else [one["chain"] for one in json.loads(text)["nftables"] if "chain" in one]
    chains = tuple(
        ChainFacts(
            family=one["family"],
            table=one["table"],
            name=one["name"],
            hook=one["hook"],
            policy=one.get("policy", "accept"),
        )
        for one in found
        if "hook" in one
    )
    plain = Nftables()
    plain.set_stateless_output(val=True)
    _, ruleset, _ = plain.cmd("list ruleset")
    return chains, tuple(foreign_marks(str(ruleset))), {name: _allows(probe) for name, probe in _PROBES.items()}


def foreign_marks(ruleset: str) -> Iterator[str]:
    """Pure: others' rules that set bits of ours, out of `nft list ruleset`, as `family table: rule`."""
    table = ""
    for line in ruleset.splitlines():
        if (opened := _TABLE.match(line)) is not None:
            table = f"{opened[1]} {opened[2]}"
        if table == f"{layout.NFT_FAMILY} {layout.NFT_TABLE}":
            continue
        for found in _SETS_MARK.finditer(line):
            bits = int(found[2], 16)
            keeps = found[1] and " and " in f" {found[1]} "
            touched = ~bits if keeps else bits
            if touched & (layout.MARK_KEPT_MASK | layout.MARK_PRIMARY) & 0xFFFFFFFF:
                yield f"{table}: {line.strip()[:120]}"


def _allows(probe: str) -> bool:
    context = Nftables()
    context.set_dry_run(True)
    code, _, _ = context.cmd(f"add table inet {_PROBE}; {probe.format(t=_PROBE)}")
    return not code


def _rules(route: NetlinkSocket) -> Iterator[RuleFacts]:
    for each in route.dump(cold.dump_rules(AF_INET)):
        decoded = cold.decode(fibmsg, each)
        attrs = dict(decoded["attrs"])
        yield RuleFacts(
            pref=attrs.get("FRA_PRIORITY", 0),
            table_id=attrs.get("FRA_TABLE", decoded["table"]),
            mark=attrs.get("FRA_FWMARK", 0),
            mark_mask=attrs.get("FRA_FWMASK", 0),
            is_ours=attrs.get("FRA_PROTOCOL") == layout.PROTOCOL,
        )


def _foreign_routes(route: NetlinkSocket, table_id: int) -> int:
    try:
        dumped = route.dump(cold.dump_routes(AF_INET, table_id, 0))
    except NetlinkRefused as exc:
        if exc.errno == errno.ENOENT:
            return 0
        raise
    return sum(cold.decode(rtmsg, each)["proto"] != layout.PROTOCOL for each in dumped)


def _has_netconf(route: NetlinkSocket) -> bool:
    try:
        route.dump(message(_RTM_GETNETCONF, NLM_F_DUMP, bytes([socket.AF_INET, 0, 0, 0])))
    except NetlinkRefused:
        return False
    return True


def _has_conntrack() -> bool:
    return Path("/proc/sys/net/netfilter/nf_conntrack_max").exists()


def _configured() -> dict[str, bool | None]:
    text = ""
    with suppress(OSError):
        text = gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    builtin = ""
    with suppress(OSError):
        builtin = Path(f"/lib/modules/{os.uname().release}/modules.dep").read_text()
    found: dict[str, bool | None] = {}
    for name, (option, module) in _CONFIGS.items():
        known = f"{option}=" in text or Path(f"/sys/module/{module}").exists() or f"/{module}.ko" in builtin
        found[name] = True if known else (False if text else None)
    return found


def _legacy_tables() -> tuple[str, ...]:
    with suppress(OSError):
        return tuple(Path("/proc/net/ip_tables_names").read_text().split())
    return ()


def _number(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return None
