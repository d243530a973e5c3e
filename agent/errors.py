"""The error tree: one class per reaction, one `Cause` per reason.

    AgentError                     expected failure: has a cause, evidence, a remedy, perhaps a time to try again
    ├── InvalidRequest             the caller must change the request; nobody retries      CNI code 1..7
    ├── TryAgain                   the caller may ask again later                          CNI code 11
    ├── Conflict                   the request lost against a newer one; nobody retries    CNI code 101
    ├── KernelFailed               the kernel refused a change; undone, the caller may ask again
    └── CloudFailed                EC2 or IMDS refused or did not answer; the pool loop retries
        ├── CloudThrottled         slow down: `retry_after_s`
        ├── CloudLimit             this ENI, instance or subnet is full: plan differently
        ├── CloudGone              the object does not exist (any more): observe again
        └── CloudDenied            IAM says no: a human must act; probe rarely

Anything that is not an `AgentError` is a bug: it ends the agent, and the restart recovers.
Adapters translate foreign errors at their boundary with `raise ... from exc`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

Evidence = Mapping[str, str | int | float]


class Cause(StrEnum):
    """Why something failed. A closed set: the value is what the API, the log and the metric say."""

    # The request
    CNI_VERSION_UNSUPPORTED = "cni_version_unsupported"
    REQUEST_INVALID = "request_invalid"
    CONTENT_UNDECODABLE = "content_undecodable"
    NETWORK_CONFIG_INVALID = "network_config_invalid"
    NETNS_INVALID = "netns_invalid"
    ATTACHMENT_SUPERSEDED = "attachment_superseded"
    ATTACHMENT_MISSING = "attachment_missing"
    ATTACHMENT_DRIFTED = "attachment_drifted"
    HOST_PORT_TAKEN = "host_port_taken"
    # The agent
    AGENT_STARTING = "agent_starting"
    AGENT_STOPPING = "agent_stopping"
    # The pool
    POOL_EMPTY = "pool_empty"
    POOL_EMPTY_COOLING = "pool_empty_cooling"
    ENI_ATTACHING = "eni_attaching"
    ENI_DETACHING = "eni_detaching"
    INSTANCE_LIMIT = "instance_limit"
    NODE_CORDONED = "node_cordoned"
    PROVISIONED_ELSEWHERE = "provisioned_elsewhere"
    # EC2
    SUBNET_EXHAUSTED = "subnet_exhausted"
    SUBNET_FRAGMENTED = "subnet_fragmented"
    EC2_LIMIT = "ec2_limit"
    EC2_THROTTLED = "ec2_throttled"
    EC2_UNAVAILABLE = "ec2_unavailable"
    EC2_GONE = "ec2_gone"
    EC2_REFUSED = "ec2_refused"
    IAM_DENIED = "iam_denied"
    IMDS_UNAVAILABLE = "imds_unavailable"
    # The kernel
    KERNEL_REFUSED = "kernel_refused"
    NETNS_GONE = "netns_gone"
    ENI_LINK_MISSING = "eni_link_missing"
    # The host
    HOST_FILE_REFUSED = "host_file_refused"
    # Kubernetes
    KUBERNETES_UNAVAILABLE = "kubernetes_unavailable"
    KUBERNETES_DENIED = "kubernetes_denied"
    KUBERNETES_REFUSED = "kubernetes_refused"
    KUBERNETES_EXPIRED = "kubernetes_expired"
    KUBERNETES_GONE = "kubernetes_gone"
    KUBERNETES_CONFLICT = "kubernetes_conflict"
    CUSTOM_NETWORKING_UNKNOWN = "custom_networking_unknown"


class AgentError(Exception):
    """An expected failure.

    message: what was attempted, on which id, and what came back. One sentence, no trailing stop.
    evidence: numbers and ids that prove the cause; JSON scalars.
    remedy: what a person can do about it; empty when waiting is the remedy.
    retry_after_s: when trying again may help; None when it will not.
    """

    def __init__(
        self,
        cause: Cause,
        message: str,
        *,
        evidence: Evidence | None = None,
        remedy: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message
        self.evidence: dict[str, str | int | float] = dict(evidence or {})
        self.remedy = remedy
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.cause}: {self.message}"


class InvalidRequest(AgentError):
    """The request can never succeed as it is."""


class TryAgain(AgentError):
    """The same request may succeed later."""


class Conflict(AgentError):
    """A newer request (a DEL, or an ADD for the same pod name) overtook this one."""


class KernelFailed(AgentError):
    """The kernel refused a change; whatever was half done has been undone."""


class CloudFailed(AgentError):
    """EC2 or IMDS failed in a way that a later try may not."""


class CloudThrottled(CloudFailed):
    """EC2 asked us to slow down."""


class CloudLimit(CloudFailed):
    """An ENI, the instance or the subnet is full."""


class CloudGone(CloudFailed):
    """EC2 does not know the object."""


class CloudDenied(CloudFailed):
    """IAM does not allow the call."""


class ClusterFailed(AgentError):
    """The API server refused, or did not answer; the loop of agent/kube that asked tries again."""


class ClusterExpired(ClusterFailed):
    """The API server has forgotten the version we know (410 Gone): list anew."""


class ClusterGone(ClusterFailed):
    """There is no such object (404)."""


class ClusterConflict(ClusterFailed):
    """The object is another one by now, or has changed (409): look again."""
