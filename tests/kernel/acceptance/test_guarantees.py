"""What holds beside the paths: nobody lies about a source, errors find their way back, what is not ours stays as it
is."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from tests.kernel.acceptance.probe import ANSWER_S, SILENCE_S, Path, ask
from tests.kernel.acceptance.test_paths import Variant, built_beside_kube_proxy
from tests.kernel.acceptance.world import World
from tests.kernel.datapath_node import why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")


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


def test_what_is_not_ours_survives(world: World) -> None:
    assert world.foreign() == world.foreign_before
    assert "192.168.77.9" in world.foreign_before
    assert "table inet foreign" in world.foreign_before
