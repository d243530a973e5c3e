"""A `VirtualNode` behind the real service layer: what the runtime, operators, the log and the metrics are told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from agent import settings
from agent.cloud.budget import ActionBudget
from agent.datapath.desired import host_veth_name
from agent.errors import AgentError
from agent.events.journal import Journal
from agent.events.model import Kind
from agent.ipam.model import Holder
from agent.kube.absent import NoCluster
from agent.news import News
from agent.node import Node, Parts
from agent.ports.cluster import Cluster
from agent.runtime import log
from agent.runtime.reconciler import Reconciler
from agent.runtime.startup import Startup
from agent.service import AgentService
from agent.service.metrics import Metrics
from agent.service.operators import Desk
from api.problems import CniError
from api.service import CniCall, Verb
from tests.virtual_node import VirtualNode

DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Where a cause was found. cni: the error's message. explained: every cause in the tree. lines: of the log."""

    cni: str
    explained: frozenset[str]
    events: tuple[dict[str, Any], ...]
    lines: tuple[dict[str, Any], ...]
    metrics: str


class ServedNode:
    """What `AgentService` asks of `agent.node.Node`, of a node in virtual time."""

    def __init__(self, node: VirtualNode, cluster: Cluster | None = None, loops: tuple[Reconciler, ...] = ()) -> None:
        self._node = node
        self._loops = loops
        self.cluster: Cluster = cluster or NoCluster()
        self.stop = asyncio.Event()
        self.clock = asyncio.get_running_loop().time
        self.add_deadline_s = DEADLINE_S
        self.datapath = node.kernel
        self.journal = Journal(request_id=log.current_request_id)
        self.publish = self.journal.publish
        self.news = News(self.cluster, publish=self.publish, clock=self.clock)
        self._metrics = Metrics("test")
        as_node = cast("Node", self)
        self._metrics.watch(as_node, self.journal)
        with TemporaryDirectory() as directory:
            chosen = settings.load({"ENOKI_SOCKET": str(Path(directory) / "agent.sock")})
        desk = Desk(
            chosen=chosen,
            version="test",
            journal=self.journal,
            store=None,
            metrics=self._metrics,
            since=datetime.now(tz=UTC),
        )
        self.service = AgentService(as_node, desk)

    @property
    def startup(self) -> Startup:
        assert self._node.startup is not None
        return self._node.startup

    @property
    def parts(self) -> Parts | None:
        agent = self._node.agent
        if agent is None:
            return None
        return Parts(
            limits=agent.pool._limits,
            ledger=agent.ledger,
            pool=agent.pool,
            attachments=agent.attachments,
            leaks=agent.leaks,
        )

    def loops(self) -> tuple[Reconciler, ...]:
        return self._loops

    def budget(self) -> tuple[ActionBudget, ...]:
        return () if self._node.agent is None else self._node.agent.cloud.budget()

    def host_ifname(self, holder: Holder) -> str:
        return host_veth_name(holder, "eni")

    def unavailable(self) -> AgentError | None:
        return None

    async def add(self, pod: str) -> str:
        """The message of the CNI error, empty when the pod got its address."""
        try:
            await self.service.add(a_call(pod))
        except CniError as error:
            return error.msg
        return ""

    async def check(self, pod: str) -> str:
        """The message of the CNI error, empty when the kernel is as ADD made it."""
        try:
            await self.service.check(a_call(pod, Verb.CHECK))
        except CniError as error:
            return error.msg
        return ""

    async def told(self, pod: str, cni: str) -> Told:
        """What is known of a pod after its ADD."""
        tree = (await self.service.explain_pod("test", pod)).model_dump(mode="json")
        node = self.service.explain_node().model_dump(mode="json")
        return Told(
            cni=cni,
            explained=frozenset(causes([*tree["steps"], *node["steps"]])),
            events=tuple(
                dict(event.fields) | {"kind": str(event.kind)}
                for event in self.journal.events()
                if event.kind is not Kind.ADDRESS
            ),
            lines=tuple(json.loads(line) for line in log.recent.lines()),
            metrics=self.service.metrics().decode(),
        )


def a_call(pod: str, verb: Verb = Verb.ADD) -> CniCall:
    """About test/<pod>."""
    return CniCall(
        verb=verb,
        request_id=f"request-{pod}",
        cni_version="1.0.0",
        network_name="enoki",
        container_id=pod,
        ifname="eth0",
        netns=f"/run/netns/{pod}",
        pod_namespace="test",
        pod_name=pod,
        config={},
    )


def causes(steps: list[dict[str, Any]]) -> Iterator[str]:
    """Every cause in trees of steps."""
    for step in steps:
        if step["cause"]:
            yield step["cause"]
        yield from causes(step["because"])


@contextmanager
def logged() -> Iterator[None]:
    """The log in memory and nowhere else, from empty."""
    import logging  # noqa: PLC0415

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    log.recent._lines.clear()
    log.recent.setFormatter(log.JsonFormatter())
    root.handlers[:] = [log.recent]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level
        log.recent._lines.clear()
