"""The composition root: settings -> policies -> node -> service -> supervise."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from agent import settings
from agent.attachments import AttachmentPolicy
from agent.cloud.policy import CloudPolicy
from agent.datapath.policy import DatapathPolicy
from agent.front import Front
from agent.installation.publisher import InstallationPolicy
from agent.ipam.plan import PoolPolicy
from agent.kube.absent import NoCluster
from agent.kube.cluster import KubeCluster
from agent.kube.policy import KubePolicy
from agent.node import Node, Policies
from agent.ports.cluster import Cluster
from agent.runtime import allocator
from agent.runtime.log import event_logger
from agent.runtime.notify import notify_ready
from agent.runtime.supervisor import supervise

log = event_logger("agent")


async def serve_node(chosen: settings.Settings, sock: socket.socket, stop: asyncio.Event) -> None:
    """Serve on `sock`, which nobody else owns, until `stop` is set. Raises: whatever is a bug, as a group."""
    front = Front(chosen, own_version())
    node = Node(
        policies(chosen),
        clock=time.monotonic,
        ready=announce,
        stop=stop,
        cluster=cluster(chosen),
        publish=front.journal.publish,
        spent=front.metrics.spent,
    )
    try:
        with front.doors(node, sock) as doors:
            # What the imports made stays: the collector need not walk it, nor break it loose from pages it shares.
            gc.collect()
            gc.freeze()
            await supervise({"node": node.run, **front.background()}, doors, stop=stop)
    finally:
        await node.close()


def adopt(arguments: Sequence[str], chosen: settings.Settings) -> int:
    """`python -m agent adopt`; the exit code."""
    from agent.adoption import command  # noqa: PLC0415 - an agent that serves does not adopt: 0.5 MiB

    return command.main(arguments, policies(chosen).datapath, chosen.imds_endpoint, chosen.socket)


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
            sysctl_directory=chosen.sysctl_directory,
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
        installation=InstallationPolicy(
            directory=chosen.host_conf_directory,
            cni_version=chosen.cni_version,
        ),
        add_deadline_s=float(chosen.add_deadline_s),
        metadata_endpoint=chosen.imds_endpoint,
        version=own_version(),
    )


def cluster(chosen: settings.Settings) -> Cluster:
    """Kubernetes, if settings say who and where; otherwise a node works alone."""
    policy = KubePolicy(
        node_name=chosen.node_name,
        kubeconfig=chosen.kubeconfig,
        service_host=chosen.kubernetes_service_host,
        service_port=chosen.kubernetes_service_port,
        endpoint=chosen.cluster_endpoint,
        pod_name=chosen.pod_name,
        annotate_pod_ip=chosen.annotate_pod_ip,
        custom_networking=chosen.custom_networking,
        eni_config_label=chosen.eni_config_label,
        eni_config_annotation=chosen.eni_config_annotation,
    )
    if not policy.is_configured:
        log.info("kubernetes_not_configured", node_name=policy.node_name)
        return NoCluster(custom_networking=policy.custom_networking)
    return KubeCluster(policy, version=own_version())


def own_version() -> str:
    """The installed package's version; `dev` in a checkout that is not installed."""
    try:
        return version("enoki")
    except PackageNotFoundError:
        return "dev"


def announce() -> None:
    """Say that ADD can be served: to the log, and to whoever started us."""
    log.info("ready")
    allocator.give_back()
    notify_ready(os.environ.get("NOTIFY_SOCKET", ""))  # noqa: TID251  (a message from the starter, not a setting)
