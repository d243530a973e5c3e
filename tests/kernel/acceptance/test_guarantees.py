"""What holds beside the paths: nobody lies about a source, errors find their way back, restarts misroute nothing, and
what is not ours stays as it is."""

from __future__ import annotations

import asyncio
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final

import pytest

from agent.datapath.kernel import KernelDatapath
from agent.datapath.policy import DatapathPolicy, SnatPort
from sim.fabric import INTERNET_ADDRESS
from tests.kernel.acceptance.probe import ANSWER_S, SILENCE_S, Path, ask
from tests.kernel.acceptance.test_paths import Variant, built_beside_kube_proxy
from tests.kernel.acceptance.world import NODE, OTHER_NODE, VPC_CIDR, World, eni_of, instance_of


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with built_beside_kube_proxy(Variant(id="guarantees")) as made:
        yield made


@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
@pytest.mark.parametrize("target", ["A2", "N", "P", "X"])
@pytest.mark.parametrize(("liar", "victim"), [("A1", "B1"), ("B1", "B2"), ("B1", "A1"), ("B1", "N2"), ("A1", "C")])
def test_x1_a_spoofing_pod_gets_nothing_out(world: World, liar: str, victim: str, target: str, protocol: str) -> None:
    pod, stolen = world.places[liar], world.places[victim].address
    server = world.places[target]

    def path(source: IPv4Address) -> Path:
        return Path(
            client=pod.netns, source=source, target=server.address, port=8080, server=server.netns, server_port=8080
        )

    assert ask(protocol, path(pod.address), ANSWER_S) is not None
    pod.netns.ip(f"addr add {stolen}/32 dev eth0")
    try:
        world.forget_what_left()
        assert ask(protocol, path(stolen), SILENCE_S) is None
        assert world.left_by() == {}
    finally:
        pod.netns.ip(f"addr del {stolen}/32 dev eth0")


def test_x2_path_mtu_errors_reach_the_pod_by_its_own_address(world: World) -> None:
    ip_mtu_discover, want, ip_mtu = 10, 2, 14  # include/uapi/linux/in.h
    pod, internet = world.places["B1"], world.places["X"]
    with pod.netns.entered():
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with client:
        client.setsockopt(socket.IPPROTO_IP, ip_mtu_discover, want)
        client.connect((str(internet.address), 9))
        assert client.getsockopt(socket.IPPROTO_IP, ip_mtu) == 9001
        client.send(bytes(3000))
        poll = select.poll()
        poll.register(client, select.POLLERR)
        assert poll.poll(ANSWER_S * 1000), "no ICMP error came back to the pod"
        assert client.getsockopt(socket.IPPROTO_IP, ip_mtu) == 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """client to target:port; `server` answers, and sees `peer`."""

    client: str
    target: IPv4Address
    port: int
    server: str
    peer: str


FLOWS: Final = (
    Flow(client="B1", target=OTHER_NODE, port=8080, server="P", peer="B1"),
    Flow(client="B1", target=INTERNET_ADDRESS, port=8080, server="X", peer="N"),
    Flow(client="X", target=NODE, port=30080, server="B1", peer="X"),
)


class NewFlows:
    """One thread per flow that opens a new one for every packet, until the block ends."""

    def __init__(self, world: World) -> None:
        self.counts = [0] * len(FLOWS)
        self.failures: list[BaseException] = []
        self._world = world
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=each) for each in enumerate(FLOWS)]

    def __enter__(self) -> NewFlows:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _run(self, index: int, flow: Flow) -> None:
        try:
            with self._world.places[flow.server].netns.entered():
                server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with server, self._world.places[flow.client].netns.entered():
                server.settimeout(ANSWER_S)
                server.bind(("", 8080))
                while not self._done.is_set():
                    self._exchange(flow, server)
                    self.counts[index] += 1
        except BaseException as exc:  # noqa: BLE001 - the test reports it
            self.failures.append(exc)

    def _exchange(self, flow: Flow, server: socket.socket) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(ANSWER_S)
            client.connect((str(flow.target), flow.port))
            client.send(b"new flow")
            _, peer = server.recvfrom(100)
            assert peer[0] == str(self._world.places[flow.peer].address), f"{flow}: the server saw {peer[0]}"
            server.sendto(b"answer", peer)
            client.recv(100)


def test_x3_restarts_new_settings_and_new_vpc_cidrs_misroute_nothing(world: World) -> None:
    """P5, P9 and N1 while an agent starts anew, with another setting each time, and the VPC gets and loses a CIDR."""
    dropped = world.dropped_count()
    with NewFlows(world) as flows, world.node.entered():
        while not flows.failures and min(flows.counts) <= 20:
            for port in (SnatPort.HASHED, SnatPort.HASHED, SnatPort.FULLY_RANDOM) * 3:
                asyncio.run(_restart(world, DatapathPolicy(names_directory=None, randomize_snat=port)))
    assert not flows.failures, f"after {flows.counts} flows: {flows.failures}"
    assert world.dropped_count() == dropped


async def _restart(world: World, policy: DatapathPolicy) -> None:
    datapath = KernelDatapath(policy)
    try:
        await datapath.prepare_node(instance_of(world.enis[0]))
        for device, eni in enumerate(world.enis):
            await datapath.ensure_eni(eni_of(eni, device))
        for cidrs in ([VPC_CIDR, IPv4Network("100.64.0.0/10")], [VPC_CIDR]) * 5:
            await datapath.set_vpc_cidrs(cidrs)
    finally:
        datapath.close()


def test_what_is_not_ours_survives(world: World) -> None:
    assert world.foreign() == world.foreign_before
    assert "192.168.77.9" in world.foreign_before
    assert "table inet foreign" in world.foreign_before
