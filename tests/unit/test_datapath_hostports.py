"""Host ports as elements, and connections as matches: pure."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest

from agent.datapath import conntrack, layout
from agent.datapath.elements import COMMENT_BYTES, Element, add_elements, parse_elements
from agent.datapath.hostports import HostPort, host_port_of, install_text, owner_of, wanted_elements
from agent.datapath.netlink import HEADER, Message, attribute
from agent.ipam.model import AttachmentKey, Holder
from agent.ports.datapath import PortMapping, Transport

POD, OTHER, NODE = IPv4Address("10.0.0.11"), IPv4Address("10.0.0.12"), IPv4Address("10.0.0.10")


def _port(
    number: int = 80,
    transport: Transport = Transport.TCP,
    bound: IPv4Address | None = None,
    pod: IPv4Address = POD,
    owner: str = "default/web c1 eth0",
) -> HostPort:
    mapping = PortMapping(host_port=number, container_port=8080, transport=transport, host_address=bound)
    return HostPort(mapping=mapping, pod_address=pod, owner=owner)


@pytest.mark.parametrize("transport", Transport)
@pytest.mark.parametrize("bound", [None, NODE])
def test_an_element_reads_back_as_what_was_written(transport: Transport, bound: IPv4Address | None) -> None:
    port = _port(65535, transport, bound)
    written = add_elements(port.map_name, [port.element()])
    (element,) = parse_elements(Message(kind=0, payload=memoryview(written)[HEADER.size :]))
    assert host_port_of(element) == port
    assert len(element.key) == (12 if bound else 8)


@pytest.mark.parametrize(
    "element",
    [
        Element(key=b"\x06\0\0\0\0\x50\0\0", value=b"\x0a\0\0\x0b"),
        Element(key=b"\x01\0\0\0\0\x50\0\0", value=bytes(8)),
        Element(key=b"\x06\0\0\0", value=bytes(8)),
        Element(key=bytes(6) + b"\x06\0\0\0\0\x50\0\0", value=bytes(8)),
    ],
)
def test_what_is_never_written_is_not_read(element: Element) -> None:
    assert host_port_of(element) is None


def test_a_port_of_every_address_is_also_a_port_of_each() -> None:
    anywhere, here, there = _port(), _port(bound=NODE, pod=OTHER), _port(bound=IPv4Address("127.0.0.1"), pod=OTHER)
    assert anywhere.conflicts_with(here)
    assert there.conflicts_with(anywhere)
    assert not here.conflicts_with(there)
    assert not anywhere.conflicts_with(_port(81, pod=OTHER))
    assert not anywhere.conflicts_with(_port(transport=Transport.UDP, pod=OTHER))


def test_a_pod_with_host_ports_may_reach_itself() -> None:
    wanted = wanted_elements([_port(), _port(81), _port(82, bound=NODE)])
    assert {name: len(elements) for name, elements in wanted.items()} == {
        layout.HOST_PORT_MAP: 2,
        layout.HOST_PORT_IP_MAP: 1,
        layout.HAIRPIN_SET: 1,
    }
    text = install_text([_port(), _port(82, bound=NODE)])
    assert 'hostport4 { tcp . 80 comment "default/web c1 eth0" : 10.0.0.11 . 8080 }' in text
    assert 'hostport4_ip { 10.0.0.10 . tcp . 82 comment "default/web c1 eth0" : 10.0.0.11 . 8080 }' in text
    assert text.count("hairpin4") == 1


def test_an_owner_is_named_within_what_nft_takes() -> None:
    key = AttachmentKey(container_id="c" * 64, ifname="eth0")
    long = owner_of(Holder(key=key, namespace="n" * 63, pod="p" * 253))
    assert len(long) == COMMENT_BYTES
    assert owner_of(Holder(key=key, namespace="", pod="")) == f"{'c' * 64} eth0"


def _tuple(source: IPv4Address, destination: IPv4Address, protocol: int, port: int) -> memoryview:
    address = attribute(1, source.packed) + attribute(2, destination.packed)
    transport = attribute(1, bytes((protocol,))) + attribute(2, b"\0\x01") + attribute(3, struct.pack(">H", port))
    return memoryview(attribute(1, address) + attribute(2, transport))


def test_a_match_looks_at_what_it_names_and_at_nothing_else() -> None:
    flow = _tuple(POD, NODE, 17, 53)
    matching = [
        conntrack.Match(source=POD),
        conntrack.Match(destination=NODE),
        conntrack.Match(destination=NODE, udp_destination_port=53),
    ]
    others = [
        conntrack.Match(source=NODE),
        conntrack.Match(source=POD, destination=POD),
        conntrack.Match(destination=NODE, udp_destination_port=54),
    ]
    assert [match.matches(flow) for match in (*matching, *others)] == [True] * 3 + [False] * 3
    assert not conntrack.Match(udp_destination_port=53).matches(_tuple(POD, NODE, 6, 53))


def test_a_deletion_always_has_a_tuple_and_a_filter() -> None:
    """A kernel that does not know the filter must refuse an incomplete tuple, and not delete everything."""
    for match in (*conntrack.of_pod(POD), *conntrack.to_udp_port(53, [NODE])):
        encoded = conntrack.delete_matching(match)[HEADER.size + 4 :]
        names = []
        while encoded:
            size, name = struct.unpack_from("=HH", encoded)
            names.append(name & 0x3FFF)
            encoded = encoded[size + (-size % 4) :]
        assert names == [2 if match.reply else 1, 25]
