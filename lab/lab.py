"""A lab: one simulated VPC, its nodes, and one agent per node, all as processes on this machine.

A lab is found again through its state file, so that `up` and `down` are separate commands. Everything it makes
carries its name: namespaces `<name>-vpc`, `<name>-internet`, `<name>-node-N`, pods `<name>-pod-*`, the nodes' own part
of /etc in `/etc/netns/<name>-node-N` (ip-netns(8)), and in `/run/<name>` its state and logs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.pods import delete_namespace, namespaces_of
from lab.processes import (
    AT_ONCE,
    GRACEFUL,
    LabError,
    ProcessId,
    ReadySocket,
    end,
    start_announcing,
    start_notifying,
    tail,
)

REPOSITORY = Path(__file__).resolve().parent.parent
IPROUTE2 = Path("/etc/iproute2")
"""Names of tables and protocols. Newer iproute2 packages keep theirs in /usr/share and do not make this directory.
`ip netns exec` needs it to put a node's own in its place (ip-netns(8)): a lab makes it, and leaves it empty."""
NODES_ETC = Path("/etc/netns")
SIM_READY_S = 30.0
AGENT_READY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabPlan:
    """What a lab is to be.

    agent_environment: settings for every agent (WARM_IP_TARGET, IP_COOLDOWN_PERIOD, ...).
    agent_module: what runs as the agent on every node, as `python -m` takes it.
    latency: `real` for EC2's, `none` for tests.
    sim_arguments: further arguments of the simulator's `up`.
    """

    name: str = "enoki"
    node_count: int = 2
    instance_type: str = "t3.small"
    latency: str = "real"
    agent_environment: Mapping[str, str] | None = None
    agent_module: str = "agent"
    sim_arguments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LabNode:
    """A node of the lab: its namespace, instance id, primary address, and the paths of its agent."""

    index: int
    namespace: str
    instance_id: str
    primary_address: str
    directory: Path

    @property
    def socket(self) -> Path:
        return self.directory / "agent.sock"

    @property
    def log(self) -> Path:
        return self.directory / "agent.log"

    @property
    def names_directory(self) -> Path:
        """The node's own iproute2 names: what `ip netns exec` shows inside it."""
        return NODES_ETC / self.namespace / IPROUTE2.name


