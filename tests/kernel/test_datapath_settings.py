"""What an operator may choose, proven by packets and by what the kernel lists; and interfaces beyond the first."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

import pytest

from agent.datapath import leaving
from agent.datapath.kernel import KernelDatapath
from agent.datapath.policy import DatapathPolicy
from agent.errors import InvalidRequest
from agent.ipam.model import AttachmentKey
from agent.vpc_cidrs import VpcCidrs
from tests.kernel.datapath_node import (
    INTERNET,
    NODE,
    OTHER_NODE,
    PRIMARY_PODS,
    SECONDARY_ENI,
    SECONDARY_PODS,
    VPC,
    Netns,
    Node,
    datapath_running,
    exchange,
    is_dropped,
)

DEFAULT = DatapathPolicy(names_directory=None)


async def _secondary_pod(node: Node, datapath: KernelDatapath) -> Netns:
    table_id = await datapath.ensure_eni(SECONDARY_ENI)
    container = node.container()
    await datapath.wire(node.wiring(container, SECONDARY_PODS[0], table_id=table_id))
    return container


def _node_port(node: Node) -> None:
    """A NodePort that keeps the client's source, as kube-proxy writes it."""
    node.netns.run(
        "nft",
        "add table ip services; add chain ip services in { type nat hook prerouting priority -100; };"
        f"add rule ip services in ip daddr {NODE} udp dport 7007 dnat to {SECONDARY_PODS[0]}",
    )


def _answers_a_node_port(node: Node, pod: Netns) -> bool:
    with pod.udp(SECONDARY_PODS[0]) as server, node.fabric.udp(INTERNET) as client:
        client.sendto(b"question", (str(NODE), 7007))
        question, peer = server.recvfrom(100)
        assert question == b"question"
        server.sendto(b"answer", peer)
        client.settimeout(0.4)
        try:
            return client.recv(100) == b"answer"
        except TimeoutError:
            return False


@pytest.mark.parametrize(("support", "external"), [(True, False), (False, False), (True, True), (False, True)])
async def test_node_port_support_is_what_brings_the_answer_back(
    node: Node,
    support: bool,  # noqa: FBT001
    external: bool,  # noqa: FBT001
) -> None:
    policy = dataclasses.replace(DEFAULT, node_port_support=support, external_snat=external)
    async with datapath_running(policy) as datapath:
        pod = await _secondary_pod(node, datapath)
        _node_port(node)
        assert _answers_a_node_port(node, pod) == support
        has_rule = "1024:" in node.netns.ip("rule show")
        assert has_rule == (support or not external)
        with pod.udp() as client, node.fabric.udp(INTERNET) as internet:
            assert exchange(client, internet, INTERNET) == (SECONDARY_PODS[0] if external else NODE)


async def test_another_mark_does_the_same_and_a_change_of_it_leaves_no_old_rule(node: Node) -> None:
    async with datapath_running():
        assert "fwmark 0x80/0x80" in node.netns.ip("rule show")
    async with datapath_running(dataclasses.replace(DEFAULT, primary_mark=0x10000)) as datapath:
        pod = await _secondary_pod(node, datapath)
        _node_port(node)
        assert _answers_a_node_port(node, pod)
        with pod.udp() as client, node.fabric.udp(INTERNET) as internet:
            assert exchange(client, internet, INTERNET) == NODE
        rules = node.netns.ip("rule show")
        assert "1024:\tfrom all fwmark 0x10000/0x10000 lookup 254 proto 205" in rules
        assert "0x80/0x80" not in rules


async def test_external_service_cidrs_leave_by_the_primary_eni(node: Node) -> None:
    """Without translation, so that the fabric shows which way it went: it drops a source on the wrong ENI."""
    external = dataclasses.replace(DEFAULT, external_snat=True)
    async with datapath_running(external) as datapath:
        pod = await _secondary_pod(node, datapath)
        with pod.udp() as client, node.fabric.udp(INTERNET) as internet:
            assert exchange(client, internet, INTERNET) == SECONDARY_PODS[0]
    cidrs = (IPv4Network("203.0.113.0/24"), IPv4Network("192.0.2.0/24"))
    async with datapath_running(dataclasses.replace(external, external_service_cidrs=cidrs)) as datapath:
        rules = [line for line in node.netns.ip("rule show").splitlines() if line.startswith("1535:")]
        assert sorted(rules) == [f"1535:\tfrom all to {cidr} lookup 254 proto 205" for cidr in sorted(cidrs)]
        with pod.udp() as client, node.fabric.udp(INTERNET) as internet:
            assert is_dropped(client, internet, INTERNET)
        with pod.udp() as client, node.fabric.udp(OTHER_NODE) as other:
            assert exchange(client, other, OTHER_NODE) == SECONDARY_PODS[0]
    async with datapath_running(dataclasses.replace(external, external_service_cidrs=cidrs[:1])):
        assert "192.0.2.0/24" not in node.netns.ip("rule show")


