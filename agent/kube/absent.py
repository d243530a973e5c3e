"""A node without Kubernetes: `agent.ports.Cluster` that knows nothing and wants nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence

from agent.errors import AgentError
from agent.ipam.model import Attachment, Finding
from agent.ports import ClusterView, Notice, PodFacts, PodName, Site


class NoCluster:
    """Implements `agent.ports.Cluster`."""

    @property
    def schedulable(self) -> bool:
        return True

    @property
    def max_pods(self) -> int | None:
        return None

    def announced_count(self, served: Collection[PodName]) -> int:
        """Nobody announces pods."""
        del served
        return 0

    def pod(self, namespace: str, name: str) -> PodFacts | None:
        """Nobody knows pods."""
        del namespace, name
        return None

    def site(self) -> Site | AgentError | None:
        """Wherever the pool likes."""
        return None

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
