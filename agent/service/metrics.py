"""Prometheus metrics: what happens is counted as it happens, what is there is read when somebody asks.

Names that start with `awscni_` are those of the AWS VPC CNI plugin (v1.23), for dashboards that exist; what has no
counterpart here is not exposed, and docs/operations.md says why. Its counters are named without `_total`; this library
would add it, so they are exposed as untyped.
"""

from __future__ import annotations

import platform
from collections import Counter as Tally
from collections.abc import Iterator
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from agent.attachments import Step
from agent.cloud.budget import WITHHELD
from agent.errors import Cause
from agent.events.journal import Journal
from agent.events.model import Event, Kind
from agent.ipam.model import AddressState
from agent.ipam.plan import ReleaseEni
from agent.ipam.pool import PoolView
from agent.node import Node, Parts

_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32)
"""From a wiring (about a millisecond) to an ADD's longest deadline."""

_NO_ADDRESS = frozenset(
    {Cause.POOL_EMPTY, Cause.POOL_EMPTY_COOLING, Cause.ENI_ATTACHING, Cause.INSTANCE_LIMIT, Cause.SUBNET_EXHAUSTED}
    | {Cause.SUBNET_FRAGMENTED, Cause.ENI_DETACHING, Cause.NODE_CORDONED, Cause.PROVISIONED_ELSEWHERE}
)
_REPAIRED = frozenset(["address", "host", "link", "neighbour", "route", "routes", "rule", "table", "token"])
_STATES = ("free", "held", "cooling", "retiring", "quarantined")


