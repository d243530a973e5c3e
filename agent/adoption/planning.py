"""Pure: from the AWS plugin's file and a look at the node to what will be done, or to every reason why not.

Any doubt is a refusal: an address without its veth, a veth without its address, a route or rule that is not where the
AWS plugin puts it, somebody else's rule where ours and theirs would answer differently.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from agent.adoption import commands
from agent.adoption.checkpoint import Allocation
from agent.adoption.commands import NatSettings
from agent.adoption.enis import secondary_enis
from agent.adoption.model import Link, Plan, Pod, Rule, SecondaryEni, Step, Survey
from agent.adoption.rules import IP, batch, has_rule, owners_of, shared_rules
from agent.datapath import layout
from agent.datapath.desired import alias_of, host_veth_name
from agent.ipam.model import AttachmentKey, Holder

_AWS_VETH: Final = re.compile(r"[a-z][a-z0-9]{0,3}[0-9a-f]{11}")
_SHARED_PREFS: Final = (
    layout.PODS_RULE_PREF,
    layout.PRIMARY_MARK_RULE_PREF,
    layout.ENI_MARK_RULE_PREF,
    layout.ENI_SOURCE_RULE_PREF,
)
_STRICT_LOCAL_PREF: Final = 20
_OUR_BITS: Final = 0x7F
"""ENI and branch bits of the mark: the AWS plugin does not set them, ours does."""

_MAX_SHOWN: Final = 5
_NO_PROTOCOL: Final = 0


def plan_adoption(allocations: Sequence[Allocation], survey: Survey, nat: NatSettings) -> Plan:
    """Take the node over."""
    pods, doubts = _pods_of(allocations, survey, nat.veth_prefix)
    enis, eni_doubts = secondary_enis(survey)
    tables = {eni.table_id for eni in enis} | {layout.MAIN_TABLE}
    doubts += eni_doubts
    doubts += [
        f"{pod.host_ifname} ({pod.address}) leaves by table {pod.table_id}, which is no ENI's"
        for pod in pods
        if pod.table_id not in tables
    ]
    doubts += _node_doubts(survey, nat, pods)
    if doubts:
        return Plan(refusals=tuple(doubts))
    return Plan(pods=pods, enis=enis, nat=nat, add=_our_steps(pods), remove=_their_removal(pods, enis, survey, nat))


def _pods_of(allocations: Sequence[Allocation], survey: Survey, prefix: str) -> tuple[tuple[Pod, ...], list[str]]:
    doubts: list[str] = []
    for what, counted in (
        ("address", Counter(str(each.address) for each in allocations)),
        ("interface", Counter(f"{each.container_id}/{each.ifname}" for each in allocations)),
    ):
        doubts += [f"the file has the {what} {value} {count} times" for value, count in counted.items() if count > 1]
    by_suffix = {link.ifname[-layout.NAME_HASH_HEX_COUNT :]: link for link in survey.links if _is_aws_veth(link)}
    pods: list[Pod] = []
    for each in allocations:
        suffix = host_veth_name(_holder(each, "eth0"), prefix)[len(prefix) :]
        link = by_suffix.pop(suffix, None)
        if link is None:
            doubts.append(
                f"{each.address} of {each.namespace}/{each.pod} is in the file, but no host veth …{suffix} is"
            )
            continue
        pod, why = _pod(each, link, survey)
        doubts += why
        pods += [pod] if pod else []
    doubts += [f"the host veth {link.ifname} has no address in the file" for link in by_suffix.values()]
    return tuple(pods), doubts


def _is_aws_veth(link: Link) -> bool:
    return link.kind == "veth" and bool(_AWS_VETH.fullmatch(link.ifname))


def _holder(each: Allocation, ifname: str) -> Holder:
    key = AttachmentKey(container_id=each.container_id, ifname=ifname)
    return Holder(key=key, namespace=each.namespace, pod=each.pod)


def _pod(each: Allocation, link: Link, survey: Survey) -> tuple[Pod | None, list[str]]:
    name = f"{link.ifname} ({each.address})"
    host = IPv4Network(each.address)
    container = survey.containers.get(link.ifname)
    leads = [route for route in survey.routes if route.table_id == layout.MAIN_TABLE and route.destination == host]
    sources = [rule for rule in survey.rules if rule.pref == layout.ENI_MARK_RULE_PREF and rule.source == host]
    # An adoption that was interrupted is taken up where it stopped.
    begun = link.alias == alias_of(_holder(each, each.ifname)) and link.group in layout.POD_GROUPS
    why = []
    if container is None:
        why.append(f"{name}: its container's network namespace is not in /run/netns")
    elif each.address not in container.addresses:
        why.append(f"{name}: the container does not have this address")
    if not begun and [route.ifname for route in leads] != [link.ifname]:
        why.append(f"{name}: table main leads it to {', '.join(route.ifname for route in leads) or 'nothing'}")
    if not begun and not any(rule.pref == layout.PODS_RULE_PREF and rule.destination == host for rule in survey.rules):
        why.append(f"{name}: there is no rule {layout.PODS_RULE_PREF} to it")
    if len(sources) > 1 or any(rule.table_id is None or not rule.plain for rule in sources):
        why.append(f"{name}: {len(sources)} rules {layout.ENI_MARK_RULE_PREF} from it; at most one plain rule is known")
    if not begun and (link.alias or layout.is_ours(link.group)):
        why.append(f"{name}: the link has the alias {link.alias!r} or our group {link.group} already")
    if why or container is None:
        return None, why
    table_id = sources[0].table_id if sources else None
    if begun and link.group != layout.POD_GROUP_BASE:
        table_id = link.group - layout.POD_GROUP_BASE
    return Pod(
        container_id=each.container_id,
        ifname=each.ifname,
        namespace=each.namespace,
        pod=each.pod,
        address=each.address,
        host_ifname=link.ifname,
        ifindex=link.ifindex,
        pod_mac=container.mac,
        table_id=table_id or layout.MAIN_TABLE,
    ), []


def _node_doubts(survey: Survey, nat: NatSettings, pods: Sequence[Pod]) -> Iterator[str]:
    if survey.aws_node_running:
        yield "aws-node still runs on this node: it would undo what is done here"
    branch = [link.ifname for link in survey.links if link.ifname.startswith("vlan")]
    if branch or any(rule.pref in (10, _STRICT_LOCAL_PREF) for rule in survey.rules):
        shown = ", ".join(branch[:_MAX_SHOWN]) or "rules 10 and 20"
        yield f"there are security groups for pods ({shown}): not supported"
    ours = {pod.host_ifname for pod in pods}
    grouped = [link.ifname for link in survey.links if layout.is_ours(link.group) and link.ifname not in ours]
    if grouped:
        yield f"links are in our groups already: {', '.join(grouped[:_MAX_SHOWN])}"
    foreign = [route for route in survey.routes if route.table_id == layout.PODS_TABLE and route.ifname not in ours]
    if foreign:
        yield f"table {layout.PODS_TABLE} has {len(foreign)} routes that are no pod's"
    for rule in survey.rules:
        if _is_in_the_way(rule, nat, {pod.address for pod in pods}):
            yield f"somebody's rule is in the way: {rule.text}"
    saved = "".join(survey.iptables.values())
    begun = f"{layout.NFT_FAMILY} {layout.NFT_TABLE}" in survey.tables
    if not begun and ("AWS-SNAT-CHAIN-0" in saved) == nat.external_snat:
        does, says = ("does not translate", "translates") if not nat.external_snat else ("translates", "does not")
        yield f"the node {does} what leaves the VPC, and the settings say that it {says}: AWS_VPC_K8S_CNI_EXTERNALSNAT"
    if sum("AWS-SNAT-CHAIN-0" in text for text in survey.iptables.values()) > 1:
        yield "the AWS plugin's chains are in both iptables-legacy and iptables-nft"


def _is_in_the_way(rule: Rule, nat: NatSettings, pods: set[IPv4Address]) -> bool:
    """Whether somebody else's rule is answered differently in our layout than in theirs.

    A rule before or between the preferences that both layouts use stays where it is for a packet. What changes is the
    order within one of those preferences, and the bits of the mark.
    """
    if rule.protocol == layout.PROTOCOL or rule.pref in (0, 32766, 32767):
        return False
    if rule.mask is not None and rule.mask & _OUR_BITS and rule.mask != nat.mark:
        return True
    if rule.pref not in _SHARED_PREFS:
        return False
    match rule.pref:
        case layout.PODS_RULE_PREF:
            known = rule.destination is not None and _is_one_of_or_apart(rule.destination, pods)
        case layout.PRIMARY_MARK_RULE_PREF:
            known = rule.mark == nat.mark and rule.table_id == layout.MAIN_TABLE
        case layout.ENI_MARK_RULE_PREF:
            known = rule.source is not None and _is_one_of_or_apart(rule.source, pods)
        case _:
            known = rule.source is not None
    return not (known and rule.plain)


def _is_one_of_or_apart(network: IPv4Network, pods: set[IPv4Address]) -> bool:
    """A pod's own rule, or one that no pod's packet matches."""
    return network.prefixlen == 32 or not any(pod in network for pod in pods)


def _our_steps(pods: Sequence[Pod]) -> tuple[Step, ...]:
    """Beside theirs. The node's own rules, the ENIs and the nftables table are the datapath's work, and come before."""
    lines = []
    for pod in pods:
        index = 0 if pod.table_id == layout.MAIN_TABLE else pod.table_id
        link = pod.host_ifname
        lines += [
            f"neigh replace {pod.address} lladdr {pod.pod_mac} dev {link} nud permanent",
            f"route replace {pod.address}/32 dev {link} scope link table {layout.PODS_TABLE} proto {layout.PROTOCOL}",
            f'link set dev {link} group {layout.POD_GROUP_BASE + index} alias "{_alias(pod)}"',
        ]
    return (Step(why="neighbour, route, group and alias of each pod", program=IP, feed=batch(lines)),)


def _alias(pod: Pod) -> str:
    key = AttachmentKey(container_id=pod.container_id, ifname=pod.ifname)
    return alias_of(Holder(key=key, namespace=pod.namespace, pod=pod.pod))


def _their_removal(
    pods: Sequence[Pod], enis: Sequence[SecondaryEni], survey: Survey, nat: NatSettings
) -> tuple[Step, ...]:
    """Marks and translation first: the table `aws-cni` writes the whole mark, and would erase our ENI bits."""
    steps = []
    if f"ip {commands.CONNMARK_TABLE}" in survey.tables:
        drop = f"delete table ip {commands.CONNMARK_TABLE}\n"
        steps.append(Step(why="their connmark table", program=("nft", "-f", "-"), feed=drop))
    for command, saved in survey.iptables.items():
        feed = commands.removal(saved)
        if feed:
            steps.append(Step(why="their chains and rules", program=(f"{command}-restore", "--noflush"), feed=feed))
    lines = [line for pref, text in shared_rules(enis, nat) for line in _theirs_removed(survey, pref, text)]
    led = {(route.destination, route.ifname) for route in survey.routes if route.table_id == layout.MAIN_TABLE}
    for pod in pods:
        if has_rule(survey, layout.PODS_RULE_PREF, destination=pod.address):
            lines.append(f"rule del pref {layout.PODS_RULE_PREF} to {pod.address} lookup {layout.MAIN_TABLE}")
        if has_rule(survey, layout.ENI_MARK_RULE_PREF, source=pod.address):
            lines.append(f"rule del pref {layout.ENI_MARK_RULE_PREF} from {pod.address} lookup {pod.table_id}")
        if (IPv4Network(pod.address), pod.host_ifname) in led:
            lines.append(f"route del {pod.address}/32 dev {pod.host_ifname} table {layout.MAIN_TABLE}")
    steps.append(Step(why="their rules and routes of each pod", program=IP, feed=batch(lines)))
    return tuple(steps)


def _theirs_removed(survey: Survey, pref: int, text: str) -> Iterator[str]:
    """Commands that leave ours of a rule that is the same in both layouts.

    `ip rule add` writes no protocol, and a deletion without one takes the first that matches, whose ever it is: so ours
    moves behind theirs first. Ours is the first after a way back that was interrupted.
    """
    owners = owners_of(survey, pref, text)
    theirs = [owner for owner in owners if owner != layout.PROTOCOL]
    if _NO_PROTOCOL in theirs and layout.PROTOCOL in owners[: owners.index(_NO_PROTOCOL)]:
        yield f"rule del pref {pref} {text} protocol {layout.PROTOCOL}"
        yield f"rule add pref {pref} {text} protocol {layout.PROTOCOL}"
    yield from (f"rule del pref {pref} {text} protocol {owner}" for owner in theirs)
