"""Carries a plan out: adds beside what is there, looks again, and removes only when everything stands.

Blocking programs run in a thread. A failure leaves both layouts, or a part of one removed that the other covers; doing
the same again goes on from there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from agent.adoption import checkpoint, planning, rollback, survey
from agent.adoption.checkpoint import Allocation, CheckpointInvalid
from agent.adoption.commands import Backend, NatSettings
from agent.adoption.model import Plan, Pod, SecondaryEni, Step, Survey
from agent.datapath import layout
from agent.datapath.desired import alias_of
from agent.errors import Cause, InvalidRequest, KernelFailed
from agent.ipam.model import AttachmentKey, Eni, EniId, Holder, Instance, SubnetId
from agent.ports.datapath import Datapath

KEPT_SUFFIX: Final = ".before-enoki"

_PROC: Final = Path("/proc/sys/net")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the AWS plugin keeps its things."""

    checkpoint: Path = Path("/var/run/aws-node/ipam.json")
    aws_node_socket: Path = Path("/var/run/aws-node/ipamd.sock")

    @property
    def kept(self) -> Path:
        return self.checkpoint.with_name(self.checkpoint.name + KEPT_SUFFIX)


def plan_adoption(places: Places, nat: NatSettings) -> Plan:
    """Look and decide; changes nothing. Blocking.

    Raises: KernelFailed when the node cannot be looked at.
    """
    try:
        allocations = checkpoint.parse(places.checkpoint.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Plan(refusals=(_without_file(places),))
    except (OSError, UnicodeDecodeError) as exc:
        return Plan(refusals=(f"{places.checkpoint} cannot be read: {exc}",))
    except CheckpointInvalid as exc:
        return Plan(refusals=(f"{places.checkpoint} is not understood: {exc}",))
    return planning.plan_adoption(allocations, survey.look(places.aws_node_socket), nat)


def _without_file(places: Places) -> str:
    if places.kept.exists():
        return (
            f"{places.checkpoint} is not there and {places.kept} is: the node has been taken over; after a --rollback "
            "that was interrupted, do --rollback again"
        )
    return f"{places.checkpoint} is not there: aws-node has not run on this node"


def plan_rollback(places: Places, nat: NatSettings, backend: Backend) -> Plan:
    """As `plan_adoption`, the other way."""
    return rollback.plan_rollback(survey.look(places.aws_node_socket), nat, backend)


async def adopt(plan: Plan, datapath: Datapath, instance: Instance, places: Places) -> None:
    """Raises: InvalidRequest for a plan with refusals; KernelFailed, and then both layouts stand."""
    refuse(plan)
    await datapath.prepare_node(instance)
    for eni in plan.enis:
        await datapath.ensure_eni(_as_eni(eni))
    await asyncio.to_thread(_settings, plan.pods)
    await asyncio.to_thread(_run, plan.add)
    seen = await asyncio.to_thread(survey.look, places.aws_node_socket)
    _stop_unless_whole(missing_of_ours(plan, seen))
    await asyncio.to_thread(_run, plan.remove)
    await asyncio.to_thread(places.checkpoint.rename, places.kept)


async def give_back(plan: Plan, places: Places, now_ns: int) -> None:
    """Raises: InvalidRequest for a plan with refusals; KernelFailed, and then both layouts stand."""
    refuse(plan)
    await asyncio.to_thread(_run, plan.add)
    seen = await asyncio.to_thread(survey.look, places.aws_node_socket)
    _stop_unless_whole(missing_of_theirs(plan, seen))
    # The file comes before the removal: an interrupted one no longer finds every pod in the kernel.
    await asyncio.to_thread(_write, plan, places, now_ns)
    await asyncio.to_thread(_run, plan.remove)
    await asyncio.to_thread(places.kept.unlink, missing_ok=True)


def missing_of_ours(plan: Plan, seen: Survey) -> list[str]:
    """What of our layout does not stand."""
    links = {link.ifname: link for link in seen.links}
    led = {(route.destination, route.ifname) for route in seen.routes if route.table_id == layout.PODS_TABLE}
    missing = []
    for pod in plan.pods:
        link = links.get(pod.host_ifname)
        key = AttachmentKey(container_id=pod.container_id, ifname=pod.ifname)
        alias = alias_of(Holder(key=key, namespace=pod.namespace, pod=pod.pod))
        index = 0 if pod.table_id == layout.MAIN_TABLE else pod.table_id
        if link is None or (link.alias, link.group) != (alias, layout.POD_GROUP_BASE + index):
            missing.append(f"alias and group of {pod.host_ifname}")
        if (IPv4Network(pod.address), pod.host_ifname) not in led:
            missing.append(f"route {pod.address} in table {layout.PODS_TABLE_NAME}")
    rules = {(rule.pref, rule.mark, rule.table_id) for rule in seen.rules if rule.protocol == layout.PROTOCOL}
    wanted: list[tuple[int, int | None, int]] = [(layout.PODS_RULE_PREF, None, layout.PODS_TABLE)]
    wanted += (
        [(layout.PRIMARY_MARK_RULE_PREF, plan.nat.mark, layout.MAIN_TABLE)]
        if plan.nat and plan.nat.restores_mark
        else []
    )
    wanted += [(layout.ENI_MARK_RULE_PREF, eni.table_id, eni.table_id) for eni in plan.enis]
    wanted += [(layout.ENI_SOURCE_RULE_PREF, None, eni.table_id) for eni in plan.enis]
    missing += [
        f"rule {pref} lookup {table_id}" for pref, mark, table_id in wanted if (pref, mark, table_id) not in rules
    ]
    if f"{layout.NFT_FAMILY} {layout.NFT_TABLE}" not in seen.tables:
        missing.append(f"table {layout.NFT_FAMILY} {layout.NFT_TABLE}")
    return missing


def missing_of_theirs(plan: Plan, seen: Survey) -> list[str]:
    """What of the AWS plugin's layout does not stand."""
    led = {(route.destination, route.ifname) for route in seen.routes if route.table_id == layout.MAIN_TABLE}
    to = {rule.destination for rule in seen.rules if rule.pref == layout.PODS_RULE_PREF}
    sources = {(rule.source, rule.table_id) for rule in seen.rules if rule.pref == layout.ENI_MARK_RULE_PREF}
    missing = []
    for pod in plan.pods:
        host = IPv4Network(pod.address)
        if (host, pod.host_ifname) not in led or host not in to:
            missing.append(f"route or rule {layout.PODS_RULE_PREF} to {pod.address}")
        if pod.table_id != layout.MAIN_TABLE and (host, pod.table_id) not in sources:
            missing.append(f"rule {layout.ENI_MARK_RULE_PREF} from {pod.address}")
    nat = plan.nat
    if nat and not nat.external_snat and not any("AWS-SNAT-CHAIN-0" in text for text in seen.iptables.values()):
        missing.append("AWS-SNAT-CHAIN-0")
    return missing


def describe(plan: Plan) -> str:
    """The plan as a person reads it, and could type it."""
    if plan.refusals:
        return "".join(f"refused: {why}\n" for why in plan.refusals)
    text = f"# {len(plan.pods)} pods, {len(plan.enis)} secondary ENIs\n"
    for title, steps in (("add", plan.add), ("remove, once what was added is verified", plan.remove)):
        for step in steps:
            text += f"# {title}: {step.why}\n{' '.join(step.program)} <<'END'\n{step.feed}END\n"
    return text


def refuse(plan: Plan) -> None:
    """Raises: InvalidRequest with every reason, for a plan that has any."""
    if plan.refusals:
        raise InvalidRequest(
            Cause.REQUEST_INVALID,
            f"the node is left as it is: {plan.refusals[0]}",
            evidence={f"reason_{number}": why for number, why in enumerate(plan.refusals, 1)},
        )


def _stop_unless_whole(missing: Sequence[str]) -> None:
    if missing:
        raise KernelFailed(
            Cause.KERNEL_REFUSED,
            f"nothing is removed: {len(missing)} objects are not as they were made, first {missing[0]}",
            evidence={"missing_count": len(missing)},
            remedy="see who else changes them, and do the same again",
        )


def _run(steps: Sequence[Step]) -> None:
    for step in steps:
        if step.feed:
            survey.run(*step.program, feed=step.feed)


def _settings(pods: Sequence[Pod]) -> None:
    """What our host veths have: strict reverse-path filtering, no router advertisements."""
    for pod in pods:
        (_PROC / "ipv4/conf" / pod.host_ifname / "rp_filter").write_text("1")
        accept_ra = _PROC / "ipv6/conf" / pod.host_ifname / "accept_ra"
        if accept_ra.exists():
            accept_ra.write_text("0")


def _write(plan: Plan, places: Places, now_ns: int) -> None:
    """The AWS plugin's file, replaced whole, for its owner's eyes only."""
    # What is not set aside yet stands where it was: a take-over that was interrupted.
    kept = (*_read(places.kept), *_read(places.checkpoint))
    allocations = rollback.allocations_of(plan.pods, kept, now_ns)
    addresses: set[IPv4Address] = {each.address for each in allocations}
    begun = [each for each in _read(places.checkpoint) if each.address not in addresses]
    fresh = places.checkpoint.with_name(places.checkpoint.name + ".enoki-new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    with fresh.open("w", encoding="utf-8") as file:
        file.write(checkpoint.render((*allocations, *begun)))
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(places.checkpoint)


def _read(path: Path) -> tuple[Allocation, ...]:
    try:
        return checkpoint.parse(path.read_text(encoding="utf-8"))
    except (OSError, CheckpointInvalid):
        return ()


def _as_eni(eni: SecondaryEni) -> Eni:
    """What the kernel shows of it; the datapath asks for no more."""
    return Eni(
        eni_id=EniId(f"table-{eni.table_id}"),
        mac=eni.mac,
        card=0,
        device=eni.table_id - 1,
        subnet_id=SubnetId(""),
        subnet_cidr=eni.subnet,
        primary_address=eni.address,
        blocks=(),
        attachment_id="",
        security_groups=(),
        delete_on_termination=True,
    )
