"""Where new ENIs go under custom networking. Pure.

The name of the node's ENIConfig is the first of: label `vpc.amazonaws.com/externalEniConfig`, annotation
`ENI_CONFIG_ANNOTATION_DEF`, label `ENI_CONFIG_LABEL_DEF`, and `default`; the AWS plugin's order.
"""

from __future__ import annotations

from collections.abc import Mapping

from agent.errors import AgentError, Cause, ClusterFailed
from agent.ipam.model import SubnetId
from agent.kube.objects import EniConfig, NodeFacts
from agent.kube.policy import KubePolicy
from agent.ports.cluster import Site

EXTERNAL_LABEL = "vpc.amazonaws.com/externalEniConfig"
DEFAULT_NAME = "default"


def eni_config_name(node: NodeFacts, policy: KubePolicy) -> str:
    """The name of the ENIConfig that a node selects. An empty value selects nothing."""
    return (
        node.labels.get(EXTERNAL_LABEL)
        or node.annotations.get(policy.eni_config_annotation)
        or node.labels.get(policy.eni_config_label)
        or DEFAULT_NAME
    )


def site(node: NodeFacts | None, configs: Mapping[str, EniConfig] | None, policy: KubePolicy) -> Site | AgentError:
    """The subnet and security groups of new ENIs, or why nobody can know them: then no ENI may be made.

    node, configs: None while the API server has never listed them. Making the ENI elsewhere meanwhile, as the AWS
    plugin does with `default` when it cannot read the node, would put pods into a network they must not be in.
    """
    if node is None or configs is None:
        what = "this node" if node is None else "the ENIConfigs"
        return ClusterFailed(
            Cause.CUSTOM_NETWORKING_UNKNOWN,
            f"custom networking is on, and the API server has not shown {what} yet",
            evidence={"node": policy.node_name},
            remedy="let the agent reach the API server; RBAC: list and watch of nodes and of"
            " eniconfigs.crd.k8s.amazonaws.com, whose CustomResourceDefinition is in deploy/crds",
        )
    name = eni_config_name(node, policy)
    config = configs.get(name)
    if config is None or not config.subnet:
        return ClusterFailed(
            Cause.CUSTOM_NETWORKING_UNKNOWN,
            f"node {node.name} selects ENIConfig {name}, which "
            + ("does not exist" if config is None else "has no subnet"),
            evidence={"node": node.name, "eni_config": name},
            remedy=f"make ENIConfig {name} with the subnet of this zone, or select another: label {EXTERNAL_LABEL},"
            f" annotation {policy.eni_config_annotation}, label {policy.eni_config_label}, in this order",
        )
    return Site(name=name, subnet_id=SubnetId(config.subnet), security_groups=config.security_groups)
