"""Replays a trace on a pool and tells what it cost: `replay_ours`, `replay_theirs`.

Both sides get the same trace, the same latencies (`sim.ec2.latency`), the same timings of attachments
(`sim.model.config.REALISTIC_TIMINGS`) and the same kubelet: a failed ADD is repeated 10 to 15 s later until it succeeds
or its pod is gone.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

from agent.ipam.plan import PoolPolicy
from bench.aws_pool_model import AwsCapacity, AwsNode, AwsTargets, Refusal
from bench.pool_aws_delays import simulator_delays
from bench.pool_node import EnokiNode
from bench.pool_traces import Event, EventKind, Trace
from bench.virtual_time import run_virtual
from sim.model.catalog import load_catalog

LOOK_EVERY_S = 60.0
"""How often the size of the pool is noted for its mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A pool at one moment. Counts of calls, reads and failures are since the node's start."""

    calls: Counter[str]
    imds_read_count: int
    failed_add_count: int
    address_count: int
    eni_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What came of a trace.

    serving: when the first ADD could be served. samples: at the trace's marks.
    wait_s: of every pod that got an address, from its first ADD on, by pod. unserved_count: pods that never got one.
    sizes: addresses held, once a minute from serving to the end.
    is_ours: describes ENIs and subnets on a schedule, where the other asks IMDS.
    """

    serving: Sample
    samples: Mapping[str, Sample]
    wait_s: Mapping[str, float]
    unserved_count: int
    sizes: tuple[int, ...]
    is_ours: bool

    @property
    def end(self) -> Sample:
        return self.samples["end"]

    def calls(self, since: str, until: str) -> Counter[str]:
        """EC2 calls between two marks, by action."""
        return self.samples[until].calls - self.samples[since].calls


def capacity(instance_type: str, targets: PoolPolicy) -> AwsCapacity:
    """What the AWS plugin knows of a type: its limits, and the number of pods that follows from them.

    With prefixes that is 110 (EKS user guide, "Amazon EKS recommended maximum Pods": below 30 vCPUs).
    """
    limits = load_catalog()[instance_type]
    enis, slots = limits.interfaces_per_card[0], limits.ipv4_per_interface - 1
    # amazon-eks-ami, eni-max-pods.txt: ENIs x (addresses - 1) + 2, for the two pods of the host's network.
    return AwsCapacity(slots=slots, eni_count=enis, pod_count=110 if targets.prefix_delegation else enis * slots + 2)


# ---- theirs


def replay_theirs(trace: Trace, instance_type: str, targets: PoolPolicy, seed: int) -> Replay:
    """The AWS plugin's rules."""
    wanted = AwsTargets(
        warm_eni=targets.warm_eni_target,
        warm_ip=targets.warm_ip_target,
        minimum_ip=targets.minimum_ip_target,
        warm_prefix=targets.warm_prefix_target,
        prefixes=targets.prefix_delegation,
        custom_networking=targets.custom_networking,
    )
    node = AwsNode(capacity(instance_type, targets), wanted, simulator_delays(), seed=seed)
    samples: dict[str, Sample] = {}
    sizes: list[int] = []

    def note(name: str) -> Callable[[], None]:
        return lambda: samples.update({name: _sample_theirs(node)})

    def look() -> Generator[float, None, None]:
        while True:
            sizes.append(node.address_count)
            yield LOOK_EVERY_S

    def boot() -> Generator[float, None, None]:
        yield from node.boot()
        note("serving")()
        node.spawn(look())

    for mark, mark_s in trace.marks_s.items():
        node.at(mark_s, note(mark))
    for event in trace.events:
        node.at(event.at_s, _change_theirs(node, event))
    node.spawn(boot())
    node.run(trace.end_s)
    return Replay(
        serving=samples.pop("serving"),
        samples=samples,
        wait_s=node.wait_s,
        unserved_count=trace.pod_count - len(node.wait_s),
        sizes=tuple(sizes),
        is_ours=False,
    )