class Lab:
    """One lab, by name. `up()` is idempotent, `down()` too; both work whatever an earlier command left."""

    def __init__(self, plan: LabPlan) -> None:
        self.plan = plan
        self.directory = Path("/run") / plan.name
        self._state_path = self.directory / "lab.json"
        self._sim_log = self.directory / "sim.log"
        self._sim: ProcessId | None = None
        self._agents: dict[int, ProcessId] = {}
        self.announced: dict[str, Any] = {}
        self._load()

    @property
    def nodes(self) -> list[LabNode]:
        return [
            LabNode(
                index=index,
                namespace=node["namespace"],
                instance_id=node["instance_id"],
                primary_address=node["primary_address"],
                directory=self.directory / f"node-{index}",
            )
            for index, node in enumerate(self.announced.get("nodes", []))
        ]

    @property
    def running(self) -> bool:
        agents_alive = all(process.alive for process in self._agents.values())
        return self._sim is not None and self._sim.alive and agents_alive and len(self._agents) == len(self.nodes) > 0

    def up(self) -> None:
        """Bring up whatever is missing; a lab that is half there, or of another size, is taken down first."""
        if self.running and len(self.nodes) == self.plan.node_count:
            return
        self.down()
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o755)
        try:
            self._start_sim()
            self.start_agents([node.index for node in self.nodes])
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """End the lab's processes and remove everything that carries its name."""
        for process in self._agents.values():
            end(process, signals=GRACEFUL)
        self._agents.clear()
        for namespace in namespaces_of(self.plan.name):
            delete_namespace(namespace)
        if self._sim is not None:
            end(self._sim, signals=GRACEFUL)
            self._sim = None
        subprocess.run(
            [sys.executable, "-m", "sim", "down", "--name", self.plan.name], cwd=REPOSITORY, check=True, timeout=60
        )
        self._remove_files()
        self.announced = {}

    def start_agents(self, indexes: list[int], *, timeout_s: float = AGENT_READY_S) -> None:
        """Start the agents of these nodes, all at once, and wait until each says it is ready.

        Raises: LabError with the end of the log of one that did not.
        """
        starting = []
        for index in indexes:
            node = self.nodes[index]
            node.directory.mkdir(exist_ok=True, mode=0o755)
            IPROUTE2.mkdir(exist_ok=True)
            shutil.copytree(IPROUTE2, node.names_directory, dirs_exist_ok=True)
            ready = ReadySocket(node.directory / "ready.sock")
            child = start_notifying(
                self.agent_argv(node), environment=self.agent_environment(node), log=node.log, ready=ready
            )
            self._agents[index] = ProcessId.of(child.pid)
            starting.append((node, ready, child))
        self._save()
        failed = None
        for node, ready, child in starting:
            if not ready.wait(child, timeout_s):
                failed = node
            ready.close()
        if failed is not None:
            raise LabError(f"the agent of {failed.namespace} did not get ready:\n{tail(failed.log)}")

    def kill_agent(self, index: int) -> None:
        """kill -9, which the agent supports as a way to stop."""
        end(self._agents[index], signals=AT_ONCE)

    def stop_agent(self, index: int) -> None:
        end(self._agents[index], signals=GRACEFUL)

    def agent_pid(self, index: int) -> int:
        return self._agents[index].pid

    def source_check_drops(self) -> dict[str, int]:
        """Packets that the fabric dropped because EC2 does not know their (ENI, source), by ENI."""
        with urllib.request.urlopen(f"{self.announced['control']}/drops", timeout=10) as answer:  # noqa: S310
            drops: dict[str, int] = json.load(answer)
        return drops

    def _remove_files(self) -> None:
        """Whatever else is in our directories is somebody else's and stays."""
        for directory in [*self.directory.glob("node-*"), *NODES_ETC.glob(f"{self.plan.name}-node-*")]:
            shutil.rmtree(directory, ignore_errors=True)
        for path in (self._state_path, self._sim_log):
            path.unlink(missing_ok=True)
        for directory in (self.directory, NODES_ETC):
            with contextlib.suppress(OSError):  # missing, or not empty
                directory.rmdir()

    def _start_sim(self) -> None:
        plan = self.plan
        argv = [sys.executable, "-m", "sim", "up", "--name", plan.name, "--nodes", str(plan.node_count)]
        argv += ["--instance-type", plan.instance_type, "--latency", plan.latency, *plan.sim_arguments]
        previous = Path.cwd()
        os.chdir(REPOSITORY)  # `python -m` finds the packages from here
        try:
            self._sim, self.announced = start_announcing(argv, log=self._sim_log, timeout_s=SIM_READY_S)
        finally:
            os.chdir(previous)
        self._save()

    def agent_argv(self, node: LabNode) -> list[str]:
        """The command line of a node's agent."""
        # nsenter, not `ip netns exec`: the latter makes a mount namespace of its own, which would hide the network
        # namespaces that a runtime mounts later.
        return ["nsenter", f"--net=/run/netns/{node.namespace}", "--", sys.executable, "-m", self.plan.agent_module]

    def agent_environment(self, node: LabNode) -> dict[str, str]:
        """The whole environment of a node's agent."""
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(REPOSITORY),
            "ENOKI_SOCKET": str(node.socket),
            "ENOKI_NAMES_DIRECTORY": str(node.names_directory),
            "AWS_ENDPOINT_URL_EC2": self.announced["ec2_endpoint_in_vpc"],
            **(self.plan.agent_environment or {}),
        }

    def _save(self) -> None:
        state = {
            "sim": self._sim.as_dict() if self._sim else None,
            "agents": {str(index): process.as_dict() for index, process in self._agents.items()},
            "announced": self.announced,
        }
        temporary = self._state_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(state, indent=2))
        temporary.replace(self._state_path)

    def _load(self) -> None:
        try:
            state = json.loads(self._state_path.read_text())
        except FileNotFoundError:
            return
        self._sim = ProcessId(**state["sim"]) if state["sim"] else None
        self._agents = {int(index): ProcessId(**process) for index, process in state["agents"].items()}
        self.announced = state["announced"]
