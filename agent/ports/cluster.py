"""Kubernetes, as the agent asks it. The rules for every method are in agent/ports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType, Protocol

from agent.errors import AgentError, Evidence
from agent.ipam.model import (
    Attachment,
    Finding,
    SubnetId,
)

PodName = NewType("PodName", tuple[str, str])
"""Namespace and name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """What Kubernetes says of a pod. annotations: only those of amazonaws.com and its subdomains."""

    namespace: str
    name: str
    uid: str
    annotations: Mapping[str, str]

    @property
    def full_name(self) -> PodName:
        return PodName((self.namespace, self.name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where new ENIs go under custom networking.

    name: of the ENIConfig that says so. security_groups: empty: those of the primary ENI.
    """

    name: str
    subnet_id: SubnetId
    security_groups: tuple[str, ...]


class NoticeKind(StrEnum):
    """What is worth a Kubernetes event. The value is the event's reason, but for IAM (see agent/kube/outbox.py)."""

    POOL_EXHAUSTED = "PoolExhausted"
    SUBNET_EXHAUSTED = "SubnetExhausted"
    IAM_DENIED = "MissingIAMPermissions"
    ENI_FAILED = "EniAttachFailed"
    EC2_FAILING = "Ec2Failing"
    DRIFT_REPAIRED = "DriftRepaired"
    SITE_CHANGED = "EniConfigChanged"
    SITE_UNKNOWN = "EniConfigMissing"
    MAX_PODS_TOO_HIGH = "MaxPodsTooHigh"


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A change of state that a person may want to see with `kubectl describe node`.

    subject: what it is about (a subnet id, an action); reports of one kind and subject are one event.
    over: the state has ended; nobody need know of an end whose beginning was not reported.
    """

    kind: NoticeKind
    message: str
    subject: str = ""
    evidence: Evidence = field(default_factory=dict)
    over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """How much of Kubernetes the agent knows, for the API.

    configured: an API server is configured at all.
    synced: pods have been listed at least once. failure: why the last request failed; None when it did not.
    """

    configured: bool
    synced: bool = False
    pod_count: int = 0
    schedulable: bool = True
    max_pods: int | None = None
    failure: AgentError | None = None


class Cluster(Protocol):
    """Kubernetes, for this node. Every answer is at once, from what is known; nothing here is a condition to serve."""

    @property
    def schedulable(self) -> bool:
        """False on a cordoned node. True while nobody knows."""
        ...

    @property
    def max_pods(self) -> int | None:
        """Pods the kubelet takes, those on the host's network included; None while nobody knows."""
        ...

    def announced(self) -> frozenset[PodName]:
        """Pods bound to this node that need an address: some have one by now, or wait for it."""
        ...

    def pod(self, namespace: str, name: str) -> PodFacts | None:
        """What is known of a pod of this node."""
        ...

    def site(self) -> Site | AgentError | None:
        """Where new ENIs go. None: the pool chooses. An error: custom networking is on and the answer is not known;
        make no ENI, and say why.
        """
        ...

    def report(self, notice: Notice) -> None:
        """Have a change of state told as an event. Never blocks, never fails; bounded in number and rate."""
        ...

    def view(self) -> ClusterView:
        """For the API."""
        ...

    def findings(self, attachments: Sequence[Attachment]) -> tuple[Finding, ...]:
        """Attachments whose pod is long gone."""
        ...

    async def settle(self, attachments: Sequence[Attachment]) -> None:
        """Write what Kubernetes is to know of the attachments (the pods' annotation, if asked for). Level-triggered.

        Raises: ClusterFailed; the caller's loop tries again. Nobody waits for it.
        """
        ...

    def subscribe(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, on the event loop, whenever something above may answer differently."""
        ...

    async def run(self) -> None:
        """Watch and report: a long-lived task for the supervisor. Returns only by cancellation."""
        ...
