"""One look at the node, by the programs a person would look with: `ip -json`, `iptables-save`, `nft`. Blocking."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final

from agent.adoption.commands import Backend
from agent.adoption.model import Container, Link, Route, Rule, Survey
from agent.datapath import layout
from agent.errors import Cause, KernelFailed
from agent.ipam.model import Mac

DEADLINE_S: Final = 60.0
"""iptables-nft lists 5,000 Services in half a second; a minute is a lock held by somebody else."""

AWS_NODE_ADDRESS: Final = ("127.0.0.1", 50051)
"""Where the AWS plugin's agent serves its CNI plugin in versions without a Unix socket (v1.20.4, v1.15.5)."""

_PLAIN_RULE: Final = frozenset(
    {"priority", "src", "srclen", "dst", "dstlen", "table", "protocol", "fwmark", "fwmask", "suppress_prefixlen"}
)


def run(*argv: str, feed: str | None = None) -> str:
    """Raises: KernelFailed when the program is not there, fails, or takes longer than DEADLINE_S."""
    try:
        done = subprocess.run(argv, input=feed, capture_output=True, text=True, check=False, timeout=DEADLINE_S)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise KernelFailed(Cause.KERNEL_REFUSED, f"{' '.join(argv)}: {exc}") from exc
    if done.returncode:
        first = done.stderr.strip().partition("\n")[0]
        raise KernelFailed(Cause.KERNEL_REFUSED, f"{' '.join(argv)}: {first}", evidence={"input": (feed or "")[:500]})
    return done.stdout


def look(aws_node_socket: Path) -> Survey:
    """Raises: KernelFailed."""
    found = links()
    tables = {f"{one['family']} {one['name']}" for one in _nft_objects("table")}
    return Survey(
        links=found,
        rules=tuple(map(_rule, _ip("-4", "rule", "show"))),
        routes=tuple(
            route for each in _ip("-4", "route", "show", "table", "all") if (route := _route(each)) is not None
        ),
        addresses={
            str(each["ifname"]): tuple(
                (IPv4Address(one["local"]), int(one["prefixlen"]))
                for one in each["addr_info"]
                if one["family"] == "inet"
            )
            for each in _ip("-4", "addr", "show")
        },
        containers={link.ifname: inside for link in found if (inside := _container(link)) is not None},
        iptables={command: run(f"{command}-save") if shutil.which(f"{command}-save") else "" for command in Backend},
        tables=frozenset(tables),
        aws_node_running=answers(aws_node_socket) or answers(AWS_NODE_ADDRESS),
    )


def _ip(*arguments: str, netns: str = "") -> list[dict[str, Any]]:
    inside = ("-n", netns) if netns else ()
    text = run("ip", *inside, "-N", "-json", "-details", *arguments)
    found: list[dict[str, Any]] = json.loads(text) if text.strip() else []
    return [each for each in found if each]


def links() -> tuple[Link, ...]:
    """Every link of the node.

    Raises: KernelFailed.
    """
    names = {int(one["nsid"]): str(one.get("name", "")) for one in _ip("netns", "list-id")}
    return tuple(
        Link(
            ifindex=int(each["ifindex"]),
            ifname=str(each["ifname"]),
            mac=Mac(each.get("address", "")),
            kind=str(each.get("linkinfo", {}).get("info_kind", "")),
            group=int(each.get("group", 0)),
            alias=str(each.get("ifalias", "")),
            netns=names.get(int(each.get("link_netnsid", -1)), ""),
        )
        for each in _ip("link", "show")
    )


def _container(link: Link) -> Container | None:
    if link.kind != "veth" or not link.netns:
        return None
    for each in _ip("addr", "show", netns=link.netns):
        if each.get("link_index") == link.ifindex:
            addresses = (one["local"] for one in each["addr_info"] if one["family"] == "inet")
            return Container(mac=Mac(each["address"]), addresses=frozenset(map(IPv4Address, addresses)))
    return None


def _rule(each: dict[str, Any]) -> Rule:
    protocol = int(each.get("protocol", 0))
    return Rule(
        pref=int(each["priority"]),
        protocol=protocol,
        table_id=int(each["table"]) if "table" in each else None,
        source=_network(each, "src"),
        destination=_network(each, "dst"),
        mark=int(each["fwmark"], 0) if "fwmark" in each else None,
        mask=int(each.get("fwmask", "0xffffffff"), 0) if "fwmark" in each else None,
        plain=each.keys() <= _PLAIN_RULE,
        text=" ".join(f"{key} {value}" for key, value in each.items()),
    )


def _network(each: dict[str, Any], side: str) -> IPv4Network | None:
    if each.get(side, "all") in ("all", "default"):
        return None
    return IPv4Network(f"{each[side]}/{each.get(f'{side}len', 32)}")


def _route(each: dict[str, Any]) -> Route | None:
    if each.get("type", "unicast") not in ("unicast", "1", 1) or "dev" not in each:
        return None
    destination = "0.0.0.0/0" if each["dst"] == "default" else each["dst"]
    return Route(
        table_id=int(each.get("table", layout.MAIN_TABLE)),
        destination=IPv4Network(destination),
        gateway=IPv4Address(each["gateway"]) if "gateway" in each else None,
        ifname=str(each["dev"]),
    )


def _nft_objects(kind: str) -> list[dict[str, Any]]:
    listing = json.loads(run("nft", "--json", "list", f"{kind}s"))
    return [entry[kind] for entry in listing["nftables"] if kind in entry]


def answers(where: Path | tuple[str, int]) -> bool:
    """Whether somebody listens on this Unix socket, or on this address and TCP port of the node."""
    family, address = (socket.AF_UNIX, str(where)) if isinstance(where, Path) else (socket.AF_INET, where)
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(address)
        except OSError:
            return False
        return True
