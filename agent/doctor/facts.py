"""Pure: what the checks look at. None: the agent could not see it, and the check says so instead of guessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agent.ipam.model import Address
from agent.surveyed import CloudFacts, KernelFacts

Scalar = str | int | float


class Verdict(StrEnum):
    """What a check found."""

    OK = "ok"
    WARNING = "warning"
    """Pods start, and something will hurt."""
    FAILING = "failing"
    """Pods do not start, or lose packets."""
    SKIPPED = "skipped"
    """It could not be looked at from where the agent runs, or does not apply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """verdict with its reason in one sentence; fix: what a person can do, empty when there is nothing to do."""

    verdict: Verdict
    message: str
    fix: str = ""
    evidence: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """Files and limits. sysctls: below /proc/sys/net, by path. networkd: keys of [Network] in networkd.conf, None when
    it has no file, or they are not visible. networkd_runs: or has run since the host's start.
    """

    sysctls: Mapping[str, int]
    networkd: Mapping[str, str] | None
    networkd_runs: bool | None
    mac_policy: str | None
    nm_cloud_setup: bool | None
    open_files: int
    open_files_limit: int
    log_disk: tuple[str, int, int] | None
    """(directory, free bytes, all bytes)."""
    socket_mode: int | None
    socket_uid: int | None
    conf_directory: str
    conf_files: tuple[str, ...] | None
    conflist_as_ours: bool | None
    plugin: str
    plugin_mode: int | None
    netns_visible: bool
    pod_mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EniFacts:
    """An ENI of this instance, as last described."""

    eni_id: str
    mac: str
    is_primary: bool
    managed: bool
    is_set_up: bool
    delete_on_termination: bool
    security_groups: tuple[str, ...]
    subnet_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What the agent itself knows. capacity: pods the node can address."""

    ready: str
    imds: str
    enis: tuple[EniFacts, ...]
    troubles: tuple[str, ...]
    quarantined: tuple[Address, ...]
    capacity: int | None
    max_pods: int | None
    prefix_delegation: bool
    is_nitro: bool
    kubernetes_configured: bool
    kubernetes: str
    follows_groups: bool
    failing_loops: tuple[str, ...]
    primary_mark: int
    eni_mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything. kernel_error: why the kernel could not be read. cloud: None when EC2 may not be asked."""

    host: HostFacts
    kernel: KernelFacts | None
    kernel_error: str
    cloud: CloudFacts | None
    node: NodeFacts