async def test_the_vpcs_cidrs_are_written_only_when_they_differ(node: Node) -> None:
    told = [(VPC,), (VPC, IPv4Network("203.0.113.0/24")), (IPv4Network("203.0.113.0/24"), VPC), (VPC,)]
    written: list[tuple[IPv4Network, ...]] = []
    async with datapath_running() as datapath:

        async def read() -> tuple[IPv4Network, ...]:
            return told.pop(0)

        async def write(cidrs: Sequence[IPv4Network]) -> None:
            written.append(tuple(cidrs))
            await datapath.set_vpc_cidrs(cidrs)

        now_s = 0.0
        count = datapath.count_leaving
        loop = VpcCidrs(read=read, write=write, count_leaving=count, known=(VPC,), clock=lambda: now_s)
        container = node.container()
        await datapath.wire(node.wiring(container, PRIMARY_PODS[0]))
        seen_as = []
        for _ in range(4):
            now_s += 90.0
            await loop.step()
            with container.udp() as client, node.fabric.udp(INTERNET) as internet:
                seen_as.append(exchange(client, internet, INTERNET))
    assert written == [(VPC, IPv4Network("203.0.113.0/24")), (VPC,)]
    assert seen_as == [NODE, PRIMARY_PODS[0], PRIMARY_PODS[0], NODE]


async def test_the_kernel_counts_what_leaves_the_vpc(node: Node) -> None:
    async with datapath_running() as datapath:
        pod = await _secondary_pod(node, datapath)
        with pod.udp() as client, node.fabric.udp(OTHER_NODE) as other, node.fabric.udp(INTERNET) as internet:
            exchange(client, other, OTHER_NODE)
            assert await datapath.count_leaving() == 0
            exchange(client, internet, INTERNET)
            exchange(client, internet, INTERNET)
            assert await datapath.count_leaving() == 1, "one connection, and its first packet only"
    async with datapath_running(dataclasses.replace(DEFAULT, external_snat=True)) as datapath:
        with pod.udp() as client, node.fabric.udp(OTHER_NODE) as other:
            exchange(client, other, OTHER_NODE)
        assert await datapath.count_leaving() == 0
    node.netns.run("nft", "delete", "table", "inet", "enoki")
    assert await asyncio.to_thread(leaving.count_leaving) == 0


async def test_sets_survive_a_rebuild_of_the_table(node: Node) -> None:
    excluded = dataclasses.replace(DEFAULT, exclude_snat_cidrs=(IPv4Network("198.51.100.0/24"),))
    async with datapath_running(excluded) as first:
        await first.ensure_eni(SECONDARY_ENI)
        await first.unwire(AttachmentKey(container_id="gone", ifname="eth0"), [PRIMARY_PODS[1]], 60)
    async with datapath_running(dataclasses.replace(excluded, external_snat=True)):
        listed = json.loads(node.netns.run("nft", "-j", "list", "table", "inet", "enoki"))
    elements = {each["set"]["name"]: each["set"].get("elem") for each in listed["nftables"] if "set" in each}
    maps = {each["map"]["name"]: each["map"].get("elem") for each in listed["nftables"] if "map" in each}
    assert elements["vpc4"] == [{"prefix": {"addr": "10.0.0.0", "len": 16}}]
    assert elements["exclude4"] == [{"prefix": {"addr": "198.51.100.0", "len": 24}}]
    assert [each["elem"]["val"] for each in elements["cooling"]] == [str(PRIMARY_PODS[1])]
    assert maps["eni_by_group"] == [[20002, {"jump": {"target": "eni_2"}}]]


