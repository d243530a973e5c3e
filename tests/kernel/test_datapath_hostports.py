"""Host ports with real packets: every way in, who may have them, what a restart finds, the reference plugin beside."""

from __future__ import annotations

import dataclasses
import json
import socket
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest

from agent.datapath.kernel import KernelDatapath
from agent.datapath.policy import DatapathPolicy
from agent.errors import Cause, InvalidRequest, TryAgain
from agent.ports.datapath import PodWiring, PortMapping, Transport
from tests.kernel.datapath_node import (
    INTERNET,
    NODE,
    PRIMARY_ENI,
    PRIMARY_PODS,
    SECONDARY_ENI,
    SECONDARY_PODS,
    Netns,
    Node,
    datapath_running,
)

PORTMAP = Path("/usr/lib/cni/portmap")
SECONDARY_ADDRESS = SECONDARY_ENI.primary_address
LOOPBACK = IPv4Address("127.0.0.1")
_TIMEOUT_S = 3.0
_SILENCE_S = 0.3


@pytest.fixture
async def datapath(node: Node) -> AsyncIterator[KernelDatapath]:
    async with datapath_running() as running:
        await running.ensure_eni(PRIMARY_ENI)
        await running.ensure_eni(SECONDARY_ENI)
        yield running


def _mapping(
    host_port: int, transport: Transport = Transport.UDP, host_address: IPv4Address | None = None
) -> PortMapping:
    return PortMapping(host_port=host_port, container_port=7000, transport=transport, host_address=host_address)


def _with_ports(wiring: PodWiring, *mappings: PortMapping) -> PodWiring:
    return dataclasses.replace(wiring, port_mappings=mappings)


def _socket(netns: Netns, kind: int, bound: tuple[str, int] | None = None, protocol: int = 0) -> socket.socket:
    with netns.entered():
        made = socket.socket(socket.AF_INET, kind, protocol)
    made.settimeout(_TIMEOUT_S)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if bound is not None:
        made.bind(bound)
    return made


def _asks(client_netns: Netns, server: socket.socket, to: IPv4Address, port: int, source: str = "") -> IPv4Address:
    """Send a datagram to a host port and hear the answer; the source the pod saw."""
    with _socket(client_netns, socket.SOCK_DGRAM, (source, 0) if source else None) as client:
        client.connect((str(to), port))
        client.send(b"question")
        question, peer = server.recvfrom(100)
        assert question == b"question"
        server.sendto(b"answer", peer)
        assert client.recv(100) == b"answer"
        return IPv4Address(peer[0])


def _is_silent(client_netns: Netns, server: socket.socket, to: IPv4Address, port: int) -> bool:
    server.settimeout(_SILENCE_S)
    try:
        with _socket(client_netns, socket.SOCK_DGRAM) as client:
            client.sendto(b"question", (str(to), port))
            with suppress(TimeoutError):
                server.recvfrom(100)
                return False
        return True
    finally:
        server.settimeout(_TIMEOUT_S)


async def test_every_way_to_a_host_port_of_a_pod_on_a_secondary_eni(node: Node, datapath: KernelDatapath) -> None:
    pod, neighbour = node.container(), node.container()
    await datapath.wire(node.wiring(neighbour, PRIMARY_PODS[0]))
    plain = node.wiring(pod, SECONDARY_PODS[0], table_id=2)
    await datapath.wire(plain)
    with _socket(pod, socket.SOCK_DGRAM, ("0.0.0.0", 7000)) as server:
        # Negative control: the pod is there, the mapping is not.
        assert _is_silent(node.fabric, server, NODE, 8053)

        await datapath.unwire(plain.holder.key, plain.addresses, 0)
        wired = await datapath.wire(_with_ports(plain, _mapping(8053)))
    with _socket(pod, socket.SOCK_DGRAM, ("0.0.0.0", 7000)) as server:
        assert _asks(node.fabric, server, NODE, 8053, source=str(INTERNET)) == INTERNET
        assert _asks(node.netns, server, NODE, 8053) == NODE
        assert _asks(node.netns, server, LOOPBACK, 8053) == NODE
        assert _asks(node.netns, server, SECONDARY_ADDRESS, 8053) == SECONDARY_ADDRESS
        assert _asks(neighbour, server, NODE, 8053) == PRIMARY_PODS[0]
        assert _asks(pod, server, NODE, 8053) == NODE
        # Not an address of the node: nothing is translated on the way to somebody else.
        assert _is_silent(neighbour, server, IPv4Address("10.0.9.9"), 8053)
    assert Path(f"/proc/sys/net/ipv4/conf/{wired.host_ifname}/route_localnet").read_text() == "1\n"


