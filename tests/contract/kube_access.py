"""Ways to an API server."""

from __future__ import annotations

from pathlib import Path

from agent.kube.access import Access, find
from agent.kube.library import Configuration
from agent.kube.policy import KubePolicy


def access_to(url: str) -> Access:
    """Without credentials."""

    async def load(configuration: Configuration) -> None:
        configuration.host = url

    return Access(load)


def access_by_kubeconfig(path: Path) -> Access:
    found = find(KubePolicy(node_name="n", kubeconfig=path))
    assert found is not None
    return found
