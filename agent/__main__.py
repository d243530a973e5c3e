"""The composition root: settings -> policies -> node -> door -> supervise. `python -m agent`.

Exit codes: 0 after SIGTERM or SIGINT, 1 after a bug (the restart recovers), 78 (EX_CONFIG, sysexits.h) for settings
that are not allowed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from importlib.metadata import PackageNotFoundError, version

import uvloop

from agent import settings
from agent.attachments import AttachmentPolicy
from agent.cloud.policy import CloudPolicy
from agent.datapath.policy import DatapathPolicy
from agent.front import Front
from agent.ipam.plan import PoolPolicy
from agent.node import Node, Policies
from agent.runtime.log import configure_logging, event_logger
from agent.runtime.notify import notify_ready
from agent.runtime.socket_server import hold_socket
from agent.runtime.supervisor import supervise

log = event_logger("agent")

EXIT_CONFIG = 78


def main() -> int:
    """Run the agent; its exit code."""
    try:
        chosen = settings.load()
    except settings.SettingsInvalid as exc:
        for problem in exc.problems:
            sys.stderr.write(f"enoki: {problem}\n")
        return EXIT_CONFIG
    configure_logging(chosen.log_level.value, file=chosen.log_file)
    for notice in chosen.notices:
        log.warning("settings_notice", notice=notice)
    try:
        uvloop.run(run(chosen))
    except BaseExceptionGroup:
        log.exception("agent_failed")
        return 1
    return 0


async def run(chosen: settings.Settings) -> None:
    """Serve until SIGTERM or SIGINT. Nothing on the node is touched before the lock beside the socket is ours."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with hold_socket(chosen.socket) as sock:
        front = Front(chosen, own_version())
        node = Node(
            policies(chosen),
            clock=time.monotonic,
            ready=announce,
            stop=stop,
            publish=front.journal.publish,
            spent=front.metrics.spent,
        )
        try:
            with front.doors(node, sock) as doors:
                await supervise({"node": node.run, **front.background()}, doors, stop=stop)
        finally:
            await node.close()
    log.info("stopped")


def policies(chosen: settings.Settings) -> Policies:
    """Split the settings by who reads them."""
    return Policies(
        cloud=CloudPolicy(
            cluster_name=chosen.cluster_name,
            additional_eni_tags=chosen.additional_eni_tags,
            manage_untagged_eni=chosen.manage_untagged_eni,
            subnet_discovery=chosen.subnet_discovery,
            leak_cleanup=not (chosen.disable_leaked_eni_cleanup or chosen.disable_provisioning or chosen.imds_only),
            provisioning=not (chosen.disable_provisioning or chosen.imds_only),
            imds_only=chosen.imds_only,
            manage_non_schedulable=chosen.manage_non_schedulable,
        ),
        datapath=DatapathPolicy(
            eni_mtu=chosen.eni_mtu,
            veth_prefix=chosen.veth_prefix,
            external_snat=chosen.external_snat,
            randomize_snat=chosen.randomize_snat,
            exclude_snat_cidrs=chosen.exclude_snat_cidrs,
            node_port_support=chosen.node_port_support,
            external_service_cidrs=chosen.external_service_cidrs,
            primary_mark=chosen.connmark,
            names_directory=chosen.names_directory,
        ),
        pool=PoolPolicy(
            prefix_delegation=chosen.prefix_delegation,
            warm_eni_target=chosen.warm_eni_target,
            warm_prefix_target=chosen.warm_prefix_target,
            warm_ip_target=chosen.warm_ip_target,
            minimum_ip_target=chosen.minimum_ip_target,
            max_eni=chosen.max_eni,
            reserves_trunk=chosen.pod_eni,
            custom_networking=chosen.custom_networking,
            settle_addresses_s=float(chosen.settle_addresses_s),
            settle_enis_s=float(chosen.settle_enis_s),
        ),
        attachments=AttachmentPolicy(cooldown_s=float(chosen.ip_cooldown_s), mtu=chosen.pod_mtu),
        add_deadline_s=float(chosen.add_deadline_s),
        metadata_endpoint=chosen.imds_endpoint,
        version=own_version(),
    )


def own_version() -> str:
    """The installed package's version; `dev` in a checkout that is not installed."""
    try:
        return version("enoki")
    except PackageNotFoundError:
        return "dev"


def announce() -> None:
    """Say that ADD can be served: to the log, and to whoever started us."""
    log.info("ready")
    notify_ready(os.environ.get("NOTIFY_SOCKET", ""))  # noqa: TID251  (a message from the starter, not a setting)


if __name__ == "__main__":
    sys.exit(main())
