"""Tags: whose ENI is it, which ones do we put on, which subnets may we use. Pure.

Keys and meanings are the AWS VPC CNI plugin's (its README, "ENI tags related to allocation"; AWS blog "Enhanced subnet
discovery"), so that a node can change over in either direction and cleaning tools keep working.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from agent.cloud.policy import CloudPolicy

INSTANCE_ID = "node.k8s.amazonaws.com/instance_id"
CREATED_AT = "node.k8s.amazonaws.com/createdAt"
NO_MANAGE = "node.k8s.amazonaws.com/no_manage"
CLUSTER = "cluster.k8s.amazonaws.com/name"
OWNER = "eks:eni:owner"
OWNER_VALUE = "amazon-vpc-cni"
SUBNET_ROLE = "kubernetes.io/role/cni"
SUBNET_CLUSTER_PREFIX = "cni.networking.k8s.aws/cluster/"


def is_managed(tags: Mapping[str, str], *, instance_id: str, is_primary: bool, manage_untagged: bool) -> bool:
    """Whether the ENI's addresses are ours to hand out.

    The primary always is. `no_manage` decides next, then our own tag; another instance's tag is never ours.
    """
    if is_primary:
        return True
    if NO_MANAGE in tags:
        return tags[NO_MANAGE] != "true"
    if INSTANCE_ID in tags:
        return tags[INSTANCE_ID] == instance_id
    return manage_untagged


def for_new_eni(policy: CloudPolicy, *, instance_id: str, now: datetime) -> dict[str, str]:
    """Tags of an ENI made at `now` (an aware time) for `instance_id`."""
    tags = {INSTANCE_ID: instance_id, CREATED_AT: now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")}
    if policy.cluster_name:
        tags |= {CLUSTER: policy.cluster_name, OWNER: OWNER_VALUE}
    return tags | dict(policy.additional_eni_tags)


def subnet_is_excluded(tags: Mapping[str, str], *, policy: CloudPolicy) -> bool:
    """Whether the tags of a subnet keep pods out of it, also those of ENIs that are there already.

    Role "0" does. With another role, and when the cluster's name is known, tags that name clusters must name this one.
    """
    role = tags.get(SUBNET_ROLE, "")
    clusters = {key.removeprefix(SUBNET_CLUSTER_PREFIX) for key in tags if key.startswith(SUBNET_CLUSTER_PREFIX)}
    is_anothers = bool(role and policy.cluster_name and clusters) and policy.cluster_name not in clusters
    return policy.subnet_discovery and (role == "0" or is_anothers)


def subnet_is_usable(tags: Mapping[str, str], *, is_node_subnet: bool, policy: CloudPolicy) -> bool:
    """Whether a new ENI may be made in a subnet with these tags.

    Role "0" excludes any subnet. Without a role only the node's own subnet is used. With another role, and when the
    cluster's name is known, tags that name clusters must name this one.
    """
    role = tags.get(SUBNET_ROLE, "")
    if role == "0" or not (is_node_subnet or policy.subnet_discovery):
        return False
    if not role:
        return is_node_subnet
    clusters = {key.removeprefix(SUBNET_CLUSTER_PREFIX) for key in tags if key.startswith(SUBNET_CLUSTER_PREFIX)}
    return not policy.cluster_name or not clusters or policy.cluster_name in clusters