class Metrics:
    """One registry per agent. `watch` must be called once."""

    def __init__(self, version: str) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._version = version
        ProcessCollector(registry=self._registry)
        self._steps = Histogram(
            "enoki_add_step_seconds",
            "Time an ADD spends in a step",
            ["step"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._calls = Histogram(
            "enoki_cni_seconds",
            "Time a CNI call takes in the agent",
            ["verb", "outcome"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._failures = Counter(
            "enoki_cni_failures", "CNI calls that failed", ["verb", "cause"], registry=self._registry
        )
        self._findings = Counter(
            "enoki_findings", "Disagreements between kernel and EC2", ["finding"], registry=self._registry
        )
        self._repairs = Counter(
            "enoki_repairs", "Things in the kernel that were put right", ["object"], registry=self._registry
        )
        self._began = datetime.now(tz=UTC)
        for step in Step:
            self._steps.labels(step.value)
        self.answered: Tally[str] = Tally()
        self.no_address_count = 0

    def watch(self, node: Node, journal: Journal) -> None:
        """Read `node` when asked, and count what `journal` is told."""
        self._registry.register(_Views(self, node, self._version))
        journal.listen(self._on_event)

    def spent(self, step: Step, seconds: float) -> None:
        """One step of an ADD took so long."""
        self._steps.labels(step.value).observe(seconds)

    def called(self, verb: str, seconds: float, *, ok: bool) -> None:
        """A CNI call was answered."""
        self._calls.labels(verb, "ok" if ok else "failed").observe(seconds)
        self.answered[verb] += 1

    def render(self) -> bytes:
        """Text format 0.0.4."""
        return generate_latest(self._registry)

    def start_seconds(self, node: Node) -> float | None:
        """From the agent's first moment to ready; None before that."""
        moments = [stage.since for stage in node.startup.status() if stage.since is not None]
        if not node.startup.ready.is_set() or not moments:
            return None
        return max(0.0, (max(moments) - self._began).total_seconds())

    def _on_event(self, event: Event) -> None:
        match event.kind:
            case Kind.CNI_FAILED:
                cause = str(event.fields["cause"])
                self._failures.labels(str(event.fields["verb"]), cause).inc()
                self.no_address_count += cause in _NO_ADDRESS
            case Kind.FINDING:
                self._findings.labels(str(event.fields["finding"])).inc()
            case Kind.REPAIR:
                self._repairs.labels(repaired(str(event.fields["object"]))).inc()
            case _:
                pass


class _Views(Collector):
    """Gauges, and counters somebody else keeps."""

    def __init__(self, metrics: Metrics, node: Node, version: str) -> None:
        self._metrics = metrics
        self._node = node
        self._version = version

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not read the node."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Everything there is at this moment."""
        build = GaugeMetricFamily("enoki_build_info", "Always 1", labels=["version"])
        build.add_metric([self._version], 1)
        yield build
        theirs = GaugeMetricFamily("awscni_build_info", "Always 1", labels=["version", "goversion"])
        theirs.add_metric([self._version, f"python{platform.python_version()}"], 1)
        yield theirs
        backend = GaugeMetricFamily("awscni_connmark_backend", "1 for the one in use", labels=["backend"])
        for name in ("nftables", "iptables"):
            backend.add_metric([name], float(name == "nftables"))
        yield backend
        yield from self._start()
        ready = self._node.startup.ready.is_set()
        yield GaugeMetricFamily("enoki_ready", "1 when ADD can be served", value=float(ready))
        loops = GaugeMetricFamily("enoki_loop_failures", "Failed turns of a loop in a row", labels=["loop"])
        for loop in self._node.loops():
            loops.add_metric([loop.name], loop.failure_count)
        yield loops
        kubernetes = GaugeMetricFamily("enoki_kubernetes_failing", "1 while Kubernetes fails to say", labels=["cause"])
        if (failure := self._node.news.cluster_failure()) is not None:
            kubernetes.add_metric([failure.cause], 1)
        yield kubernetes
        yield from self._calls()
        parts = self._node.parts
        if parts is not None:
            view = parts.pool.view()
            yield from _pool(view)
            yield from _aws_pool(view, parts)

    def _start(self) -> Iterator[Metric]:
        seconds = self._metrics.start_seconds(self._node)
        if seconds is None:
            return
        labels = ["success", "with_api_server", "failure_reason"]
        start = HistogramMetricFamily("awscni_ipamd_startup_duration_seconds", "From start to ready", labels=labels)
        with_server = str(self._node.cluster.view().configured).lower()
        start.add_metric(["true", with_server, ""], _one_observation(seconds), seconds)
        yield start
        name = "awscni_ipamd_node_initialization_duration_seconds"
        node = HistogramMetricFamily(name, "From start to ready", labels=["success"])
        node.add_metric(["true"], _one_observation(seconds), seconds)
        yield node

    def _calls(self) -> Iterator[Metric]:
        budget = self._node.budget()
        requests = CounterMetricFamily("enoki_ec2_requests", "Requests to EC2", labels=["action", "reason", "outcome"])
        waited = CounterMetricFamily("enoki_ec2_waited_seconds", "Time requests waited for tokens", labels=["action"])
        rate = GaugeMetricFamily(
            "enoki_ec2_allowed_rate", "Requests a second the node allows itself", labels=["action"]
        )
        errors = Metric("awscni_aws_api_error_count", "Failed requests to EC2", "unknown")
        latency = SummaryMetricFamily(
            "awscni_aws_api_latency_ms", "How long requests to EC2 took", labels=["api", "error", "status"]
        )
        by_name, failed = Tally[str](), Tally[str]()
        for one in budget:
            waited.add_metric([one.action], one.waited_s)
            rate.add_metric([one.action], one.rate_per_s)
            outcomes = Tally[str]()
            for call in one.calls:
                requests.add_metric([one.action, call.reason, call.outcome], call.count)
                outcomes[call.outcome] += 0 if call.outcome == WITHHELD else call.count
            for outcome, count in sorted(outcomes.items()):
                spent_ms = one.spent_s.get(outcome, 0.0) * 1000
                if count:
                    latency.add_metric([one.action, str(outcome != "ok").lower(), outcome], count, spent_ms)
            by_name[one.action] = outcomes.total()
            failed[one.action] = outcomes.total() - outcomes["ok"]
            for outcome, count in sorted((outcomes - Tally({"ok": outcomes["ok"]})).items()):
                errors.add_sample("awscni_aws_api_error_count", {"api": one.action, "error": outcome}, count)
        yield from (requests, waited, rate, errors, latency)
        yield _untyped("awscni_ec2api_req_count", "Requests to EC2", "fn", by_name)
        yield _untyped("awscni_ec2api_error_count", "Failed requests to EC2", "fn", +failed)
        answered = self._metrics.answered
        yield _untyped("awscni_add_ip_req_count", "ADD calls", "", {"": answered["ADD"]})
        yield _untyped("awscni_del_ip_req_count", "DEL calls", "reason", {"PodDeleted": answered["DEL"]})
        missed = {"": self._metrics.no_address_count}
        yield _untyped("awscni_no_available_ip_addresses", "ADD calls that found no address", "", missed)


def repaired(subject: str) -> str:
    """What kind of thing a repair's object is, by its name (`route 10.0.0.11`, `rp_filter of eth1`, a link)."""
    first, space, _ = subject.partition(" ")
    if first in _REPAIRED:
        return first
    return "sysctl" if space or "." in subject else "link"


def _bound(seconds: float) -> str:
    return "+Inf" if seconds == float("inf") else str(seconds)


def _one_observation(seconds: float) -> list[tuple[str, float]]:
    return [(_bound(bound), float(seconds <= bound)) for bound in Histogram.DEFAULT_BUCKETS]


def _pool(view: PoolView) -> Iterator[Metric]:
    addresses = GaugeMetricFamily("enoki_pool_addresses", "Addresses by state", labels=["state"])
    counts = Tally(str(one.state) for one in view.addresses)
    for state in _STATES:
        addresses.add_metric([state], counts[state])
    yield addresses
    yield GaugeMetricFamily("enoki_pool_waiters", "ADD calls that wait for an address", value=view.waiter_count)
    yield GaugeMetricFamily("enoki_pool_short_addresses", "Addresses the last plan missed", value=view.short_count)
    yield GaugeMetricFamily(
        "enoki_pool_described_seconds", "Age of the last describe of ENIs", value=view.described_s_ago
    )
    troubles = GaugeMetricFamily("enoki_pool_troubles", "Things the pool cannot do now", labels=["cause"])
    for cause, count in sorted(Tally(str(one.error.cause) for one in view.troubles).items()):
        troubles.add_metric([cause], count)
    yield troubles
    subnets = GaugeMetricFamily("enoki_subnet_free_addresses", "As EC2 last said", labels=["subnet"])
    for subnet in view.subnets:
        subnets.add_metric([subnet.subnet_id], subnet.free_address_count)
    yield subnets
    enis = GaugeMetricFamily("enoki_enis", "ENIs of this instance", labels=["state"])
    states = Tally(
        "foreign" if not one.serves_pods else "leaving" if one.leaving else "ready" if one.ready else "unready"
        for one in view.enis
    )
    for state in ("ready", "unready", "leaving", "foreign"):
        enis.add_metric([state], states[state])
    yield enis


def _aws_pool(view: PoolView, parts: Parts) -> Iterator[Metric]:
    ours = [one for one in view.enis if one.serves_pods]
    limit = parts.limits.eni_count - (len(view.enis) - len(ours))
    held = sum(one.held_count for one in ours)
    yield GaugeMetricFamily("awscni_eni_max", "ENIs this instance can have for pods", value=limit)
    yield GaugeMetricFamily("awscni_ip_max", "Addresses these could have", value=limit * parts.limits.slots)
    yield GaugeMetricFamily("awscni_eni_allocated", "ENIs that serve pods", value=len(ours))
    yield GaugeMetricFamily("awscni_total_ip_addresses", "Addresses EC2 granted", value=len(view.addresses))
    yield GaugeMetricFamily("awscni_assigned_ip_addresses", "Addresses pods hold", value=held)
    prefixes = sum(block.block.is_prefix for one in ours for block in one.blocks)
    yield GaugeMetricFamily("awscni_total_ipv4_prefixes", "Prefixes EC2 granted", value=prefixes)
    per_eni = GaugeMetricFamily("awscni_assigned_ip_per_eni", "Addresses pods hold, by ENI", labels=["eni"])
    for one in ours:
        per_eni.add_metric([one.eni.eni_id], one.held_count)
    yield per_eni
    per_block = GaugeMetricFamily("awscni_assigned_ip_per_cidr", "Addresses pods hold, by block", labels=["cidr"])
    used = [one.address for one in view.addresses if one.state is AddressState.HELD]
    for block in (block.block.network for one in ours for block in one.blocks):
        per_block.add_metric([str(block)], sum(address in block for address in used))
    yield per_block
    # An ENI or address with a pod is never given back, so that these stand at 0.
    yield _untyped("awscni_force_removed_enis", "ENIs taken away under pods", "", {"": 0})
    yield _untyped("awscni_force_removed_ips", "Addresses taken away under pods", "", {"": 0})
    doing = GaugeMetricFamily("awscni_ipamd_action_inprogress", "1 while the pool does it", labels=["fn"])
    shrinking = [type(one).__name__.startswith("Unassign") or isinstance(one, ReleaseEni) for one in view.in_flight]
    doing.add_metric(["increaseDatastorePool"], float(not all(shrinking)))
    doing.add_metric(["decreaseDatastorePool"], float(any(shrinking)))
    yield doing


def _untyped(name: str, words: str, label: str, values: dict[str, int] | Tally[str]) -> Metric:
    metric = Metric(name, words, "unknown")
    for value, count in sorted(values.items()):
        metric.add_sample(name, {label: value} if label else {}, count)
    return metric
