"""The table of settings: name, kind, default, what it means.

One section per part of the agent. To add one: a field with its text here, a policy that carries it
(agent/assembly.py), its name gone from `inert`, and `python -m scripts.configuration --write`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated

from agent.datapath.policy import SnatPort
from agent.settings.kinds import (
    BOOLEAN,
    CLUSTER_NAME,
    CNI_VERSION,
    CONNMARK,
    COUNT,
    DEV_HTTP_ALLOWANCES,
    DIRECTORY,
    DIRECTORY_OR_UNSET,
    DNS_NAME,
    FILE_OR_UNSET,
    HOST,
    HOST_AND_PORT,
    HOST_AND_PORT_OR_UNSET,
    LABEL_KEY,
    LOG_FILE,
    LOG_LEVEL,
    MAX_ENI,
    MTU,
    MTU_OR_UNSET,
    NETWORKS,
    PORT,
    RANDOMIZE_SNAT,
    SECONDS,
    SOCKET_PATH,
    SOCKET_PATH_OR_UNSET,
    TAGS,
    URL,
    URL_OR_UNSET,
    VETH_PREFIX,
    LogLevel,
    Setting,
    integers,
)


class Provenance(StrEnum):
    """Where the value of a setting comes from."""

    DEFAULT = "default"
    ENVIRONMENT = "environment"
    ARGUMENT = "argument"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of the agent, with a value.

    provenance: where each value comes from, by the setting's environment name.
    notices: sentences for the log at start: names that are set and have no effect.
    """

    # The pool
    warm_eni_target: Annotated[
        int,
        Setting("WARM_ENI_TARGET", COUNT, default="1"),
        "How many ENIs' worth of free addresses to hold. Used only while both IP targets are 0.",
    ]
    warm_ip_target: Annotated[
        int,
        Setting("WARM_IP_TARGET", COUNT, default="0"),
        "How many free addresses to hold. 0 is unset. Overrides `WARM_ENI_TARGET`.",
    ]
    minimum_ip_target: Annotated[
        int,
        Setting("MINIMUM_IP_TARGET", COUNT, default="0"),
        "How many addresses to hold at least, in use and free together. 0 is unset. Overrides `WARM_ENI_TARGET`.",
    ]
    prefix_delegation: Annotated[
        bool,
        Setting("ENABLE_PREFIX_DELEGATION", BOOLEAN, default="false"),
        "true: hold /28 prefixes of 16 addresses instead of single ones; each takes the place of one. Where a subnet "
        "has no whole /28 left, single addresses come from it until it has. Instance types not on Nitro take none. "
        "May be switched on a node with pods: what they have stays theirs, what is free of the other kind goes back.",
    ]
    warm_prefix_target: Annotated[
        int,
        Setting("WARM_PREFIX_TARGET", COUNT, default="1"),
        "How many prefixes' worth of free addresses to hold. Used only with `ENABLE_PREFIX_DELEGATION` and while both "
        "IP targets are 0. 0 holds one free address. (The default is the published manifest's; the AWS plugin's is 0.)",
    ]
    max_eni: Annotated[
        int | None,
        Setting("MAX_ENI", MAX_ENI, default=""),
        "The most ENIs to use, the primary included. Unset, or above it: the instance type's limit.",
    ]
    pod_eni: Annotated[
        bool,
        Setting("ENABLE_POD_ENI", BOOLEAN, default="false"),
        "true: leave room for one ENI, the trunk of pods with security groups of their own, until it is there. Types "
        "of the t family and those not on Nitro have no trunk. Nothing else of the feature is there yet.",
    ]
    custom_networking: Annotated[
        bool,
        Setting("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", BOOLEAN, default="false"),
        "true: new ENIs go to the subnet, and get the security groups, of the node's ENIConfig; none is made before "
        "one is known. The primary ENI serves no new pods.",
    ]
    ip_cooldown_s: Annotated[
        int,
        Setting("IP_COOLDOWN_PERIOD", SECONDS, default="30"),
        "Seconds before an address a pod gave back goes to another. Too short, and peers that still cache the "
        "old pod reach the new one; too long, and a busy node holds more addresses than it uses.",
    ]
    settle_addresses_s: Annotated[
        int,
        Setting("ENOKI_SETTLE_ADDRESSES_S", SECONDS, default="600"),
        "Seconds an address above the targets must have been idle before EC2 gets it back. Above 300, a job "
        "that starts and ends every five minutes costs no EC2 call.",
    ]
    settle_enis_s: Annotated[
        int,
        Setting("ENOKI_SETTLE_ENIS_S", SECONDS, default="900"),
        "Seconds an ENI above the targets must have been empty before it is detached and deleted.",
    ]
    # The CNI request
    socket: Annotated[
        Path,
        Setting("ENOKI_SOCKET", SOCKET_PATH, default="/run/enoki/agent.sock"),
        "The Unix socket the agent listens on. The CNI plugin reads the same name.",
    ]
    add_deadline_s: Annotated[
        int,
        Setting("ENOKI_ADD_DEADLINE_S", integers(1, 300), default="20"),
        "Seconds an ADD waits for an address before it answers with the reason. Keep it below the plugin's own limit.",
    ]
    # The host
    host_bin_directory: Annotated[
        Path,
        Setting("HOST_CNI_BIN_PATH", DIRECTORY, default="/host/opt/cni/bin"),
        "Where the init container puts the plugin's executable: the host's directory as the container sees it.",
    ]
    host_conf_directory: Annotated[
        Path | None,
        Setting("HOST_CNI_CONFDIR_PATH", DIRECTORY_OR_UNSET, default=""),
        "Where the agent keeps the network configuration `05-enoki.conflist` while pods can be served. Unset: nowhere. "
        "(The AWS plugin's default is /host/etc/cni/net.d, which the manifests set.)",
    ]
    cni_version: Annotated[
        str,
        Setting("ENOKI_CNI_VERSION", CNI_VERSION, default="1.0.0"),
        "The CNI version of that configuration. 0.4.0 for runtimes and Multus versions that know no later one.",
    ]
    sysctl_directory: Annotated[
        Path,
        Setting("ENOKI_SYSCTL_DIRECTORY", DIRECTORY, default="/proc/sys/net"),
        "Where /proc/sys/net can be written. A container's own is read-only: mount the host's elsewhere.",
    ]
    host_root: Annotated[
        Path,
        Setting("ENOKI_HOST_ROOT", DIRECTORY, default="/"),
        "Below which `/v1/doctor` looks for the host's /etc/systemd, /usr/lib/systemd and /run/systemd/netif, "
        "which it only reads.",
    ]
    # The datapath
    eni_mtu: Annotated[
        int,
        Setting("AWS_VPC_ENI_MTU", MTU, default="9001"),
        "MTU of the ENIs' links, in bytes.",
    ]
    pod_mtu: Annotated[
        int,
        Setting("POD_MTU", MTU_OR_UNSET, default=""),
        "MTU of pods' links, in bytes. Unset: `AWS_VPC_ENI_MTU`.",
    ]
    veth_prefix: Annotated[
        str,
        Setting("AWS_VPC_K8S_CNI_VETHPREFIX", VETH_PREFIX, default="eni"),
        "What the names of pods' links on the host start with. Change it only on a node without pods.",
    ]
    external_snat: Annotated[
        bool,
        Setting("AWS_VPC_K8S_CNI_EXTERNALSNAT", BOOLEAN, default="false"),
        "true: a NAT gateway translates what leaves the VPC, so the node does not.",
    ]
    randomize_snat: Annotated[
        SnatPort,
        Setting("AWS_VPC_K8S_CNI_RANDOMIZESNAT", RANDOMIZE_SNAT, default="prng"),
        "How source NAT picks ports: fully random, random by hash, or the pod's own port when it is free.",
    ]
    exclude_snat_cidrs: Annotated[
        tuple[IPv4Network, ...],
        Setting("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", NETWORKS, default=""),
        "Destinations outside the VPC that see the pod's own address (peered VPCs, a VPN).",
    ]
    node_port_support: Annotated[
        bool,
        Setting("AWS_VPC_CNI_NODE_PORT_SUPPORT", BOOLEAN, default="true"),
        "true: what came in by the primary ENI is answered by it, wherever the pod is. NodePorts and host ports of "
        "pods on other ENIs need it.",
    ]
    external_service_cidrs: Annotated[
        tuple[IPv4Network, ...],
        Setting("AWS_EXTERNAL_SERVICE_CIDRS", NETWORKS, default=""),
        "Destinations that always leave by the primary ENI.",
    ]
    connmark: Annotated[
        int,
        Setting("AWS_VPC_K8S_CNI_CONNMARK", CONNMARK, default="0x80"),
        "The bits of packet and connection mark that say: by the primary ENI. Change them when other software on "
        "the node uses the same.",
    ]
    names_directory: Annotated[
        Path,
        Setting("ENOKI_NAMES_DIRECTORY", DIRECTORY, default="/etc/iproute2"),
        "Where the node's iproute2 looks for names of tables and protocols. Read-only or missing: numbers only.",
    ]
    # EC2
    manage_untagged_eni: Annotated[
        bool,
        Setting("MANAGE_UNTAGGED_ENI", BOOLEAN, default="true"),
        "true: use ENIs of this instance that carry none of our tags. Keep others' ENIs out with the tag "
        "`node.k8s.amazonaws.com/no_manage` = `true`.",
    ]
    additional_eni_tags: Annotated[
        tuple[tuple[str, str], ...],
        Setting("ADDITIONAL_ENI_TAGS", TAGS, default="{}"),
        "Tags for the ENIs the agent makes. Keys that contain `k8s.amazonaws.com` are left out.",
    ]
    cluster_name: Annotated[
        str,
        Setting("CLUSTER_NAME", CLUSTER_NAME, default=""),
        "Name of the EKS cluster: tags on ENIs, and which cluster's subnets are used.",
    ]
    subnet_discovery: Annotated[
        bool,
        Setting("ENABLE_SUBNET_DISCOVERY", BOOLEAN, default="true"),
        "true: make ENIs in any subnet of the zone that is tagged `kubernetes.io/role/cni`, and in the node's "
        "own. false: only in the node's own.",
    ]
    disable_leaked_eni_cleanup: Annotated[
        bool,
        Setting("DISABLE_LEAKED_ENI_CLEANUP", BOOLEAN, default="false"),
        "true: do not look for ENIs that a node of the cluster made and lost, once an hour, and delete them.",
    ]
    disable_provisioning: Annotated[
        bool,
        Setting("DISABLE_NETWORK_RESOURCE_PROVISIONING", BOOLEAN, default="false"),
        "true: somebody else gives the node its ENIs and addresses. EC2 is observed and never changed: no ENI, no "
        "address, no security group, no leak.",
    ]
    imds_only: Annotated[
        bool,
        Setting("ENABLE_IMDS_ONLY_MODE", BOOLEAN, default="false"),
        "true: as `DISABLE_NETWORK_RESOURCE_PROVISIONING`, and EC2 is not even asked: the ENIs and addresses are those "
        "that instance metadata lists. There are no tags then, so every ENI with an address is used.",
    ]
    manage_non_schedulable: Annotated[
        bool,
        Setting("AWS_MANAGE_ENIS_NON_SCHEDULABLE", BOOLEAN, default="false"),
        "true: attach and detach ENIs and addresses on a cordoned node, too.",
    ]
    imds_endpoint: Annotated[
        str,
        Setting("AWS_EC2_METADATA_SERVICE_ENDPOINT", URL, default="http://169.254.169.254"),
        "Where the instance metadata service is. EC2's is found by the SDK: `AWS_ENDPOINT_URL_EC2`.",
    ]
    # Kubernetes
    node_name: Annotated[
        str,
        Setting("MY_NODE_NAME", DNS_NAME, default=""),
        "This node's name in Kubernetes (downward API, `spec.nodeName`). Unset: Kubernetes is not used.",
    ]
    pod_name: Annotated[
        str,
        Setting("MY_POD_NAME", DNS_NAME, default=""),
        "The agent's own pod in kube-system (downward API, `metadata.name`): events about missing permissions are its.",
    ]
    kubeconfig: Annotated[
        Path | None,
        Setting("KUBECONFIG", FILE_OR_UNSET, default=""),
        "How to reach the API server. Unset: with the pod's service account.",
    ]
    kubernetes_service_host: Annotated[
        str,
        Setting("KUBERNETES_SERVICE_HOST", HOST, default=""),
        "Where the API server is; the kubelet sets it in every pod.",
    ]
    kubernetes_service_port: Annotated[
        str,
        Setting("KUBERNETES_SERVICE_PORT", PORT, default=""),
        "Its port; the kubelet sets it in every pod.",
    ]
    cluster_endpoint: Annotated[
        str,
        Setting("CLUSTER_ENDPOINT", URL_OR_UNSET, default=""),
        "The API server's URL, in place of the one above: so that the agent does not need kube-proxy.",
    ]
    annotate_pod_ip: Annotated[
        bool,
        Setting("ANNOTATE_POD_IP", BOOLEAN, default="false"),
        "true: write a pod's address into its annotation `vpc.amazonaws.com/pod-ips`. Needs the verb patch on pods. An "
        "ADD does not wait for it (with the AWS plugin it fails when that fails).",
    ]
    eni_config_annotation: Annotated[
        str,
        Setting("ENI_CONFIG_ANNOTATION_DEF", LABEL_KEY, default="k8s.amazonaws.com/eniConfig"),
        "The node's annotation that names its ENIConfig; the label `vpc.amazonaws.com/externalEniConfig` comes first.",
    ]
    eni_config_label: Annotated[
        str,
        Setting("ENI_CONFIG_LABEL_DEF", LABEL_KEY, default="k8s.amazonaws.com/eniConfig"),
        "The node's label that names its ENIConfig, when neither of those does; often `topology.kubernetes.io/zone`. "
        "Without any it is `default`.",
    ]
    # The agent
    log_level: Annotated[
        LogLevel,
        Setting("AWS_VPC_K8S_CNI_LOGLEVEL", LOG_LEVEL, default="info"),
        "The least severe lines to log. (The AWS plugin's default is debug.)",
    ]
    log_file: Annotated[
        Path | None,
        Setting("AWS_VPC_K8S_CNI_LOG_FILE", LOG_FILE, default="stderr"),
        "Where the log goes beside standard error: a file, rotated at 16 MiB, three old ones kept.",
    ]
    # For operators
    event_log_directory: Annotated[
        Path | None,
        Setting("ENOKI_EVENT_LOG_DIRECTORY", DIRECTORY_OR_UNSET, default=""),
        "A directory to write events to, at most 8 MiB, so that `/v1/history` reaches further back than memory. "
        "Unset: memory only. Nothing the agent decides depends on it.",
    ]
    readers_socket: Annotated[
        Path | None,
        Setting("ENOKI_READERS_SOCKET", SOCKET_PATH_OR_UNSET, default=""),
        "A second Unix socket, mode 0660, on which nothing can be changed. Unset: there is none.",
    ]
    readers_group_id: Annotated[
        int,
        Setting("ENOKI_READERS_GROUP_ID", integers(0, 2**32 - 2), default="0"),
        "Number of the group that may open `ENOKI_READERS_SOCKET`.",
    ]
    disable_introspection: Annotated[
        bool,
        Setting("DISABLE_INTROSPECTION", BOOLEAN, default="true"),
        "false: answer on `INTROSPECTION_BIND_ADDRESS` in the AWS plugin's JSON shape. (That plugin's default is "
        "false.)",
    ]
    introspection_address: Annotated[
        tuple[str, int],
        Setting("INTROSPECTION_BIND_ADDRESS", HOST_AND_PORT, default="127.0.0.1:61679"),
        "Address and port of that. Whoever reaches it can read which pod has which address.",
    ]
    disable_metrics: Annotated[
        bool,
        Setting("DISABLE_METRICS", BOOLEAN, default="true"),
        "false: serve metrics on TCP port 61678 of every address of the node, as the AWS plugin does. (That plugin's "
        "default is false.) The Unix socket serves `/metrics` in any case.",
    ]
    dev_http: Annotated[
        tuple[str, int] | None,
        Setting("ENOKI_DEV_HTTP", HOST_AND_PORT_OR_UNSET, default=""),
        "For development, also as `--dev-http`: serve the API, Swagger UI (`/docs`) and a page for people (`/`) on "
        "this address and port, such as 127.0.0.1:8080, to everybody on the machine, without authentication. Unset: no "
        "such port.",
    ]
    dev_http_allow: Annotated[
        tuple[str, ...],
        Setting("ENOKI_DEV_HTTP_ALLOW", DEV_HTTP_ALLOWANCES, default=""),
        "What `ENOKI_DEV_HTTP` may do beyond that, also as `--dev-http-allow`. `remote`: listen on an address that is "
        "not loopback. `writes`: change what root may change.",
    ]
    provenance: Mapping[str, Provenance] = field(repr=False)
    notices: tuple[str, ...] = ()
