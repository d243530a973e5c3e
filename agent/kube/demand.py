"""What pods mean for the pool. Pure.

A pod that is bound to the node and will need an address asks for it when its volumes are mounted, a second or a minute
later: until then it is announced.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from agent.ipam.model import Attachment, Finding, FindingKind
from agent.kube.objects import Pod
from agent.ports.cluster import PodName

POD_GONE_S = 300.0
"""How long an attachment may outlive its pod before that is worth a word: a DEL that has to be repeated takes a minute
or two, and nothing is done about it but telling."""


def announced(pods: Iterable[Pod]) -> frozenset[PodName]:
    """Pods that need an address; some of them may have one by now, or wait for it."""
    return frozenset(one.facts.full_name for one in pods if one.needs_address)


def missing_since(
    attachments: Iterable[Attachment], pods: Mapping[str, Pod], before: Mapping[PodName, float], now_s: float
) -> dict[PodName, float]:
    """Pods of attachments that Kubernetes does not list, and since when."""
    known = {one.facts.full_name for one in pods.values()}
    named = {PodName((one.holder.namespace, one.holder.pod)) for one in attachments if one.holder.pod}
    return {name: before.get(name, now_s) for name in named - known}


def findings(attachments: Iterable[Attachment], missing: Mapping[PodName, float], now_s: float) -> tuple[Finding, ...]:
    """Attachments whose pod has been gone for long. Their addresses stay theirs: the container may still use them."""
    found = []
    for one in attachments:
        since_s = missing.get(PodName((one.holder.namespace, one.holder.pod)))
        if since_s is None or now_s - since_s < POD_GONE_S:
            continue
        found.append(
            Finding(
                kind=FindingKind.POD_GONE,
                message=f"{one.holder} holds {one.addresses[0]}, and Kubernetes has no such pod on this node; the"
                " address is released when the container's namespace goes or the runtime's GC says so",
                evidence={
                    "namespace": one.holder.namespace,
                    "pod": one.holder.pod,
                    "container_id": one.holder.key.container_id,
                    "address": str(one.addresses[0]),
                    "gone_for_s": int(now_s - since_s),
                },
            )
        )
    return tuple(found)
