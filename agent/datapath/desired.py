"""Pure: what should exist in the kernel for a pod, an ENI and the node."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from agent.datapath import layout
from agent.datapath.policy import DatapathPolicy
from agent.errors import Cause, KernelFailed
from agent.ipam.model import Address, AttachmentKey, Eni, Holder, Mac
from agent.ports.datapath import PodWiring, Shaping, Wired

AF_INET = 2
AF_INET6 = 10
"""include/linux/socket.h; the same on every Linux."""

FIRST_KERNEL_TABLE = 253
"""RT_TABLE_DEFAULT (include/uapi/linux/rtnetlink.h); main and local follow."""

ETHERNET_HEADER_BYTES = 14
SHAPING_LATENCY_MS = 25
"""As the reference bandwidth plugin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodPlan:
    """One attachment as kernel objects.

    alias: owner of the host veth, see `alias_of`.
    group: link group of the host veth; names the ENI the pod leaves by.
    pod_table_id: a table of the container for what this interface sends; `main` alone for the first interface.
    host_ports: whether ports of the node lead here.
    to_pod, from_pod: on the host's and on the container's end; None without a limit.
    """

    host_ifname: str
    host_mac: Mac
    alias: str
    group: int
    pod_ifname: str
    pod_table_id: int
    pod_mac: Mac
    mtu: int
    netns: str
    addresses: tuple[Address, ...]
    host_ports: bool
    to_pod: Bucket | None
    from_pod: Bucket | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """A token bucket as the kernel takes it (tc-tbf(8)).

    limit_bytes: the queue in front of it: what arrives above the rate waits 25 ms at most, and is dropped then.
    """

    rate_bytes_per_s: int
    burst_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSpec:
    """A policy rule of ours: `pref <pref> [from <source>/32] [to <destination>] [fwmark <mark>/<mark_mask>] lookup
    <table_id>`.

    source, destination: None matches every one. mark_mask: 0 does not look at the mark.
    """

    family: int = AF_INET
    pref: int
    table_id: int
    source: IPv4Address | None = None
    destination: IPv4Network | None = None
    mark: int = 0
    mark_mask: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EniPlan:
    """A secondary ENI as kernel objects."""

    mac: Mac
    table_id: int
    index: int
    address: IPv4Address
    prefix_length: int
    gateway: IPv4Address
    rules: tuple[RuleSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleChanges:
    """What to do to the policy rules, additions first."""

    add: tuple[RuleSpec, ...]
    delete: tuple[RuleSpec, ...]


def host_veth_name(holder: Holder, prefix: str) -> str:
    """The name of the host end: prefix and 11 hex digits of a SHA-1; at most 15 characters (IFNAMSIZ - 1).

    `eth0` of a named pod hashes "namespace.pod", as the AWS plugin does: the AWS network policy agent and Calico find
    the veth by that. Anything else hashes "container id/ifname"; a slash is in neither kind of name, so the two never
    meet.
    """
    if holder.pod and holder.key.ifname == "eth0":
        subject = f"{holder.namespace}.{holder.pod}"
    else:
        subject = f"{holder.key.container_id}/{holder.key.ifname}"
    return prefix + hashlib.sha1(subject.encode()).hexdigest()[: layout.NAME_HASH_HEX_COUNT]


def mac_of(key: AttachmentKey, side: str) -> Mac:
    """The MAC of one end: the same for ever for the same attachment, so that no journal has to remember it.

    side: "host" or "pod". Locally administered, unicast (IEEE 802: bit 1 of the first octet set, bit 0 clear). An
    explicit MAC also keeps systemd's MACAddressPolicy=persistent away from the link.
    """
    digest = bytearray(hashlib.sha256(f"{key.container_id}/{key.ifname}/{side}".encode()).digest()[:6])
    digest[0] = digest[0] & 0xFC | 0x02
    return Mac(digest.hex(":"))


def alias_of(holder: Holder) -> str:
    """`enoki <container id> <ifname> <namespace>/<pod>`, cut to 255 bytes; without the last word for an unnamed pod."""
    words = [layout.ALIAS_PREFIX, holder.key.container_id, holder.key.ifname]
    if holder.pod:
        words.append(f"{holder.namespace}/{holder.pod}")
    return " ".join(words).encode()[: layout.ALIAS_BYTES].decode(errors="ignore")


def holder_of(alias: str) -> Holder | None:
    """Read an alias back; None when it is not one of ours. A pod name that was cut comes back cut."""
    words = alias.split(" ")
    if len(words) not in (3, 4) or words[0] != layout.ALIAS_PREFIX or not all(words):
        return None
    namespace, _, pod = words[3].partition("/") if len(words) == 4 else ("", "", "")
    return Holder(key=AttachmentKey(container_id=words[1], ifname=words[2]), namespace=namespace, pod=pod)


def describe_wiring(wiring: PodWiring, policy: DatapathPolicy) -> Wired:
    """The links `wire` makes (or made, before a restart) for this attachment."""
    key = wiring.holder.key
    return Wired(
        host_ifname=host_veth_name(wiring.holder, policy.veth_prefix),
        host_mac=mac_of(key, "host"),
        pod_mac=mac_of(key, "pod"),
    )


def mark_index(table_id: int) -> int:
    """The ENI's number in the packet mark and the link group: 0 for the primary ENI, else its table id.

    Raises: KernelFailed for a table that does not fit into six bits (an ENI of a network card above 0).
    """
    if table_id == layout.MAIN_TABLE:
        return 0
    if 2 <= table_id <= layout.MARK_ENI_MASK:
        return table_id
    raise KernelFailed(
        Cause.KERNEL_REFUSED,
        f"routing table {table_id} has no packet mark: pods on network cards above 0 are not supported",
        evidence={"table_id": table_id},
    )


def plan_pod(wiring: PodWiring, policy: DatapathPolicy) -> PodPlan:
    """Everything `wire` writes.

    Raises: KernelFailed for an ENI that pods cannot leave by, see `mark_index`.
    """
    wired = describe_wiring(wiring, policy)
    return PodPlan(
        host_ifname=wired.host_ifname,
        host_mac=wired.host_mac,
        alias=alias_of(wiring.holder),
        group=layout.POD_GROUP_BASE + mark_index(wiring.table_id),
        pod_ifname=wiring.holder.key.ifname,
        pod_table_id=pod_table_id(wiring.holder.key.ifname),
        pod_mac=wired.pod_mac,
        mtu=wiring.mtu,
        netns=wiring.netns,
        addresses=wiring.addresses,
        host_ports=bool(wiring.port_mappings),
        to_pod=None if wiring.ingress is None else bucket(wiring.ingress, wiring.mtu),
        from_pod=None if wiring.egress is None else bucket(wiring.egress, wiring.mtu),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSide:
    """What the node's own namespace has of one attachment, once it is wired.

    mac, pod_mac: of the host's and of the container's end.
    """

    key: AttachmentKey
    ifindex: int
    ifname: str
    alias: str
    group: int
    mac: Mac
    pod_mac: Mac
    mtu: int
    addresses: tuple[Address, ...]
    host_ports: bool
    to_pod: Bucket | None


def host_side(key: AttachmentKey, plan: PodPlan, ifindex: int) -> HostSide:
    """The part of a plan that stays in sight of the node."""
    return HostSide(
        key=key,
        ifindex=ifindex,
        ifname=plan.host_ifname,
        alias=plan.alias,
        group=plan.group,
        mac=plan.host_mac,
        pod_mac=plan.pod_mac,
        mtu=plan.mtu,
        addresses=plan.addresses,
        host_ports=plan.host_ports,
        to_pod=plan.to_pod,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDesired:
    """Everything of ours that the node's namespace should have.

    primary_mac: empty before the node is prepared. enis: the secondary ones.
    """

    primary_mac: Mac
    eni_mtu: int
    rules: tuple[RuleSpec, ...]
    enis: tuple[EniPlan, ...]
    pods: tuple[HostSide, ...]


def pod_table_id(ifname: str) -> int:
    """The number at the end of an interface's name: `eth0` is the first, `net2` has table 2 (as the AWS plugin numbers
    them); 254, main, when there is none, or one that other tables have."""
    number = re.search(r"(\d{1,3})$", ifname)
    index = int(number[1]) if number else 0
    return index if 0 < index < FIRST_KERNEL_TABLE else layout.MAIN_TABLE


def pod_rules(plan: PodPlan) -> tuple[RuleSpec, ...]:
    """Inside the container: what an interface beyond the first sends leaves by it."""
    if plan.pod_table_id == layout.MAIN_TABLE:
        return ()
    return tuple(
        RuleSpec(pref=layout.POD_RULE_PREF, table_id=plan.pod_table_id, source=address)
        for address in plan.addresses
        if isinstance(address, IPv4Address)
    )


def bucket(shaping: Shaping, mtu: int) -> Bucket:
    """The bucket of a limit. It holds at least one whole frame: the kernel drops what is larger than the bucket."""
    rate_bytes_per_s = max(1, shaping.rate_bits_per_s // 8)
    burst_bytes = max(shaping.burst_bits // 8, mtu + ETHERNET_HEADER_BYTES)
    limit_bytes = rate_bytes_per_s * SHAPING_LATENCY_MS // 1000 + burst_bytes
    return Bucket(rate_bytes_per_s=rate_bytes_per_s, burst_bytes=burst_bytes, limit_bytes=min(limit_bytes, 0xFFFFFFFF))


def gateways(addresses: Sequence[Address]) -> tuple[Address, ...]:
    """The next hops inside a container with these addresses, one per family."""
    versions = {address.version for address in addresses}
    by_version: dict[int, Address] = {4: IPv4Address(layout.POD_GATEWAY_V4), 6: IPv6Address(layout.POD_GATEWAY_V6)}
    return tuple(gateway for version, gateway in by_version.items() if version in versions)


def eni_table_id(eni: Eni) -> int:
    """The routing table of an ENI: main for the primary, device + 1 on card 0, 10000 + 100 card + device on others."""
    if eni.is_primary:
        return layout.MAIN_TABLE
    if eni.card == 0:
        return eni.device + 1
    return layout.CARD_TABLE_BASE + layout.CARD_TABLE_STRIDE * eni.card + eni.device


def plan_eni(eni: Eni) -> EniPlan:
    """What a secondary ENI needs. The gateway is the first host of the subnet (VPC user guide, subnet sizing).

    Raises: KernelFailed for an ENI of a network card above 0.
    """
    table_id = eni_table_id(eni)
    index = mark_index(table_id)
    return EniPlan(
        mac=eni.mac,
        table_id=table_id,
        index=index,
        address=eni.primary_address,
        prefix_length=eni.subnet_cidr.prefixlen,
        gateway=eni.subnet_cidr[1],
        rules=(
            RuleSpec(pref=layout.ENI_MARK_RULE_PREF, table_id=table_id, mark=index, mark_mask=layout.MARK_ENI_MASK),
            RuleSpec(pref=layout.ENI_SOURCE_RULE_PREF, table_id=table_id, source=eni.primary_address),
        ),
    )


def node_rules(policy: DatapathPolicy, *, ipv6: bool) -> tuple[RuleSpec, ...]:
    """The rules every node has, however many pods. ipv6: whether the kernel has IPv6 at all."""
    rules = [RuleSpec(pref=layout.PODS_RULE_PREF, table_id=layout.PODS_TABLE)]
    if policy.restores_primary_mark:
        mark = policy.primary_mark
        rules.append(
            RuleSpec(pref=layout.PRIMARY_MARK_RULE_PREF, table_id=layout.MAIN_TABLE, mark=mark, mark_mask=mark)
        )
    rules += (
        RuleSpec(
            pref=layout.SERVICE_RULE_PREF, table_id=layout.MAIN_TABLE, destination=cidr if cidr.prefixlen else None
        )
        for cidr in policy.external_service_cidrs
    )
    if ipv6:
        rules.append(RuleSpec(family=AF_INET6, pref=layout.PODS_RULE_PREF, table_id=layout.PODS_TABLE))
    return tuple(rules)


NODE_RULE_PREFS = frozenset({layout.PODS_RULE_PREF, layout.PRIMARY_MARK_RULE_PREF, layout.SERVICE_RULE_PREF})
"""Under which a rule of ours is one of `node_rules`, or of an earlier agent's with other settings."""


def change_rules(desired: Sequence[RuleSpec], ours: Sequence[RuleSpec]) -> RuleChanges:
    """From the rules of ours that exist to the ones that should; what is in use is never taken away first."""
    return RuleChanges(
        add=tuple(rule for rule in desired if rule not in ours),
        delete=tuple(rule for rule in ours if rule not in desired),
    )


def alike(wanted: Bucket | None, seen: Bucket | None) -> bool:
    """Whether a bucket read from the kernel is the one that was written. The burst comes back as a time: compared are
    rate and limit, which holds the burst."""
    if wanted is None or seen is None:
        return wanted is seen
    return (wanted.rate_bytes_per_s, wanted.limit_bytes) == (seen.rate_bytes_per_s, seen.limit_bytes)
