"""A node without Kubernetes: `agent.ports.cluster.Cluster` that knows nothing and wants nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from agent.errors import AgentError, Cause, ClusterFailed
from agent.ipam.model import Attachment, Finding
from agent.ports.cluster import ClusterView, Notice, PodFacts, PodName, Site


class NoCluster:
    """Implements `agent.ports.cluster.Cluster`.

    custom_networking: whether settings ask for what only Kubernetes can answer.
    """

    def __init__(self, *, custom_networking: bool = False) -> None:
        self._custom_networking = custom_networking

    @property
    def schedulable(self) -> bool:
        return True

    @property
    def max_pods(self) -> int | None:
        return None

    def announced(self) -> frozenset[PodName]:
        """Nobody announces pods."""
        return frozenset()

    def pod(self, namespace: str, name: str) -> PodFacts | None:
        """Nobody knows pods."""
        del namespace, name
        return None

    def site(self) -> Site | AgentError | None:
        """Wherever the pool likes; but for custom networking somebody would have to say."""
        if not self._custom_networking:
            return None
        return ClusterFailed(
            Cause.CUSTOM_NETWORKING_UNKNOWN,
            "custom networking is on, and Kubernetes, whose ENIConfigs say where new ENIs go, is not configured",
            remedy="set MY_NODE_NAME, and run in a pod or set KUBECONFIG; or turn custom networking off",
        )

    def report(self, notice: Notice) -> None:
        """The log has it already."""

    def view(self) -> ClusterView:
        """Not configured."""
        return ClusterView(configured=False)

    def findings(self, attachments: Sequence[Attachment]) -> tuple[Finding, ...]:
        """Nothing to compare with."""
        del attachments
        return ()

    async def settle(self, attachments: Sequence[Attachment]) -> None:
        """Nothing to write."""
        del attachments

    def subscribe(self, wake: Callable[[], None]) -> None:
        """Nothing ever changes."""

    async def run(self) -> None:
        """Rest until cancelled."""
        await asyncio.Event().wait()
