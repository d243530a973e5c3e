"""What every kernel test may ask for: `node`, and a `datapath` that runs on it. Without root all of them skip."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from agent.datapath.kernel import KernelDatapath
from tests.kernel.datapath_node import Node, datapath_running, node_made, why_not


@pytest.fixture(scope="session", autouse=True)
def able() -> None:
    """Skip, with the reason, where network namespaces cannot be made."""
    if reason := why_not():
        pytest.skip(reason)


@pytest.fixture
def node() -> Iterator[Node]:
    """A node with two ENIs; the test's own thread is inside it."""
    with node_made() as made:
        yield made


@pytest.fixture
async def unwatched(node: Node) -> AsyncIterator[KernelDatapath]:
    """The same without its monitor: what a test breaks stays broken."""
    async with datapath_running(watching=False) as made:
        yield made


@pytest.fixture
async def datapath(node: Node) -> AsyncIterator[KernelDatapath]:
    """Prepared on `node`, with its monitor, by the default policy."""
    async with datapath_running() as running:
        yield running