async def test_interfaces_of_one_container_are_attachments_of_their_own(node: Node) -> None:
    async with datapath_running() as datapath:
        container = node.container()
        first = node.wiring(container, PRIMARY_PODS[0], pod="multi")
        key = dataclasses.replace(first.holder.key, ifname="net1")
        second = dataclasses.replace(
            first,
            holder=dataclasses.replace(first.holder, key=key),
            addresses=(SECONDARY_PODS[0],),
            table_id=await datapath.ensure_eni(SECONDARY_ENI),
        )
        wired, other = await datapath.wire(first), await datapath.wire(second)
        assert wired.host_ifname != other.host_ifname
        for wiring in (first, second):
            await datapath.wire(wiring)
            await datapath.check(wiring)
        seen = await datapath.observe()
        assert {(each.holder.key.ifname, each.addresses) for each in seen.attachments} == {
            ("eth0", (PRIMARY_PODS[0],)),
            ("net1", (SECONDARY_PODS[0],)),
        }
        with node.fabric.udp(OTHER_NODE) as peer:
            # Each address leaves by its own interface: strict filtering at the host's ends and the fabric see to that.
            for address in (PRIMARY_PODS[0], SECONDARY_PODS[0]):
                with container.udp(address) as bound:
                    assert exchange(bound, peer, OTHER_NODE) == address
                    assert exchange(peer, bound, address) == OTHER_NODE
            with container.udp() as unbound:
                assert exchange(unbound, peer, OTHER_NODE) == PRIMARY_PODS[0]
            await datapath.unwire(key, [SECONDARY_PODS[0]], 0)
            with container.udp(PRIMARY_PODS[0]) as bound:
                assert exchange(peer, bound, PRIMARY_PODS[0]) == OTHER_NODE
        await datapath.check(first)
        container.ip("rule add pref 1 from 192.0.2.7 lookup 1")
        await datapath.wire(second)
        container.ip(f"rule del pref 1 from {SECONDARY_PODS[0]}")
        with pytest.raises(InvalidRequest, match=f"no rule from {SECONDARY_PODS[0]} to table 1"):
            await datapath.check(second)


async def test_an_only_interface_may_have_any_name(node: Node) -> None:
    async with datapath_running() as datapath:
        container = node.container()
        wiring = node.wiring(container, PRIMARY_PODS[0])
        key = dataclasses.replace(wiring.holder.key, ifname="net3")
        await datapath.wire(dataclasses.replace(wiring, holder=dataclasses.replace(wiring.holder, key=key)))
        with container.udp() as client, node.fabric.udp(OTHER_NODE) as peer:
            assert exchange(client, peer, OTHER_NODE) == PRIMARY_PODS[0]


async def test_an_eni_as_the_images_network_manager_left_it_is_taken_as_found(node: Node) -> None:
    """systemd-networkd and amazon-ec2-net-utils give the ENI its address, a table and rules of their own."""
    node.netns.ip("link set eth1 up")
    node.netns.ip("addr add 10.0.0.20/24 dev eth1 metric 600")
    node.netns.ip("route add default via 10.0.0.1 dev eth1 table 10001")
    node.netns.ip("rule add pref 10001 from 10.0.0.20 lookup 10001")
    theirs = (
        node.netns.ip("-4 addr show dev eth1"),
        node.netns.ip("route show table 10001"),
        node.netns.ip("rule show pref 10001"),
        node.netns.ip("route show table 254"),
    )
    async with datapath_running() as datapath:
        pod = await _secondary_pod(node, datapath)
        with pod.udp() as client, node.fabric.udp(OTHER_NODE) as other:
            assert exchange(client, other, OTHER_NODE) == SECONDARY_PODS[0]
        with node.netns.udp(IPv4Address("10.0.0.20")) as server, node.fabric.udp(OTHER_NODE) as client:
            assert exchange(client, server, IPv4Address("10.0.0.20")) == OTHER_NODE
        await datapath.forget_eni(SECONDARY_ENI)
    assert node.netns.ip("route show table 2") == ""
    assert "lookup 2 " not in node.netns.ip("rule show")
    seen = node.netns.ip("-4 addr show dev eth1").replace("mtu 9001", "mtu 1500")
    assert (seen, *theirs[1:]) == theirs
    assert node.netns.ip("route show table 10001") == theirs[1]
