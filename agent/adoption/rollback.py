"""Pure: the way back, from a look at the node to what will be done, or to every reason why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent.adoption import commands
from agent.adoption.checkpoint import NETWORK_NAME, Allocation
from agent.adoption.commands import Backend, NatSettings
from agent.adoption.enis import secondary_enis
from agent.adoption.model import Plan, Pod, SecondaryEni, Step, Survey
from agent.adoption.rules import IP, batch, has_rule, owners_of, shared_rules
from agent.datapath import layout
from agent.datapath.desired import holder_of


def plan_rollback(survey: Survey, nat: NatSettings, backend: Backend) -> Plan:
    """Give the node back. Who holds what is read from the kernel, so that pods made since then are given back too."""
    pods: list[Pod] = []
    doubts: list[str] = []
    if survey.aws_node_running:
        doubts.append("aws-node runs already: it must start after this")
    led = {route.ifname: route.destination for route in survey.routes if route.table_id == layout.PODS_TABLE}
    for link in survey.links:
        if link.group not in layout.POD_GROUPS:
            continue
        holder, container = holder_of(link.alias), survey.containers.get(link.ifname)
        if holder is None or link.ifname not in led or not holder.pod:
            doubts.append(f"the host veth {link.ifname} has no pod's name or no route: the AWS plugin needs both")
            continue
        if holder.key.ifname != "eth0":
            doubts.append(f"{link.ifname} is {holder.key.ifname} of its container: the AWS plugin knows eth0 only")
            continue
        index = link.group - layout.POD_GROUP_BASE
        pods.append(
            Pod(
                container_id=holder.key.container_id,
                ifname=holder.key.ifname,
                namespace=holder.namespace,
                pod=holder.pod,
                address=led[link.ifname].network_address,
                host_ifname=link.ifname,
                ifindex=link.ifindex,
                pod_mac=container.mac if container else link.mac,
                table_id=index or layout.MAIN_TABLE,
            )
        )
    enis, eni_doubts = secondary_enis(survey)
    doubts += eni_doubts
    if doubts:
        return Plan(refusals=tuple(doubts))
    return Plan(
        pods=tuple(pods),
        enis=enis,
        nat=nat,
        add=_their_steps(pods, enis, survey, nat, backend),
        remove=_our_removal(pods, survey),
    )


def _their_steps(
    pods: Sequence[Pod], enis: Sequence[SecondaryEni], survey: Survey, nat: NatSettings, backend: Backend
) -> tuple[Step, ...]:
    """Rules and routes first, then the marks: the reverse of how they were taken away."""
    lines = [
        f"rule add pref {pref} {text}"
        for pref, text in shared_rules(enis, nat)
        if not set(owners_of(survey, pref, text)) - {layout.PROTOCOL}
    ]
    for pod in pods:
        lines.append(f"route replace {pod.address}/32 dev {pod.host_ifname} scope link table {layout.MAIN_TABLE}")
        if not has_rule(survey, layout.PODS_RULE_PREF, destination=pod.address):
            lines.append(f"rule add pref {layout.PODS_RULE_PREF} to {pod.address} lookup {layout.MAIN_TABLE}")
        if pod.table_id != layout.MAIN_TABLE and not has_rule(survey, layout.ENI_MARK_RULE_PREF, source=pod.address):
            lines.append(f"rule add pref {layout.ENI_MARK_RULE_PREF} from {pod.address} lookup {pod.table_id}")
    steps = [Step(why="their rules and routes of each pod", program=IP, feed=batch(lines))]
    saved = survey.iptables.get(backend, "")
    feed = commands.replacement(saved, nat, backend)
    steps.append(Step(why="their chains and rules", program=(f"{backend}-restore", "--noflush"), feed=feed))
    if backend is Backend.NFT and not nat.external_snat:
        name = f"ip {commands.CONNMARK_TABLE}"
        text = f"add table {name}\ndelete table {name}\n{commands.connmark_table(nat)}"
        steps.append(Step(why="their connmark table", program=("nft", "-f", "-"), feed=text))
    return tuple(steps)


def _our_removal(pods: Sequence[Pod], survey: Survey) -> tuple[Step, ...]:
    """Groups first, so that nothing is marked any more; then what the marks led to."""
    lines = [f'link set dev {pod.host_ifname} group 0 alias ""' for pod in pods]
    # Whole tables: after an interruption there are routes of pods whose links no longer say so. What is on its way into
    # the cooldown, too: their file has no word for it.
    lines += [
        f"route flush table {table_id} proto {layout.PROTOCOL}"
        for table_id in (layout.PODS_TABLE, layout.RELEASED_TABLE)
    ]
    for rule in survey.rules:
        if rule.protocol == layout.PROTOCOL:
            selector = f" from {rule.source}" if rule.source else f" to {rule.destination}" if rule.destination else ""
            mark = f" fwmark {rule.mark:#x}/{rule.mask:#x}" if rule.mark is not None else ""
            text = f"{selector}{mark} lookup {rule.table_id}"
            lines.append(f"rule del pref {rule.pref}{text} protocol {layout.PROTOCOL}")
    steps = [Step(why="our groups, aliases, routes and rules", program=IP, feed=batch(lines))]
    if f"{layout.NFT_FAMILY} {layout.NFT_TABLE}" in survey.tables:
        drop = f"delete table {layout.NFT_FAMILY} {layout.NFT_TABLE}\n"
        steps.append(Step(why="our table", program=("nft", "-f", "-"), feed=drop))
    return tuple(steps)


def allocations_of(pods: Sequence[Pod], kept: Sequence[Allocation], now_ns: int) -> tuple[Allocation, ...]:
    """The AWS plugin's file for these pods. kept: the file set aside, for what the kernel does not know.

    Pods that are not in it have one interface, which is written where the file set aside counts interfaces.
    """
    counted = min(1, max((each.interface_count for each in kept), default=0))
    before = {(each.container_id, each.ifname): each for each in kept}
    made = []
    for pod in pods:
        old = before.get((pod.container_id, pod.ifname))
        fresh = Allocation(
            network=old.network if old else NETWORK_NAME,
            container_id=pod.container_id,
            ifname=pod.ifname,
            address=pod.address,
            allocated_ns=old.allocated_ns if old else now_ns,
            namespace=pod.namespace,
            pod=pod.pod,
            interface_count=old.interface_count if old else counted,
        )
        made.append(old if old and replace(old, allocated_ns=fresh.allocated_ns) == fresh else fresh)
    return tuple(made)