async def test_a_host_port_bound_to_one_address_is_no_port_of_another(node: Node, datapath: KernelDatapath) -> None:
    pod = node.container()
    await datapath.wire(_with_ports(node.wiring(pod, PRIMARY_PODS[0]), _mapping(8053, host_address=NODE)))
    with _socket(pod, socket.SOCK_DGRAM, ("0.0.0.0", 7000)) as server:
        assert _asks(node.fabric, server, NODE, 8053, source=str(INTERNET)) == INTERNET
        assert _is_silent(node.fabric, server, SECONDARY_ADDRESS, 8053)
        assert _is_silent(node.netns, server, LOOPBACK, 8053)


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.SCTP])
async def test_streams_reach_a_host_port(node: Node, datapath: KernelDatapath, transport: Transport) -> None:
    protocol = {Transport.TCP: socket.IPPROTO_TCP, Transport.SCTP: socket.IPPROTO_SCTP}[transport]
    pod = node.container()
    try:
        _socket(pod, socket.SOCK_STREAM, protocol=protocol).close()
    except OSError:
        pytest.skip(f"this kernel has no {transport} sockets")
    await datapath.wire(_with_ports(node.wiring(pod, SECONDARY_PODS[0], table_id=2), _mapping(8080, transport)))
    with _socket(pod, socket.SOCK_STREAM, ("0.0.0.0", 7000), protocol) as server:
        server.listen()
        for client_netns, to, seen_as in (
            (node.fabric, NODE, None),
            (node.netns, LOOPBACK, NODE),
            (pod, NODE, NODE),
        ):
            with _socket(client_netns, socket.SOCK_STREAM, protocol=protocol) as client:
                client.connect((str(to), 8080))
                accepted, peer = server.accept()
                with accepted:
                    accepted.settimeout(_TIMEOUT_S)
                    client.sendall(b"hello")
                    assert accepted.recv(5) == b"hello"
                if seen_as is not None:
                    assert ip_address(peer[0]) == seen_as


def _sctp_init(source_port: int, destination_port: int) -> bytes:
    """An INIT chunk (RFC 9260, sections 3.1 and 3.3.2): conntrack makes an entry of nothing less."""
    chunk = struct.pack(">BBHIIHHI", 1, 0, 20, 0x1234, 65536, 1, 1, 0x5678)
    bare = struct.pack(">HHII", source_port, destination_port, 0, 0) + chunk
    return bare[:8] + struct.pack("<I", _crc32c(bare)) + bare[12:]


def _crc32c(data: bytes) -> int:
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
    return remainder ^ 0xFFFFFFFF


async def test_an_sctp_packet_reaches_a_host_port(node: Node, datapath: KernelDatapath) -> None:
    """By raw sockets, so that it runs where the kernel has no SCTP of its own; a router needs none."""
    pod = node.container()
    await datapath.wire(_with_ports(node.wiring(pod, PRIMARY_PODS[0]), _mapping(8132, Transport.SCTP)))
    with (
        _socket(pod, socket.SOCK_RAW, protocol=socket.IPPROTO_SCTP) as server,
        _socket(node.fabric, socket.SOCK_RAW, (str(INTERNET), 0), socket.IPPROTO_SCTP) as client,
    ):
        client.sendto(_sctp_init(4000, 8133), (str(NODE), 0))
        client.sendto(_sctp_init(4000, 8132), (str(NODE), 0))
        packet, (source, _) = server.recvfrom(200)
        header_bytes = (packet[0] & 0x0F) * 4
        assert struct.unpack_from(">HH", packet, header_bytes) == (4000, 7000)
        assert IPv4Address(source) == INTERNET


async def test_sctp_mappings_are_written_as_the_firewall_lists_them(node: Node, datapath: KernelDatapath) -> None:
    await datapath.wire(
        _with_ports(
            node.wiring(node.container(), PRIMARY_PODS[0], pod="edge"),
            _mapping(132, Transport.SCTP),
            _mapping(8053, Transport.UDP, NODE),
            _mapping(8080, Transport.TCP, LOOPBACK),
        )
    )
    listed = node.netns.run("nft", "list", "table", "inet", "enoki")
    assert 'sctp . 132 comment "default/edge' in listed
    assert f": {PRIMARY_PODS[0]} . 7000" in listed
    assert f"{NODE} . udp . 8053" in listed
    assert "127.0.0.1 . tcp . 8080" in listed
    assert f"{PRIMARY_PODS[0]} . {PRIMARY_PODS[0]}" in listed


