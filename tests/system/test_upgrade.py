"""A rolling upgrade under load: the agent is replaced while containerd runs and removes pods without a pause.

Two ways: the DaemonSet's, stop and then start; and a hand-over, in which the new agent already waits for the old one's
lock. The load is an open one: an operation starts every 50 ms, whatever became of those before.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lab.lab import Lab
from lab.pods import SHIM
from tests.system import containerd as runtime
from tests.system import three_truths as truths
from tests.system.agent_process import agent
from tests.system.conftest import LabFactory
from tests.system.containerd import Containerd, ContainerdPlan
from tests.system.cri import CriFailed, SandboxState
from tests.system.eventually import eventually_equal

OPERATION_COUNT = 500
INTERVAL_S = 0.05
LIVE_COUNT = 10
"""How many pods a DEL is behind its ADD: half a second of life, at ten ADDs and ten DELs a second."""
RETRY_S = 0.2
"""The kubelet waits a second and more before it tries a sandbox again; sooner is harder."""
LONGEST_DELAY_S = 60.0
"""Of an ADD with all its tries: half of what the kubelet gives one. It waits for an agent to stop and start (a second
on an idle machine), and then for containerd to catch up with what has gathered."""
WORKER_COUNT = 32


@pytest.fixture(scope="module")
def vpc(requires_root: None, lab: LabFactory) -> Lab:
    """Four ENIs of 14 pod addresses each (EC2 User Guide, "IP addresses per network interface per instance type")."""
    if lacking := runtime.missing():
        pytest.skip(f"needs containerd, runc, busybox-static and containernetworking-plugins; not found: {lacking}")
    return lab(instance_type="t3.xlarge", agent_environment={"WARM_IP_TARGET": "20", "IP_COOLDOWN_PERIOD": "1"})


@pytest.fixture(scope="module")
def containerd(vpc: Lab) -> Iterator[Containerd]:
    node = vpc.nodes[0]
    plan = ContainerdPlan(
        name=f"{vpc.plan.name}-upg",
        netns=Path("/run/netns") / node.namespace,
        network={"cniVersion": "1.0.0", "name": "enoki", "plugins": [{"type": "enoki"}]},
        plugins={"enoki": SHIM},
        environment={"ENOKI_SOCKET": str(node.socket)},
    )
    with Containerd(plan) as running:
        yield running


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What the load saw. delays_s: of each ADD, from its first try to its success."""

    refused_adds: list[str] = field(default_factory=list)
    failed_deletes: list[str] = field(default_factory=list)
    delays_s: list[float] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)


class Load:
    """ADDs and DELs in turn, through containerd."""

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        self._workers = ThreadPoolExecutor(WORKER_COUNT)
        self._pods: list[Future[str]] = []
        self._deletes: list[Future[None]] = []
        self._removed_count = 0
        self.outcome = Outcome()

    def start(self, number: int) -> None:
        """Start operation `number`; returns at once."""
        if number % 2 == 0:
            self._pods.append(self._workers.submit(self._add, f"pod-{number}"))
        elif len(self._pods) - self._removed_count > LIVE_COUNT:
            self.remove_oldest()

    def remove_oldest(self) -> None:
        self._deletes.append(self._workers.submit(self._delete, self._pods[self._removed_count]))
        self._removed_count += 1

    def end(self) -> None:
        """Remove what is left and wait for everything."""
        while self._removed_count < len(self._pods):
            self.remove_oldest()
        self._workers.shutdown(wait=True)
        for added in self._pods:
            added.result()
        for deleted in self._deletes:
            deleted.result()

    def _add(self, name: str) -> str:
        began_s = time.monotonic()
        while True:
            try:
                pod = self._containerd.run_pod(name)
            except CriFailed as refusal:
                self.outcome.refused_adds.append(refusal.details)
                if time.monotonic() - began_s > LONGEST_DELAY_S:
                    raise
                time.sleep(RETRY_S)
                continue
            assert pod.state is SandboxState.READY
            self.outcome.addresses.append(str(pod.addresses[0]))
            self.outcome.delays_s.append(time.monotonic() - began_s)
            return pod.sandbox_id

    def _delete(self, pod: Future[str]) -> None:
        try:
            self._containerd.remove_pod(pod.result())
        except CriFailed as failure:
            self.outcome.failed_deletes.append(failure.details)


def test_the_agent_is_replaced_under_load(vpc: Lab, containerd: Containerd) -> None:
    node = vpc.nodes[0]
    load = Load(containerd)
    run_operations(load, range(150))
    vpc.stop_agent(0)
    with ThreadPoolExecutor(1) as starter, agent(vpc, node) as second:
        run_operations(load, range(150, 350))
        second.wait_until_ready()
        third = starter.submit(vpc.start_agents, [0])  # waits for the lock that `second` holds
        run_operations(load, range(350, 360))
        assert not third.done()
        second.send(signal.SIGTERM)
        run_operations(load, range(360, OPERATION_COUNT))
        third.result()
        load.end()

    outcome = load.outcome
    assert outcome.failed_deletes == []
    assert len(outcome.delays_s) == OPERATION_COUNT // 2
    assert max(outcome.delays_s) < LONGEST_DELAY_S
    # Whatever was refused was refused as "try again later", by name: nobody was there, or it was leaving.
    assert [text for text in outcome.refused_adds if not ("is not there" in text or "agent_stopping" in text)] == []
    eventually_equal(lambda: truths.allocations(node), {})
    eventually_equal(lambda: truths.host_links(node), {})
    truths.assert_agreed(node, truths.Ec2(vpc), {})
    assert set(vpc.source_check_drops().values()) == {0}


def run_operations(load: Load, numbers: range) -> None:
    """One every `INTERVAL_S`, by the clock and not by how long the one before took."""
    began_s = time.monotonic()
    for step, number in enumerate(numbers):
        load.start(number)
        time.sleep(max(0.0, began_s + (step + 1) * INTERVAL_S - time.monotonic()))
