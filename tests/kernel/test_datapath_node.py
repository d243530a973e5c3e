"""The node, its ENIs, the nftables table, and everything that is not ours, against the real kernel."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
import subprocess
import sys
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from agent.datapath import released
from agent.datapath.cooling import CoolingSet
from agent.datapath.firewall import Firewall
from agent.datapath.hostports import HostPorts
from agent.datapath.kernel import KernelDatapath
from agent.datapath.netlink import NetlinkSocket
from agent.datapath.policy import DatapathPolicy
from agent.errors import Cause, InvalidRequest, KernelFailed
from agent.ipam.model import Mac
from tests.kernel.datapath_node import (
    INSTANCE,
    NODE,
    OTHER_NODE,
    PRIMARY_PODS,
    SECONDARY_ENI,
    VPC,
    Netns,
    Node,
    datapath_running,
    exchange,
)


def _rules(node: Node) -> list[str]:
    return [line.replace("\t", " ").strip() for line in node.netns.ip("rule show").splitlines()]


def _elements(node: Node, kind: str, name: str) -> list[Any]:
    listed = json.loads(node.netns.run("nft", "-j", "list", kind, "inet", "enoki", name))
    (found,) = (each[kind] for each in listed["nftables"] if kind in each)
    elements: list[Any] = found.get("elem", [])
    return elements


async def test_prepare_sets_forwarding_rules_and_the_primary_link(node: Node, datapath: KernelDatapath) -> None:
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "1\n"
    assert Path("/proc/sys/net/ipv4/conf/eth0/rp_filter").read_text() == "2\n"
    assert "mtu 9001" in node.netns.ip("link show dev eth0")
    assert _rules(node) == [
        "0: from all lookup 255",
        "512: from all lookup 20512 proto 205",
        "1024: from all fwmark 0x80/0x80 lookup 254 proto 205",
        "32766: from all lookup 254",
        "32767: from all lookup 253",
    ]


async def test_preparing_again_changes_nothing(node: Node, datapath: KernelDatapath) -> None:
    await datapath.ensure_eni(SECONDARY_ENI)
    before = _rules(node), node.netns.run("nft", "list", "ruleset"), node.netns.ip("-4 route show table all")
    async with datapath_running() as again:
        assert await again.ensure_eni(SECONDARY_ENI) == 2
    assert (_rules(node), node.netns.run("nft", "list", "ruleset"), node.netns.ip("-4 route show table all")) == before


async def test_a_secondary_eni_gets_its_link_address_table_and_rules(node: Node, datapath: KernelDatapath) -> None:
    assert await datapath.ensure_eni(SECONDARY_ENI) == 2
    assert Path("/proc/sys/net/ipv4/conf/eth1/rp_filter").read_text() == "2\n"
    link = node.netns.ip("addr show dev eth1")
    assert "mtu 9001" in link
    assert "UP" in link
    assert "inet 10.0.0.20/24 scope 0 noprefixroute eth1" in link
    assert node.netns.ip("route show table 2").splitlines() == [
        "default via 10.0.0.1 dev eth1 proto 205 ",
        "10.0.0.1 dev eth1 proto 205 scope 253 ",
    ]
    assert "eth1" not in node.netns.ip("route show table 254")
    assert "1536: from all fwmark 0x2/0x3f lookup 2 proto 205" in _rules(node)
    assert "32765: from 10.0.0.20 lookup 2 proto 205" in _rules(node)
    assert _elements(node, "map", "eni_by_group") == [[20002, {"jump": {"target": "eni_2"}}]]


async def test_an_address_the_image_configured_stays(node: Node, datapath: KernelDatapath) -> None:
    node.netns.ip("addr add 10.0.0.20/24 dev eth1 metric 512")
    await datapath.ensure_eni(SECONDARY_ENI)
    assert node.netns.ip("-4 addr show dev eth1").count("inet ") == 1
    assert "metric 512" in node.netns.ip("-4 addr show dev eth1")


async def test_an_eni_that_replaced_another_takes_its_rules_over(node: Node, datapath: KernelDatapath) -> None:
    await datapath.ensure_eni(dataclasses.replace(SECONDARY_ENI, primary_address=IPv4Address("10.0.0.30")))
    await datapath.ensure_eni(SECONDARY_ENI)
    assert [rule for rule in _rules(node) if rule.startswith("32765")] == ["32765: from 10.0.0.20 lookup 2 proto 205"]


async def test_forgetting_an_eni_removes_its_rules_and_chain_and_can_be_repeated(
    node: Node, datapath: KernelDatapath
) -> None:
    before = _rules(node)
    await datapath.ensure_eni(SECONDARY_ENI)
    for _ in range(2):
        await datapath.forget_eni(SECONDARY_ENI)
        assert _rules(node) == before
        assert _elements(node, "map", "eni_by_group") == []
        assert "eni_2" not in node.netns.run("nft", "list", "table", "inet", "enoki")


async def test_an_eni_without_a_link_is_named(node: Node, datapath: KernelDatapath) -> None:
    absent = dataclasses.replace(SECONDARY_ENI, mac=Mac("02:aa:00:00:00:99"))
    for failing in (datapath.ensure_eni(absent), datapath.wait_for_eni_link(absent.mac, 0.05)):
        with pytest.raises(KernelFailed) as failed:
            await failing
        assert failed.value.cause is Cause.ENI_LINK_MISSING
        assert failed.value.evidence["mac"] == absent.mac


async def test_a_network_card_above_0_is_refused_by_name(node: Node, datapath: KernelDatapath) -> None:
    with pytest.raises(KernelFailed, match="10101"):
        await datapath.ensure_eni(dataclasses.replace(SECONDARY_ENI, card=1))


async def test_waiting_for_an_eni_ends_when_the_kernel_announces_it(node: Node, datapath: KernelDatapath) -> None:
    mac = Mac("02:aa:00:00:00:30")
    await datapath.wait_for_eni_link(SECONDARY_ENI.mac, 5)
    waiting = asyncio.create_task(datapath.wait_for_eni_link(mac, 10))
    await asyncio.sleep(0)
    node.fabric.ip(f"link add leg-eth2 type veth peer name eth2 address {mac} netns {node.netns.name}")
    await waiting


async def test_what_is_not_ours_survives_everything(node: Node) -> None:
    node.netns.ip("link add foreign type veth peer name foreign2")
    node.netns.ip("link set foreign group 20200 up")
    node.netns.ip("rule add pref 512 from 192.0.2.1 lookup 77")
    node.netns.ip("rule add pref 1024 fwmark 0x4000/0x4000 lookup 77")
    node.netns.ip("rule add pref 32765 from 192.0.2.2 lookup 2")
    node.netns.ip("route add 192.0.2.0/24 via 10.0.0.1 table 77")
    node.netns.ip("route add 192.0.2.9/32 dev eth0 table 20512")
    node.netns.run("nft", "add table inet foreign; add chain inet foreign enoki; add table ip enoki")

    def foreign() -> tuple[object, ...]:
        return (
            [rule for rule in _rules(node) if "205" not in rule],
            node.netns.ip("route show table 77"),
            "192.0.2.9 dev eth0" in node.netns.ip("route show table 20512"),
            "foreign" in node.netns.ip("link show group 20200"),
            node.netns.run("nft", "list", "table", "inet", "foreign"),
            node.netns.run("nft", "list", "table", "ip", "enoki"),
        )

    before = foreign()
    async with datapath_running() as datapath:
        await datapath.ensure_eni(SECONDARY_ENI)
        wiring = node.wiring(node.container(), PRIMARY_PODS[0])
        await datapath.wire(wiring)
        assert [each.addresses for each in (await datapath.observe()).attachments] == [(PRIMARY_PODS[0],)]
        await datapath.unwire(wiring.holder.key, wiring.addresses, 1)
        await datapath.forget_eni(SECONDARY_ENI)
        await datapath.discard_link("foreign")
        await datapath.discard_link("no-such-link")
    assert foreign() == before


# The table ------------------------------------------------------------------------------------------------------------


async def test_the_cooldown_set_agrees_with_nft(node: Node, datapath: KernelDatapath) -> None:
    cooling = CoolingSet()
    try:
        cooling.put({IPv4Address("10.0.0.40"): 600.5, IPv4Address("10.0.0.41"): 600.5})
        cooling.put({IPv4Address("10.0.0.41"): 900, IPv4Address("10.0.0.42"): 900, IPv4Address("10.0.0.43"): 0})
        listed = {each["elem"]["val"]: each["elem"] for each in _elements(node, "set", "cooling")}
        assert listed.keys() == {"10.0.0.40", "10.0.0.41", "10.0.0.42"}
        # nft's JSON rounds down to seconds; 600.5 s went in.
        assert (listed["10.0.0.40"]["timeout"], listed["10.0.0.41"]["timeout"]) == (600, 900)
        seen = {str(each.address): each.remaining_s for each in cooling.read()}
        assert seen.keys() == listed.keys()
        for address, remaining_s in seen.items():
            # Seen after it was listed, and by how much depends on the machine.
            assert -60 < remaining_s - listed[address]["expires"] <= 1
    finally:
        cooling.close()


async def test_a_big_cooldown_set_is_read_whole(node: Node, datapath: KernelDatapath) -> None:
    addresses = [IPv4Address("10.0.16.0") + offset for offset in range(2000)]
    cooling = CoolingSet()
    try:
        for start in range(0, len(addresses), 500):
            cooling.put(dict.fromkeys(addresses[start : start + 500], 600.0))
        assert {each.address for each in cooling.read()} == set(addresses)
    finally:
        cooling.close()


async def test_a_rebuild_keeps_what_varies(node: Node) -> None:
    # One agent after the other: two at a time would put right what the other one did.
    async with datapath_running() as datapath:
        await datapath.ensure_eni(SECONDARY_ENI)
        await datapath.unwire(node.wiring(node.container(), PRIMARY_PODS[0]).holder.key, [PRIMARY_PODS[0]], 600)
    before = node.netns.run("nft", "list", "chain", "inet", "enoki", "source_nat")
    changed = DatapathPolicy(names_directory=None, exclude_snat_cidrs=(IPv4Network("198.51.100.0/24"),))
    async with datapath_running(changed) as successor:
        (cooling,) = (await successor.observe()).cooling
        assert cooling.address == PRIMARY_PODS[0]
        assert 500 < cooling.remaining_s <= 601
    assert _elements(node, "map", "eni_by_group") == [[20002, {"jump": {"target": "eni_2"}}]]
    assert _elements(node, "set", "vpc4") == [{"prefix": {"addr": "10.0.0.0", "len": 16}}]
    assert _elements(node, "set", "exclude4") == [{"prefix": {"addr": "198.51.100.0", "len": 24}}]
    assert node.netns.run("nft", "list", "chain", "inet", "enoki", "source_nat") == before


async def test_a_release_after_somebody_flushed_the_ruleset_restores_the_table(
    node: Node, datapath: KernelDatapath
) -> None:
    await datapath.ensure_eni(SECONDARY_ENI)
    wiring = node.wiring(node.container(), PRIMARY_PODS[0])
    await datapath.wire(wiring)
    node.netns.run("nft", "flush", "ruleset")
    await datapath.unwire(wiring.holder.key, wiring.addresses, 60)
    assert [each.address for each in (await datapath.observe()).cooling] == [PRIMARY_PODS[0]]
    assert _elements(node, "map", "eni_by_group") == [[20002, {"jump": {"target": "eni_2"}}]]


async def test_a_vpc_without_cidrs_is_refused(node: Node, datapath: KernelDatapath) -> None:
    with pytest.raises(InvalidRequest):
        await datapath.set_vpc_cidrs([])
    assert _elements(node, "set", "vpc4") == [{"prefix": {"addr": "10.0.0.0", "len": 16}}]


async def test_a_refused_transaction_says_what_nftables_said(node: Node) -> None:
    cooling, host_ports = CoolingSet(), HostPorts()
    firewall = Firewall(DatapathPolicy(names_directory=None), cooling, host_ports)
    try:
        with pytest.raises(KernelFailed, match=r"nftables: replacing the VPC's CIDRs: .*No such file"):
            firewall.set_vpc_cidrs([VPC])
        firewall.prepare("eth0", NODE, [VPC])
        with pytest.raises(KernelFailed, match="adding the chain"):
            firewall.add_eni(-1)
    finally:
        cooling.close()
        host_ports.close()


async def test_names_are_installed_for_iproute2(node: Node, tmp_path: Path) -> None:
    async with datapath_running(DatapathPolicy(names_directory=tmp_path)):
        assert (tmp_path / "rt_tables.d/enoki.conf").read_text() == "20512\tpods\n20513\treleased\n"
        assert (tmp_path / "rt_protos.d/enoki.conf").read_text() == "205\tenoki\n"


async def test_an_instance_whose_primary_link_is_missing_is_named(node: Node) -> None:
    datapath = KernelDatapath(DatapathPolicy(names_directory=None))
    try:
        with pytest.raises(KernelFailed) as failed:
            await datapath.prepare_node(dataclasses.replace(INSTANCE, primary_mac=Mac("02:aa:00:00:00:77")))
        assert failed.value.cause is Cause.ENI_LINK_MISSING
    finally:
        datapath.close()


def test_a_thread_that_cannot_come_home_ends_the_process() -> None:
    with Netns.made("trap") as trap:
        program = (
            "import os, sys\n"
            "from agent.datapath import namespaces\n"
            "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
            "with namespaces.inside(fd):\n"
            "    os.closerange(fd + 1, fd + 50)\n"
            "print('went on')\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, trap.path], capture_output=True, text=True, check=False, timeout=20
        )
    assert done.returncode == -signal.SIGABRT
    assert "cannot return" in done.stderr
    assert done.stdout == ""


# Released addresses on their way into the set -------------------------------------------------------------------------


async def test_a_release_ends_in_the_set_and_nowhere_else(node: Node, datapath: KernelDatapath) -> None:
    wirings = [node.wiring(node.container(), address) for address in PRIMARY_PODS[:3]]
    for wiring in wirings:
        await datapath.wire(wiring)
    await asyncio.gather(*(datapath.unwire(one.holder.key, one.addresses, 600) for one in wirings))
    async with asyncio.timeout(60):
        while node.netns.ip("route show table 20513"):
            await asyncio.sleep(0)
    listed = {each["elem"]["val"]: each["elem"]["expires"] for each in _elements(node, "set", "cooling")}
    assert listed.keys() == {str(address) for address in PRIMARY_PODS[:3]}
    assert all(500 < expires_s <= 600 for expires_s in listed.values())


async def test_what_was_on_its_way_is_seen_and_entered_by_the_next_agent(node: Node) -> None:
    """An agent killed right after it answered: only the route says that the address cools."""
    async with datapath_running(watching=False) as killed:
        wiring = node.wiring(node.container(), PRIMARY_PODS[0])
        await killed.wire(wiring)
        await killed.unwire(wiring.holder.key, wiring.addresses, 600)
        node.netns.ip(f"route add unreachable {PRIMARY_PODS[1]} table 20513 proto 205 metric 1")
        node.netns.ip(f"route add blackhole {PRIMARY_PODS[2]} table 20513 metric 77")
        assert [each.address for each in (await killed.observe()).cooling] == [PRIMARY_PODS[0]]
        assert _elements(node, "set", "cooling") == []
    async with datapath_running() as successor:
        (cooling,) = (await successor.observe()).cooling
        assert cooling.address == PRIMARY_PODS[0]
        assert 500 < cooling.remaining_s <= 601
        async with asyncio.timeout(60):
            while len(node.netns.ip("route show table 20513").splitlines()) > 1:
                await asyncio.sleep(0)
        assert [each["elem"]["val"] for each in _elements(node, "set", "cooling")] == [str(PRIMARY_PODS[0])]
    # Somebody else's route in our table is nobody's cooldown, and stays.
    assert str(PRIMARY_PODS[2]) in node.netns.ip("route show table 20513")


async def test_a_released_address_of_another_node_can_be_reached(node: Node, datapath: KernelDatapath) -> None:
    """The table routes nothing: the address may belong to another node by now."""
    with closing(NetlinkSocket()) as route:
        released.put(route, [OTHER_NODE], released.uptime_s() + 60)
    with node.netns.udp() as client, node.fabric.udp(OTHER_NODE) as server:
        assert exchange(client, server, OTHER_NODE) == NODE
