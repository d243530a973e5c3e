"""What an ADD costs in the kernel: stage by stage, 110 at once, and beside a kube-proxy with 5,000 Services."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from agent.datapath import pods
from agent.datapath.kernel import KernelDatapath
from agent.datapath.policy import DatapathPolicy
from bench import kube_proxy
from bench.datapath_nodes import (
    FIRST_POD,
    INSTANCE,
    SECONDARY_ENI,
    SECONDARY_TABLE,
    Netns,
    make_netns,
    make_node,
    wiring,
)

SEQUENTIAL_COUNT: Final = 200
AT_ONCE_COUNT: Final = 110
"""The most pods kubelet runs on a node unless told otherwise (kubelet --max-pods)."""
SERVICE_COUNT: Final = 5_000
BESIDE_COUNT: Final = 100

_STAGES: Final = {
    "_create": "create both ends, alias",
    "_configure": "host: sysctls, up, neighbour; pod; routes",
    "_configure_pod": "of it inside the pod: up, routes, neighbour, address",
}


@contextmanager
def _timed_stages(into: dict[str, list[float]]) -> Iterator[None]:
    """Measure the steps of `pods.wire` from outside, for as long as the block lasts."""
    originals: dict[str, Callable[..., Any]] = {name: getattr(pods, name) for name in _STAGES}

    def timed(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            started_s = time.perf_counter()
            try:
                return originals[name](*args)
            finally:
                into[name].append((time.perf_counter() - started_s) * 1000)

        return call

    for name in _STAGES:
        setattr(pods, name, timed(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(pods, name, original)


async def _started() -> KernelDatapath:
    datapath = KernelDatapath(DatapathPolicy(names_directory=None))
    await datapath.prepare_node(INSTANCE)
    await datapath.ensure_eni(SECONDARY_ENI)
    return datapath


async def _ms(datapath: KernelDatapath, netns: Netns, index: int, *, name: str = "bench") -> tuple[float, float]:
    """Milliseconds of one ADD and of its DEL."""
    pod = wiring(netns, index, table_id=SECONDARY_TABLE, name=name)
    started_s = time.perf_counter()
    await datapath.wire(pod)
    wired_s = time.perf_counter()
    await datapath.unwire(pod.holder.key, pod.addresses, 30)
    return (wired_s - started_s) * 1000, (time.perf_counter() - wired_s) * 1000


def _row(name: str, values: Sequence[float]) -> str:
    return f"| {name} | {statistics.median(values):.2f} | {statistics.quantiles(values, n=100)[98]:.2f} |"


def stages() -> str:
    """One ADD after another, and what its parts take."""
    node, netns = make_node(), [make_netns() for _ in range(SEQUENTIAL_COUNT)]
    taken: dict[str, list[float]] = {name: [] for name in _STAGES}
    adds, dels = [], []

    async def run() -> None:
        datapath = await _started()
        try:
            with _timed_stages(taken):
                for index, each in enumerate(netns):
                    add_ms, del_ms = await _ms(datapath, each, index)
                    adds.append(add_ms)
                    dels.append(del_ms)
        finally:
            datapath.close()

    with node.netns.entered():
        asyncio.run(run())
    lines = [f"| one of {SEQUENTIAL_COUNT}, one after another | median, ms | 99th percentile, ms |", "|---|---|---|"]
    lines.append(_row("ADD, as the agent's loop sees it", adds))
    lines += [_row(f"- {text}", taken[name]) for name, text in _STAGES.items()]
    lines.append(_row("DEL", dels))
    return "\n".join(lines)


def at_once() -> str:
    """110 ADDs in one moment, and the same 110 one after another in the same run."""
    node = make_node()
    batches = [[make_netns() for _ in range(AT_ONCE_COUNT)] for _ in range(2)]

    async def run() -> tuple[float, list[float], float]:
        datapath = await _started()
        each_ms: list[float] = []
        started_s = time.perf_counter()

        async def one(index: int) -> None:
            await datapath.wire(wiring(batches[0][index], index, table_id=SECONDARY_TABLE))
            each_ms.append((time.perf_counter() - started_s) * 1000)

        try:
            async with asyncio.TaskGroup() as group:
                for index in range(AT_ONCE_COUNT):
                    group.create_task(one(index))
            together_ms = (time.perf_counter() - started_s) * 1000
            started_s = time.perf_counter()
            for index, netns in enumerate(batches[1]):
                await datapath.wire(wiring(netns, AT_ONCE_COUNT + index, table_id=SECONDARY_TABLE, name="again"))
            return together_ms, each_ms, (time.perf_counter() - started_s) * 1000
        finally:
            datapath.close()

    with node.netns.entered():
        together_ms, each_ms, in_turn_ms = asyncio.run(run())
    return (
        f"{AT_ONCE_COUNT} ADDs at once: the last is done after {together_ms:.0f} ms, half of them after "
        f"{statistics.median(each_ms):.0f} ms; the same number one after another takes {in_turn_ms:.0f} ms "
        f"({together_ms / in_turn_ms:.2f}x)."
    )


def beside_services() -> str:
    """ADD and DEL on an empty node and on nodes with a big kube-proxy, in turn."""
    wanted = [
        kube_proxy.Service(
            name=f"s{n}",
            endpoint=FIRST_POD + 3000 + n,
            cluster_ip=kube_proxy.FIRST_CLUSTER_IP + n,
            protocols=("tcp",),
        )
        for n in range(SERVICE_COUNT)
    ]
    nodes = {"empty": make_node()}
    rule_counts = {"empty": 0}
    for form, script in kube_proxy.FORMS.items():
        nodes[form] = make_node()
        nodes[form].netns.run("sh", "-e", feed=script(wanted))
        listing = ("nft", "list", "ruleset") if form != "iptables-legacy" else ("iptables-legacy-save",)
        rule_counts[form] = len(nodes[form].netns.run(*listing).splitlines())
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in nodes}

    with asyncio.Runner() as runner:
        datapaths = {}
        try:
            for name, node in nodes.items():
                with node.netns.entered():
                    datapaths[name] = runner.run(_started())
            for index in range(BESIDE_COUNT):
                for name, node in nodes.items():
                    netns = make_netns()
                    with node.netns.entered():
                        taken[name].append(runner.run(_ms(datapaths[name], netns, index)))
        finally:
            for datapath in datapaths.values():
                datapath.close()

    base_add, base_del = (statistics.median(values) for values in zip(*taken["empty"], strict=True))
    first = f"kube-proxy with {SERVICE_COUNT:,} Services"
    lines = [
        f"| {first} | lines in its listing | ADD, ms | DEL, ms | ADD / empty | DEL / empty |",
        "|---|---|---|---|---|---|",
    ]
    for name, pairs in taken.items():
        add_ms, del_ms = (statistics.median(values) for values in zip(*pairs, strict=True))
        lines.append(
            f"| {name} | {rule_counts[name]:,} | {add_ms:.2f} | {del_ms:.2f} | "
            f"{add_ms / base_add:.2f}x | {del_ms / base_del:.2f}x |"
        )
    return "\n".join([*lines, "", "To reach: at most 1.2x of the empty node."])
