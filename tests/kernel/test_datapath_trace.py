"""The path tracer against the real kernel: what it says is what packets do (test_datapath_packets.py sends them)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Address

import pytest

from agent.datapath.kernel import KernelDatapath
from agent.datapath.trace import Packet, TableRead, mark_of
from agent.errors import Cause, InvalidRequest
from agent.ipam.model import Address
from agent.ports.datapath import PathSeen
from tests.kernel.datapath_node import (
    INTERNET,
    NODE,
    OTHER_NODE,
    PRIMARY_MAC,
    PRIMARY_PODS,
    SECONDARY_ENI,
    SECONDARY_MAC,
    SECONDARY_PODS,
    VPC,
    Node,
    datapath_running,
)


@pytest.fixture
async def datapath(node: Node) -> AsyncIterator[KernelDatapath]:
    async with datapath_running() as running:
        await running.ensure_eni(SECONDARY_ENI)
        yield running


async def _trace(
    node: Node, datapath: KernelDatapath, destination: Address, *, source: IPv4Address = SECONDARY_PODS[0]
) -> PathSeen:
    table_id = 2 if source in SECONDARY_PODS else 254
    wired = await datapath.wire(node.wiring(node.container(), source, table_id=table_id))
    return await datapath.trace(wired.host_ifname, source, destination)


async def test_inside_the_vpc_by_the_pods_own_eni(node: Node, datapath: KernelDatapath) -> None:
    seen = await _trace(node, datapath, OTHER_NODE)
    assert (seen.mark, seen.inside_sets, seen.snat_address, seen.refusal) == (0x2, ("vpc4",), None, "")
    assert (seen.rule_pref, seen.rule) == (1536, "1536: from all fwmark 0x2/0x3f lookup 2")
    assert (seen.table_id, seen.out_ifname, seen.out_mac) == (2, "eth1", SECONDARY_MAC)
    assert seen.gateway == IPv4Address("10.0.0.1")


async def test_out_of_the_vpc_by_the_primary_eni_as_the_node(node: Node, datapath: KernelDatapath) -> None:
    seen = await _trace(node, datapath, INTERNET)
    assert (seen.mark, seen.inside_sets, seen.snat_address) == (0x82, (), NODE)
    assert len(seen.mark_reasons) == 2
    assert (seen.rule_pref, seen.table_id, seen.out_ifname, seen.out_mac) == (1024, 254, "eth0", PRIMARY_MAC)


async def test_to_a_pod_of_the_same_node(node: Node, datapath: KernelDatapath) -> None:
    other = await datapath.wire(node.wiring(node.container(), PRIMARY_PODS[0]))
    seen = await _trace(node, datapath, PRIMARY_PODS[0])
    assert (seen.rule_pref, seen.table_id, seen.out_ifname) == (512, 20512, other.host_ifname)
    assert seen.snat_address is None


async def test_to_the_node_itself(node: Node, datapath: KernelDatapath) -> None:
    seen = await _trace(node, datapath, NODE, source=PRIMARY_PODS[0])
    assert (seen.mark, seen.route_type, seen.table_id, seen.rule_pref) == (0, "local", 255, 0)


async def test_a_deleted_default_route_shows(node: Node, datapath: KernelDatapath) -> None:
    node.netns.ip("route del default")
    seen = await _trace(node, datapath, INTERNET, source=PRIMARY_PODS[0])
    assert (seen.refusal, seen.mark) == ("ENETUNREACH", 0x80)


def test_a_table_that_is_gone_shows() -> None:
    """Pure: in a running node it is back within a second."""
    packet = Packet(ifname="eni0", group=20002, source=SECONDARY_PODS[0], destination=INTERNET)
    assert mark_of(TableRead(), packet, is_local=False) == (0, (), ())
    table = TableRead(sets={"vpc4": (VPC,)}, group_marks={20002: 2}, classifies=True)
    mark, reasons, inside = mark_of(table, packet, is_local=False)
    assert (mark, len(reasons), inside) == (0x82, 2, ())


async def test_an_unknown_link(node: Node, datapath: KernelDatapath) -> None:
    with pytest.raises(InvalidRequest) as caught:
        await datapath.trace("enidoesnotexist", SECONDARY_PODS[0], INTERNET)
    assert caught.value.cause is Cause.ATTACHMENT_MISSING
