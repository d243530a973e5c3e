"""Values: what a look at the node shows, and what a plan consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from agent.adoption.commands import NatSettings
from agent.ipam.model import Mac


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link of the node. netns: name of the namespace its other end is in, where that has a name."""

    ifindex: int
    ifname: str
    mac: Mac
    kind: str
    group: int
    alias: str
    netns: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy rule. protocol: who made it. source, destination: None for all. text: as `ip rule` prints it."""

    pref: int
    protocol: int
    table_id: int | None
    source: IPv4Network | None
    destination: IPv4Network | None
    mark: int | None
    mask: int | None
    plain: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """An IPv4 unicast route. gateway: None on a link route."""

    table_id: int
    destination: IPv4Network
    gateway: IPv4Address | None
    ifname: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """The other end of a host veth. mac, addresses: of the interface whose peer the host veth is."""

    mac: Mac
    addresses: frozenset[IPv4Address]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """One look at the node.

    addresses: by link name, with their prefix lengths.
    containers: by name of the host veth, for those whose namespace could be entered.
    iptables: output of `iptables-save`, by command. tables: nftables tables, as `family name`.
    aws_node_running: whether somebody answers on the AWS plugin's socket.
    """

    links: tuple[Link, ...]
    rules: tuple[Rule, ...]
    routes: tuple[Route, ...]
    addresses: Mapping[str, tuple[tuple[IPv4Address, int], ...]]
    containers: Mapping[str, Container]
    iptables: Mapping[str, str]
    tables: frozenset[str]
    aws_node_running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """An attachment that changes hands."""

    container_id: str
    ifname: str
    namespace: str
    pod: str
    address: IPv4Address
    host_ifname: str
    ifindex: int
    pod_mac: Mac
    table_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondaryEni:
    """A secondary ENI as the kernel shows it."""

    mac: Mac
    ifname: str
    address: IPv4Address
    subnet: IPv4Network
    table_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Commands that belong together. program: `ip -batch -` and the like; feed: its standard input; without any, the
    program is not started."""

    why: str
    program: tuple[str, ...]
    feed: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be done, in order: `add`, then look again, then `remove`. refusals: why nothing will be done."""

    refusals: tuple[str, ...] = ()
    pods: tuple[Pod, ...] = ()
    enis: tuple[SecondaryEni, ...] = ()
    add: tuple[Step, ...] = ()
    remove: tuple[Step, ...] = ()
    nat: NatSettings | None = field(default=None)