async def test_a_taken_host_port_is_refused_with_its_owner_and_leaves_nothing(
    node: Node, datapath: KernelDatapath
) -> None:
    first = _with_ports(node.wiring(node.container(), PRIMARY_PODS[0], pod="web-0"), _mapping(80, Transport.TCP))
    await datapath.wire(first)
    links = node.host_links()
    bound = _mapping(80, Transport.TCP, NODE)
    for mappings in ([_mapping(80, Transport.TCP)], [_mapping(81, Transport.TCP), bound]):
        second = _with_ports(node.wiring(node.container(), PRIMARY_PODS[1], pod="web-1"), *mappings)
        with pytest.raises(TryAgain, match="belongs to default/web-0") as refused:
            await datapath.wire(second)
        assert refused.value.cause is Cause.HOST_PORT_TAKEN
    assert node.host_links() == links
    assert "tcp . 81 " not in node.netns.run("nft", "list", "map", "inet", "enoki", "hostport4")
    # Another transport is another port; and the same is free once its owner is gone.
    await datapath.wire(_with_ports(node.wiring(node.container(), PRIMARY_PODS[2]), _mapping(80, Transport.UDP)))
    await datapath.unwire(first.holder.key, first.addresses, 0)
    await datapath.wire(_with_ports(node.wiring(node.container(), PRIMARY_PODS[1]), _mapping(80, Transport.TCP)))


async def test_a_failed_add_gives_its_ports_back(node: Node, datapath: KernelDatapath) -> None:
    gone = dataclasses.replace(node.wiring(node.container(), PRIMARY_PODS[0]), netns="/run/netns/not-there")
    with pytest.raises(InvalidRequest):
        await datapath.wire(_with_ports(gone, _mapping(80)))
    await datapath.wire(_with_ports(node.wiring(node.container(), PRIMARY_PODS[1]), _mapping(80)))


async def test_datagrams_that_were_under_way_before_the_mapping_reach_the_pod(
    node: Node, datapath: KernelDatapath
) -> None:
    pod = node.container()
    with (
        _socket(node.fabric, socket.SOCK_DGRAM, (str(INTERNET), 5353)) as client,
        _socket(node.netns, socket.SOCK_DGRAM, (str(NODE), 8053)) as early,
    ):
        client.sendto(b"early", (str(NODE), 8053))
        assert early.recv(100) == b"early"
        await datapath.wire(_with_ports(node.wiring(pod, PRIMARY_PODS[0]), _mapping(8053)))
        with _socket(pod, socket.SOCK_DGRAM, ("0.0.0.0", 7000)) as server:
            client.sendto(b"late", (str(NODE), 8053))
            assert server.recv(100) == b"late"


async def test_a_restart_finds_the_mappings_and_drops_the_orphaned(node: Node) -> None:
    kept, gone = node.container(), node.container()
    async with datapath_running() as first:
        await first.wire(_with_ports(node.wiring(kept, PRIMARY_PODS[0], pod="kept"), _mapping(8001)))
        wired = await first.wire(_with_ports(node.wiring(gone, PRIMARY_PODS[1], pod="gone"), _mapping(8002)))
    # No DEL: the agent is down, the runtime removes the namespace.
    node.netns.ip(f"link del {wired.host_ifname}")
    async with datapath_running() as second:
        await second.observe()
        listed = node.netns.run("nft", "list", "map", "inet", "enoki", "hostport4")
        assert "8001" in listed
        assert "8002" not in listed
        assert f"{PRIMARY_PODS[1]}" not in node.netns.run("nft", "list", "set", "inet", "enoki", "hairpin4")
        with pytest.raises(TryAgain, match="belongs to default/kept"):
            await second.wire(_with_ports(node.wiring(node.container(), PRIMARY_PODS[2]), _mapping(8001)))
        with _socket(kept, socket.SOCK_DGRAM, ("0.0.0.0", 7000)) as server:
            assert _asks(node.fabric, server, NODE, 8001, source=str(INTERNET)) == INTERNET