def _change_theirs(node: AwsNode, event: Event) -> Callable[[], None]:
    match event.kind:
        case EventKind.ADD:
            return lambda: node.add_pod(event.pod)
        case EventKind.DEL:
            return lambda: node.delete_pod(event.pod)
        case EventKind.CORDON:
            return lambda: setattr(node, "cordoned", True)
        case EventKind.UNCORDON:
            return lambda: setattr(node, "cordoned", False)
        case EventKind.FILL_SUBNET | EventKind.FRAGMENT_SUBNET:
            # The AWS plugin reacts to InsufficientCidrBlocks as it does to a full subnet.
            return lambda: setattr(node, "refusal", Refusal.SUBNET_FULL)
        case EventKind.THROTTLE_ASSIGN:
            return lambda: setattr(node, "refusal", Refusal.THROTTLED)
        case EventKind.RESTART:
            return lambda: node.spawn(node.restart())


def _sample_theirs(node: AwsNode) -> Sample:
    return Sample(
        calls=Counter(node.calls),
        imds_read_count=node.imds_read_count,
        failed_add_count=node.failed_add_count,
        address_count=node.address_count,
        eni_count=node.eni_count,
    )


# ---- ours


def replay_ours(trace: Trace, instance_type: str, targets: PoolPolicy, seed: int) -> Replay:
    """The agent's own pool, in virtual time."""
    # The adapter draws the pause after a refused delete from the module's generator.
    random.seed(seed)
    return run_virtual(_replay_ours(trace, instance_type, targets, seed))


async def _replay_ours(trace: Trace, instance_type: str, targets: PoolPolicy, seed: int) -> Replay:
    clock = asyncio.get_running_loop().time
    samples: dict[str, Sample] = {}
    sizes: list[int] = []
    marks = [(mark_s, mark) for mark, mark_s in trace.marks_s.items()]
    moments: list[tuple[float, str | Event]] = [*marks, *((event.at_s, event) for event in trace.events)]
    async with asyncio.TaskGroup() as group:
        node = EnokiNode(instance_type, targets, seed=seed, group=group)
        await node.boot()
        looking = group.create_task(_look(node, sizes))
        serving = _sample_ours(node)
        for at_s, what in sorted(moments, key=lambda moment: moment[0]):  # stable: marks come first
            await asyncio.sleep(max(0.0, at_s - clock()))
            if isinstance(what, Event):
                await _change_ours(node, what)
            else:
                samples[what] = _sample_ours(node)
        looking.cancel()
        await node.close()
    return Replay(
        serving=serving,
        samples=samples,
        wait_s=node.wait_s,
        unserved_count=trace.pod_count - len(node.wait_s),
        sizes=tuple(sizes),
        is_ours=True,
    )


async def _look(node: EnokiNode, sizes: list[int]) -> None:
    while True:
        sizes.append(node.address_count)
        await asyncio.sleep(LOOK_EVERY_S)


async def _change_ours(node: EnokiNode, event: Event) -> None:
    match event.kind:
        case EventKind.ADD:
            node.add_pod(event.pod)
        case EventKind.DEL:
            node.delete_pod(event.pod)
        case EventKind.RESTART:
            await node.restart()
        case EventKind.FILL_SUBNET:
            node.fill_subnet()
        case EventKind.THROTTLE_ASSIGN:
            node.client.refusals["AssignPrivateIpAddresses"] = "RequestLimitExceeded"
        case EventKind.FRAGMENT_SUBNET:
            node.fragment_subnet()
        case EventKind.CORDON | EventKind.UNCORDON:
            node.cordon(is_schedulable=event.kind is EventKind.UNCORDON)


def _sample_ours(node: EnokiNode) -> Sample:
    return Sample(
        calls=Counter(node.client.calls),
        imds_read_count=node.metadata.read_count,
        failed_add_count=node.failed_add_count,
        address_count=node.address_count,
        eni_count=node.eni_count,
    )
