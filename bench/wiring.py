"""Time the datapath alone: wire, unwire and observe, against real namespaces, without shim, API or pool.

    .venv/bin/python -m bench.wiring [pods]

The peer in the same run is `ip` in one batch per namespace, doing the same work: what a plugin without netlink code
of its own would pay. Prints medians and 99th percentiles, and the ratio to the peer. Needs root.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Network

from agent.datapath import namespaces
from agent.datapath.kernel import KernelDatapath
from agent.datapath.policy import DatapathPolicy
from agent.ipam.model import AttachmentKey, Holder, Instance, Mac
from agent.ports.datapath import PodWiring

_POD_COUNT = 100
_FIRST_ADDRESS = IPv4Address("10.0.1.0")


def _run(command: str, commands: str | None = None) -> None:
    subprocess.run(command.split(), input=commands, text=True, check=True, timeout=30, stdout=subprocess.DEVNULL)


@contextmanager
def _netns(name: str) -> Iterator[str]:
    _run(f"ip netns add {name}")
    try:
        yield f"/run/netns/{name}"
    finally:
        _run(f"ip netns del {name}")


def _wiring(path: str, index: int) -> PodWiring:
    key = AttachmentKey(container_id=f"bench{index}", ifname="eth0")
    return PodWiring(
        holder=Holder(key=key, namespace="bench", pod=f"pod-{index}"),
        netns=path,
        addresses=(_FIRST_ADDRESS + index,),
        table_id=254,
        mtu=9001,
    )


async def _timed(work: Awaitable[object], into: list[float]) -> None:
    started_s = time.perf_counter()
    await work
    into.append((time.perf_counter() - started_s) * 1000)


def _by_ip(path: str, index: int) -> None:
    name, pod, address = f"peer{index}", path.rpartition("/")[2], _FIRST_ADDRESS + 2000 + index
    _run(f"ip link add {name} mtu 9001 group 20000 type veth peer name eth1 mtu 9001 netns {pod}")
    _run(
        f"ip -n {pod} -batch -",
        "link set eth1 up\nroute add 169.254.1.2 dev eth1 scope link\n"
        "route add default via 169.254.1.2 dev eth1 metric 9\n"
        f"addr add {address}/32 dev eth1\nneigh add 169.254.1.2 lladdr 02:00:00:00:00:01 dev eth1 nud permanent\n",
    )
    _run(
        "ip -batch -",
        f"link set {name} up alias peer\nneigh add {address} lladdr 02:00:00:00:00:02 dev {name} nud permanent\n"
        f"route add {address}/32 dev {name} table 20513\n",
    )


async def _measure(paths: list[str]) -> dict[str, list[float]]:
    datapath = KernelDatapath(DatapathPolicy(names_directory=None))
    # As in the agent: what is wired comes back as notifications, and is compared with what should be.
    watching = asyncio.create_task(datapath.run())
    times: dict[str, list[float]] = {"wire": [], "the same with ip": [], "wire again": [], "observe": [], "unwire": []}
    try:
        await datapath.prepare_node(
            Instance(
                instance_id="i-0",
                account_id="123456789012",
                instance_type="m5.large",
                region="r",
                zone="z",
                primary_mac=Mac("02:aa:00:00:00:10"),
                primary_address=IPv4Address("10.0.0.10"),
                vpc_id="vpc-0",
                vpc_cidrs=(IPv4Network("10.0.0.0/16"),),
            )
        )
        wirings = [_wiring(path, index) for index, path in enumerate(paths)]
        for index, wiring in enumerate(wirings):
            await _timed(datapath.wire(wiring), times["wire"])
            await _timed(asyncio.to_thread(_by_ip, wiring.netns, index), times["the same with ip"])
        for wiring in wirings:
            await _timed(datapath.wire(wiring), times["wire again"])
            await _timed(datapath.observe(), times["observe"])
        for wiring in wirings:
            await _timed(datapath.unwire(wiring.holder.key, wiring.addresses, 30), times["unwire"])
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        datapath.close()
    return times


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else _POD_COUNT
    with ExitStack() as stack:
        node = stack.enter_context(_netns(f"ekb{os.getpid()}-node"))
        paths = [stack.enter_context(_netns(f"ekb{os.getpid()}-{index}")) for index in range(count)]
        node_fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, node_fd)
        stack.enter_context(namespaces.inside(node_fd))
        _run("ip link add eth0 address 02:aa:00:00:00:10 type veth peer name far")
        times = asyncio.run(_measure(paths))
    peer_ms = statistics.median(times["the same with ip"])
    for name, values in times.items():
        median_ms = statistics.median(values)
        print(
            f"{name:18} median {median_ms:7.2f} ms   p99 {statistics.quantiles(values, n=100)[98]:7.2f} ms   "
            f"{median_ms / peer_ms:5.2f}x"
        )


if __name__ == "__main__":
    main()
