"""Pure: what `/v1/doctor` looks at in the kernel and asks EC2. None: it cannot be told, or nobody answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFacts:
    """A link. address_assigned: /sys/class/net/*/addr_assign_type (0 permanent, 1 random, 3 set), None unknown."""

    ifname: str
    kind: str
    mac: str
    mtu: int
    alias: str
    is_ours: bool
    is_leaving: bool
    route_count: int
    address_assigned: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFacts:
    """A policy rule. protocol: rtnetlink's number; `is_ours` by that number."""

    pref: int
    table_id: int
    mark: int
    mark_mask: int
    is_ours: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainFacts:
    """A base chain of nftables, iptables-nft's included. policy: `accept` or `drop`."""

    family: str
    table: str
    name: str
    hook: str
    policy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts:
    """features: by name, whether the kernel has it; None where that cannot be told without a change.

    foreign_marks: constants that others' nftables rules set in packet marks, as `table: rule`.
    foreign_routes: routes of others in our tables, by table. legacy_tables: iptables-legacy tables in use.
    """

    links: tuple[LinkFacts, ...]
    rules: tuple[RuleFacts, ...]
    chains: tuple[ChainFacts, ...]
    features: Mapping[str, bool | None]
    foreign_marks: tuple[str, ...]
    foreign_routes: Mapping[int, int]
    has_table: bool
    legacy_tables: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudFacts:
    """permissions: by IAM action, "" when a dry run was allowed, else EC2's words. unknown: actions with no answer.

    leaked: ENIs of ours attached to nothing. hop_limit: of IMDS' answers. skew_s: our clock minus EC2's.
    subnets: free addresses by subnet. reachable: why EC2 does not answer, "" when it does.
    """

    reachable: str
    permissions: Mapping[str, str]
    unknown: tuple[str, ...]
    hop_limit: int | None
    skew_s: float | None
    leaked: tuple[str, ...] | None
    subnets: Mapping[str, int] | None
