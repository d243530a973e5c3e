"""Kubernetes objects as values: what of a pod, a node and an ENIConfig counts, and which ENIConfig a node selects."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from agent.errors import AgentError, Cause
from agent.ipam.model import Attachment, AttachmentKey, EniId, FindingKind, Holder, SubnetId
from agent.kube import demand, objects, siting
from agent.kube.objects import EniConfig, NodeFacts, Pod
from agent.kube.policy import KubePolicy
from agent.ports.cluster import PodName, Site

SANDBOX_READY = "PodReadyToStartContainers"


def a_pod_document(*, spec: Any = None, status: Any = None, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "default", "name": "web-0", "uid": "u-1", **metadata},
        "spec": {"nodeName": "n", **(spec or {})},
        "status": {"phase": "Pending", **(status or {})},
    }


def ready(status: str) -> dict[str, Any]:
    return {"podIP": "10.0.0.9", "conditions": [{"type": SANDBOX_READY, "status": status}]}


@pytest.mark.parametrize(
    ("document", "needs_address"),
    [
        (a_pod_document(), True),
        (a_pod_document(spec={"hostNetwork": True}), False),
        (a_pod_document(status={"phase": "Succeeded"}), False),
        (a_pod_document(status={"phase": "Failed"}), False),
        (a_pod_document(deletionTimestamp="2026-11-24T10:00:00Z"), False),
        (a_pod_document(status={"podIP": "10.0.0.9"}), False),  # on the network of the plugin before us
        (a_pod_document(status=ready("True")), False),
        (a_pod_document(status=ready("False")), True),  # after a reboot: the address is of yesterday
        (a_pod_document(status=None, spec=None, annotations=None), True),
    ],
)
def test_which_pods_need_an_address(document: dict[str, Any], *, needs_address: bool) -> None:
    assert objects.pod(document).needs_address is needs_address


def test_a_pod_keeps_only_the_annotations_of_our_field() -> None:
    annotations = {"vpc.amazonaws.com/pod-ips": "10.0.0.1", "kubectl.kubernetes.io/last-applied-configuration": "x" * 9}

    assert objects.pod(a_pod_document(annotations=annotations)).facts.annotations == {
        "vpc.amazonaws.com/pod-ips": "10.0.0.1"
    }


@pytest.mark.parametrize("broken", [{}, {"metadata": {}}, {"metadata": {"name": "x"}}])
def test_what_is_no_pod_is_an_error_of_a_kind_the_reflector_expects(broken: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        objects.pod(broken)


def test_max_pods_and_cordon_come_from_the_node() -> None:
    taint = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    document = {
        "metadata": {"name": "n", "uid": "u"},
        "spec": {"taints": [taint]},
        "status": {"capacity": {"pods": "29"}},
    }

    node = objects.node(document)

    assert (node.max_pods, node.unschedulable) == (29, True)
    assert not objects.node({**document, "spec": {"taints": [{**taint, "effect": "NoExecute"}]}}).unschedulable
    assert objects.node({"metadata": {"name": "n", "uid": "u"}}).max_pods is None


# --- Which ENIConfig -------------------------------------------------------------------------------------------------

POLICY = KubePolicy(
    node_name="n", custom_networking=True, eni_config_label="topology.kubernetes.io/zone", eni_config_annotation="cfg"
)


def a_node(labels: dict[str, str] | None = None, annotations: dict[str, str] | None = None) -> NodeFacts:
    return NodeFacts(
        name="n", uid="u", labels=labels or {}, annotations=annotations or {}, max_pods=None, unschedulable=False
    )


@pytest.mark.parametrize(
    ("labels", "annotations", "name"),
    [
        ({}, {}, "default"),
        ({"topology.kubernetes.io/zone": "eu-west-1a"}, {}, "eu-west-1a"),
        ({"topology.kubernetes.io/zone": "eu-west-1a"}, {"cfg": "mine"}, "mine"),
        ({siting.EXTERNAL_LABEL: "first", "topology.kubernetes.io/zone": "z"}, {"cfg": "mine"}, "first"),
        ({siting.EXTERNAL_LABEL: ""}, {"cfg": ""}, "default"),
        ({"k8s.amazonaws.com/eniConfig": "not-asked-for"}, {}, "default"),
    ],
)
def test_label_annotation_label_default(labels: dict[str, str], annotations: dict[str, str], name: str) -> None:
    assert siting.eni_config_name(a_node(labels, annotations), POLICY) == name


def test_the_site_is_the_eni_configs() -> None:
    configs = {"default": EniConfig(name="default", subnet="subnet-1", security_groups=("sg-1",))}

    expected = Site(name="default", subnet_id=SubnetId("subnet-1"), security_groups=("sg-1",))
    assert siting.site(a_node(), configs, POLICY) == expected


@pytest.mark.parametrize(
    ("node", "configs", "says"),
    [
        (None, {}, "has not shown this node"),
        (a_node(), None, "has not shown the ENIConfigs"),
        (a_node(), {}, "selects ENIConfig default, which does not exist"),
        (a_node(), {"default": EniConfig(name="default", subnet="", security_groups=())}, "has no subnet"),
    ],
)
def test_an_unknown_site_is_an_error_that_says_what_to_do(
    node: NodeFacts | None, configs: dict[str, EniConfig] | None, says: str
) -> None:
    found = siting.site(node, configs, POLICY)

    assert isinstance(found, AgentError)
    assert found.cause is Cause.CUSTOM_NETWORKING_UNKNOWN
    assert says in found.message
    assert found.remedy


# --- Demand and findings ---------------------------------------------------------------------------------------------


def a_pod(name: str, **kwargs: Any) -> Pod:
    return objects.pod(a_pod_document(name=name, uid=name, **kwargs))


def an_attachment(pod: str) -> Attachment:
    holder = Holder(key=AttachmentKey(container_id=f"c-{pod}", ifname="eth0"), namespace="default", pod=pod)
    return Attachment(holder=holder, addresses=(IPv4Address("10.0.0.9"),), eni_id=EniId("eni-1"), since_s=0.0)


def test_pods_on_the_hosts_network_are_not_announced() -> None:
    pods = [a_pod("bound"), a_pod("host", spec={"hostNetwork": True})]

    assert demand.announced(pods) == {PodName(("default", "bound"))}


def test_an_attachment_without_a_pod_is_a_finding_once_it_has_lasted() -> None:
    pods = {"default/here": a_pod("here")}
    attachments = [an_attachment("here"), an_attachment("gone")]

    missing = demand.missing_since(attachments, pods, {}, 100.0)
    early = demand.findings(attachments, missing, 100.0 + demand.POD_GONE_S - 1)
    missing = demand.missing_since(attachments, pods, missing, 400.0)
    late = demand.findings(attachments, missing, 100.0 + demand.POD_GONE_S)

    assert early == ()
    assert [(one.kind, one.evidence["pod"]) for one in late] == [(FindingKind.POD_GONE, "gone")]


def test_a_pod_that_comes_back_starts_anew() -> None:
    missing = demand.missing_since([an_attachment("a")], {}, {}, 1.0)
    missing = demand.missing_since([an_attachment("a")], {"default/a": a_pod("a")}, missing, 2.0)

    assert demand.missing_since([an_attachment("a")], {}, missing, 3.0) == {PodName(("default", "a")): 3.0}
