"""The few fields of Kubernetes objects that matter here, as values. Pure.

An object is parsed once, when it comes over the wire, and the rest of it is dropped: a pod of 10 KiB becomes one of a
few hundred bytes. Field names are those of the Kubernetes API reference (core/v1, crd.k8s.amazonaws.com/v1alpha1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.ports.cluster import PodFacts

Json = Mapping[str, Any]

UNSCHEDULABLE_TAINT = "node.kubernetes.io/unschedulable"
"""With effect NoSchedule: what the node lifecycle controller adds when `kubectl cordon` or `kubectl drain` has set
`spec.unschedulable`. Either is enough: the controller may be late, or away."""
_ANNOTATION_DOMAIN = "amazonaws.com/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A pod bound to this node.

    needs_address: it is neither on the host's network, nor finished, nor on its way out, nor has it a sandbox yet.
    leaving: it is finished or being deleted.
    """

    facts: PodFacts
    needs_address: bool
    leaving: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """This node.

    max_pods: pods the kubelet takes; None when the node does not say.
    """

    name: str
    uid: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    max_pods: int | None
    unschedulable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EniConfig:
    """An ENIConfig. `subnet` is empty in an object that the schema should have refused."""

    name: str
    subnet: str
    security_groups: tuple[str, ...]


def pod(document: Json) -> Pod:
    """A v1 Pod. Raises: KeyError, TypeError, ValueError for what is none."""
    metadata, spec, status = document["metadata"], document.get("spec") or {}, document.get("status") or {}
    leaving = status.get("phase") in {"Succeeded", "Failed"} or metadata.get("deletionTimestamp") is not None
    host_network = bool(spec.get("hostNetwork"))
    return Pod(
        facts=PodFacts(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            annotations={
                key: value for key, value in (metadata.get("annotations") or {}).items() if _ANNOTATION_DOMAIN in key
            },
        ),
        needs_address=not host_network and not leaving and not _has_sandbox(status),
        leaving=leaving,
    )


def _has_sandbox(status: Json) -> bool:
    """Whether the pod is on a network already, by us or by the plugin before us.

    After a reboot a pod shows its old address until its new sandbox is there; the condition PodReadyToStartContainers
    (KEP-3085) tells the two apart.
    """
    if not status.get("podIP"):
        return False
    conditions = {one.get("type"): one.get("status") for one in status.get("conditions") or ()}
    return bool(conditions.get("PodReadyToStartContainers") != "False")


def node(document: Json) -> NodeFacts:
    """A v1 Node. Raises: KeyError, TypeError, ValueError for what is none."""
    metadata, spec, status = document["metadata"], document.get("spec") or {}, document.get("status") or {}
    capacity = (status.get("capacity") or {}).get("pods")
    taints = spec.get("taints") or ()
    return NodeFacts(
        name=metadata["name"],
        uid=metadata["uid"],
        labels=dict(metadata.get("labels") or {}),
        annotations=dict(metadata.get("annotations") or {}),
        max_pods=None if capacity is None else int(capacity),
        unschedulable=bool(spec.get("unschedulable"))
        or any(one.get("key") == UNSCHEDULABLE_TAINT and one.get("effect") == "NoSchedule" for one in taints),
    )


def eni_config(document: Json) -> EniConfig:
    """An ENIConfig. Raises: KeyError, TypeError, ValueError for what is none."""
    spec = document.get("spec") or {}
    return EniConfig(
        name=document["metadata"]["name"],
        subnet=str(spec.get("subnet") or ""),
        security_groups=tuple(str(one) for one in spec.get("securityGroups") or ()),
    )
