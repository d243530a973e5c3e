"""What every system test may ask for.

- `requires_root`: skips, with the reason, where network namespaces cannot be made.
- `lab`: brings labs up, each a simulated VPC with nodes and agents as processes, and takes them down at the end of
  the module, whatever the tests did. A test module that is content with one lab for all of its tests wraps it:

      @pytest.fixture(scope="module")
      def vpc(lab: LabFactory) -> Lab:
          return lab(agent_environment={"IP_COOLDOWN_PERIOD": "1"})

- `node`: the first node of the module's `vpc`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Protocol

import pytest

from lab.lab import Lab, LabNode, LabPlan

_numbers = itertools.count()


class LabFactory(Protocol):
    """Brings a lab up under a name no other lab has; returns when every agent is ready. See `LabPlan`.

    Raises: LabError with the end of the log of what did not get ready.
    """

    def __call__(
        self,
        *,
        node_count: int = 1,
        instance_type: str = "m5.large",
        latency: str = "none",
        agent_environment: Mapping[str, str] | None = None,
        agent_module: str = "agent",
        sim_arguments: tuple[str, ...] = (),
    ) -> Lab: ...


@pytest.fixture(scope="session")
def requires_root() -> None:
    """Skip without root."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes network namespaces")


@pytest.fixture(scope="module")
def lab(requires_root: None) -> Iterator[LabFactory]:
    """A `LabFactory`; its labs live until the end of the module."""
    with ExitStack() as downs:

        def bring_up(
            *,
            node_count: int = 1,
            instance_type: str = "m5.large",
            latency: str = "none",
            agent_environment: Mapping[str, str] | None = None,
            agent_module: str = "agent",
            sim_arguments: tuple[str, ...] = (),
        ) -> Lab:
            made = Lab(
                LabPlan(
                    name=f"ek{os.getpid():x}-{next(_numbers)}",
                    node_count=node_count,
                    instance_type=instance_type,
                    latency=latency,
                    agent_environment=agent_environment,
                    agent_module=agent_module,
                    sim_arguments=sim_arguments,
                )
            )
            downs.callback(made.down)
            made.up()
            return made

        yield bring_up


@pytest.fixture(scope="module")
def node(vpc: Lab) -> LabNode:
    """See above; a module may have one of its own."""
    return vpc.nodes[0]
