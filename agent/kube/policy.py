"""What the kube room needs of the settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ENI_CONFIG_KEY = "k8s.amazonaws.com/eniConfig"
"""Default name of the label and of the annotation that select an ENIConfig, as the AWS plugin has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KubePolicy:
    """Where the API server is, and which features need it.

    node_name: this node's name in Kubernetes; empty: Kubernetes is not used at all.
    kubeconfig: a file that says how to reach the API server; None: the pod's service account.
    service_host, service_port: of the API server, as the kubelet puts them into a pod's environment; empty outside.
    endpoint: replaces the API server's URL, wherever else it would come from; empty: it does not.
    pod_name: of the agent's own pod in kube-system; empty outside of one.
    annotate_pod_ip: write `vpc.amazonaws.com/pod-ips` on pods.
    custom_networking: new ENIs go where an ENIConfig says.
    eni_config_label, eni_config_annotation: keys on the node that name its ENIConfig.
    """

    node_name: str = ""
    kubeconfig: Path | None = None
    service_host: str = ""
    service_port: str = ""
    endpoint: str = ""
    pod_name: str = ""
    annotate_pod_ip: bool = False
    custom_networking: bool = False
    eni_config_label: str = ENI_CONFIG_KEY
    eni_config_annotation: str = ENI_CONFIG_KEY

    @property
    def is_configured(self) -> bool:
        """Whether settings say who this node is and where an API server may be."""
        return bool(self.node_name and (self.kubeconfig is not None or (self.service_host and self.service_port)))
