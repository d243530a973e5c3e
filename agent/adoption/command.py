"""`python -m agent adopt --dry-run | --apply | --rollback`, with the agent's own settings, while neither agent runs.

Exit codes: 0 done (or nothing stands in the way, for a dry run), 1 refused or failed, 2 wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from agent.adoption import executor, survey
from agent.adoption.commands import Backend, NatSettings
from agent.adoption.executor import Places
from agent.cloud.imds import ImdsMetadata
from agent.datapath.kernel import KernelDatapath
from agent.datapath.policy import DatapathPolicy
from agent.errors import AgentError, Cause, InvalidRequest, KernelFailed
from agent.ipam.model import Instance


def main(argv: Sequence[str], policy: DatapathPolicy, metadata_endpoint: str, agent_socket: Path) -> int:
    """The exit code. agent_socket: of our agent, which must not run meanwhile."""
    chosen = _arguments(argv)
    try:
        asyncio.run(_run(chosen, policy, metadata_endpoint, agent_socket))
    except AgentError as exc:
        for name, value in exc.evidence.items():
            sys.stderr.write(f"enoki: {name}: {value}\n")
        sys.stderr.write(f"enoki: {exc}{f' ({exc.remedy})' if exc.remedy else ''}\n")
        return 1
    return 0


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m agent adopt", description="Take a node over from aws-node.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dry-run", action="store_true", help="print what --apply would do, or why it would not")
    what.add_argument("--apply", action="store_true", help="take the node over")
    what.add_argument("--rollback", action="store_true", help="give the node back")
    parser.add_argument("--checkpoint", type=Path, default=Places().checkpoint, help="the AWS plugin's file")
    parser.add_argument("--aws-node-socket", type=Path, default=Places().aws_node_socket, help="must not answer")
    parser.add_argument(
        "--backend", type=Backend, choices=list(Backend), default=None, help="iptables of --rollback; else as installed"
    )
    return parser.parse_args(argv)


async def _run(chosen: argparse.Namespace, policy: DatapathPolicy, metadata_endpoint: str, agent_socket: Path) -> None:
    places = Places(checkpoint=chosen.checkpoint, aws_node_socket=chosen.aws_node_socket)
    if not chosen.dry_run and survey.answers(agent_socket):
        raise InvalidRequest(
            Cause.REQUEST_INVALID,
            f"the agent runs (it answers on {agent_socket})",
            remedy="stop it: its repairs and this would work against one another",
        )
    async with ImdsMetadata(endpoint=metadata_endpoint) as metadata:
        instance = await metadata.instance()
    nat = await asyncio.to_thread(nat_settings, policy, instance)
    if chosen.rollback:
        backend = chosen.backend or await asyncio.to_thread(installed_backend)
        plan = await asyncio.to_thread(executor.plan_rollback, places, nat, backend)
        sys.stdout.write(executor.describe(plan))
        await executor.give_back(plan, places, time.time_ns())
        return
    plan = await asyncio.to_thread(executor.plan_adoption, places, nat)
    sys.stdout.write(executor.describe(plan))
    if chosen.dry_run:
        executor.refuse(plan)
        return
    datapath = KernelDatapath(policy)
    try:
        await executor.adopt(plan, datapath, instance, places)
    finally:
        datapath.close()


def nat_settings(policy: DatapathPolicy, instance: Instance) -> NatSettings:
    """What the AWS plugin would make of the same settings. Blocking.

    Raises: KernelFailed when no link has the primary ENI's MAC.
    """
    # The oldest one: a VLAN on top of it repeats the MAC.
    named = [link for link in survey.links() if link.mac == instance.primary_mac]
    if not named:
        raise KernelFailed(Cause.ENI_LINK_MISSING, f"no link has the MAC {instance.primary_mac}")
    return NatSettings(
        primary_ifname=min(named, key=lambda link: link.ifindex).ifname,
        primary_address=instance.primary_address,
        exempt=(*instance.vpc_cidrs, *policy.exclude_snat_cidrs),
        veth_prefix=policy.veth_prefix,
        external_snat=policy.external_snat,
        node_port_support=policy.node_port_support,
        snat_port=policy.randomize_snat.value,
        mark=policy.primary_mark,
        external_service_cidrs=policy.external_service_cidrs,
    )


def installed_backend() -> Backend:
    """As the AWS plugin chooses: what `iptables --version` says. Blocking."""
    return Backend.LEGACY if "legacy" in survey.run("iptables", "--version") else Backend.NFT