async def test_an_agent_that_is_not_prepared_yet_takes_no_mapping_away(node: Node) -> None:
    """A DEL may come before anything else; and the loop that heals looks at once."""
    pod = node.container()
    async with datapath_running() as first:
        staying = _with_ports(node.wiring(pod, PRIMARY_PODS[0], pod="kept"), _mapping(8001))
        going = _with_ports(node.wiring(node.container(), PRIMARY_PODS[1], pod="going"), _mapping(8002))
        for wiring in (staying, going):
            await first.wire(wiring)
    second = KernelDatapath(DatapathPolicy(names_directory=None))
    try:
        assert await second._heal_ports() is None
        await second.unwire(going.holder.key, going.addresses, 0)
        listed = node.netns.run("nft", "list", "map", "inet", "enoki", "hostport4")
        assert "8001" in listed
        assert "8002" not in listed
    finally:
        second.close()


async def test_mappings_survive_a_rebuild_of_the_table(node: Node) -> None:
    pod = node.container()
    async with datapath_running() as first:
        await first.wire(
            _with_ports(node.wiring(pod, PRIMARY_PODS[0]), _mapping(8001), _mapping(8002, host_address=NODE))
        )
        before = [node.netns.run("nft", "list", "map", "inet", "enoki", name) for name in ("hostport4", "hostport4_ip")]
    async with datapath_running(DatapathPolicy(names_directory=None, external_snat=True)):
        after = [node.netns.run("nft", "list", "map", "inet", "enoki", name) for name in ("hostport4", "hostport4_ip")]
    assert after == before


async def test_check_knows_the_mappings(node: Node, datapath: KernelDatapath) -> None:
    wiring = _with_ports(node.wiring(node.container(), PRIMARY_PODS[0]), _mapping(8001))
    await datapath.wire(wiring)
    await datapath.check(wiring)
    with pytest.raises(InvalidRequest, match="map hostport4 lacks"):
        await datapath.check(dataclasses.replace(wiring, port_mappings=(_mapping(8002),)))


async def test_a_pod_with_a_host_port_cannot_reach_the_nodes_loopback(node: Node, datapath: KernelDatapath) -> None:
    """What route_localnet would allow: the negative control removes the rule that forbids it."""
    pod = node.container()
    await datapath.wire(_with_ports(node.wiring(pod, PRIMARY_PODS[0]), _mapping(8001)))
    pod.ip("route add 127.0.0.0/8 via 169.254.1.1 table 100")
    pod.ip("rule add pref 0 to 127.0.0.2 lookup 100")
    pod.ip("rule add pref 1 lookup local")
    pod.ip("rule del pref 0 lookup local")
    pod.write("ipv4/conf/eth0/route_localnet", "1")
    with _socket(node.netns, socket.SOCK_DGRAM, ("127.0.0.2", 9999)) as private:
        assert _is_silent_at(pod, private)
        node.netns.run("nft", "flush", "chain", "inet", "enoki", "unexpected")
        assert not _is_silent_at(pod, private)


def _is_silent_at(pod: Netns, private: socket.socket) -> bool:
    private.settimeout(_SILENCE_S)
    with _socket(pod, socket.SOCK_DGRAM, (str(PRIMARY_PODS[0]), 0)) as client:
        client.sendto(b"attack", ("127.0.0.2", 9999))
        try:
            private.recvfrom(100)
        except TimeoutError:
            return True
        return False


@pytest.mark.skipif(not PORTMAP.exists(), reason="needs Debian's containernetworking-plugins")
async def test_the_reference_portmap_plugin_chained_after_us_works(node: Node, datapath: KernelDatapath) -> None:
    pod = node.container()
    wiring = node.wiring(pod, SECONDARY_PODS[0], table_id=2)
    wired = await datapath.wire(wiring)
    config = {
        "cniVersion": "1.0.0",
        "name": "enoki",
        "type": "portmap",
        "snat": True,
        "runtimeConfig": {"portMappings": [{"hostPort": 8053, "containerPort": 7000, "protocol": "udp"}]},
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [
                {"name": wired.host_ifname, "mac": wired.host_mac},
                {"name": "eth0", "mac": wired.pod_mac, "sandbox": pod.path},
            ],
            "ips": [{"interface": 1, "address": f"{SECONDARY_PODS[0]}/32"}],
        },
    }
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": wiring.holder.key.container_id,
        "CNI_NETNS": pod.path,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(PORTMAP.parent),
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    done = subprocess.run(
        ["ip", "netns", "exec", node.netns.name, PORTMAP],
        input=json.dumps(config),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with _socket(pod, socket.SOCK_DGRAM, ("0.0.0.0", 7000)) as server:
        assert _asks(node.fabric, server, NODE, 8053, source=str(INTERNET)) == INTERNET
        assert _asks(node.netns, server, LOOPBACK, 8053) in (NODE, SECONDARY_ADDRESS)
    await datapath.check(wiring)
