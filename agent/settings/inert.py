"""What the AWS plugin reads and we do not."""

from __future__ import annotations

from collections.abc import Mapping

# One line per name, so that features can take theirs out side by side. Where the published manifest sends the shim's
# log is nobody's wish; ours go to the agent's log.
_INERT = {
    "AWS_EC2_ENDPOINT": "",
    "AWS_VPC_K8S_CNI_BACKING_STORE": "",
    "AWS_VPC_K8S_PLUGIN_LOG_FILE": "stderr /var/log/aws-routed-eni/plugin.log",
    "AWS_VPC_K8S_PLUGIN_LOG_LEVEL": "debug info",
    "DISABLE_POD_V6": "false",
    "DISABLE_TCP_EARLY_DEMUX": "false",
    "ENABLE_BANDWIDTH_PLUGIN": "false",
    "ENABLE_IPv4": "true",
    "ENABLE_IPv6": "false",
    "ENABLE_MULTI_NIC": "false",
    "ENABLE_V4_EGRESS": "true false",  # the AWS plugin reads it in IPv6 clusters only
    "ENABLE_V6_EGRESS": "false",
    "HTTP_TIMEOUT": "",
    "NETWORK_POLICY_ENFORCING_MODE": "none",
    "POD_SECURITY_GROUP_ENFORCING_MODE": "strict",
}

NOT_HONOURED: Mapping[str, frozenset[str]] = {name: frozenset(inert.split()) for name, inert in _INERT.items()}
"""Names of the AWS plugin that nothing reads yet, with the values (lower case) under which a node behaves the same.

Left out are names that change nothing but a label: VPC_CNI_VERSION.
"""
