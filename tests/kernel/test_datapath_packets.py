"""Real packets between namespaces: which way they leave, with which source, and which do not."""

from __future__ import annotations

import platform
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from agent.datapath.kernel import KernelDatapath
from agent.datapath.policy import DatapathPolicy
from tests.kernel.datapath_node import (
    INTERNET,
    NODE,
    OTHER_NODE,
    PRIMARY_ENI,
    PRIMARY_PODS,
    SECONDARY_ENI,
    SECONDARY_PODS,
    Netns,
    Node,
    datapath_running,
    exchange,
    is_dropped,
)


async def _pod(datapath: KernelDatapath, node: Node, address: IPv4Address, table_id: int = 254) -> Netns:
    container = node.container()
    await datapath.wire(node.wiring(container, address, table_id=table_id))
    return container


async def test_pods_of_one_node_reach_each_other_and_the_node(node: Node, datapath: KernelDatapath) -> None:
    table_id = await datapath.ensure_eni(SECONDARY_ENI)
    first = await _pod(datapath, node, PRIMARY_PODS[0])
    second = await _pod(datapath, node, SECONDARY_PODS[0], table_id)

    with first.udp(PRIMARY_PODS[0]) as here, second.udp(SECONDARY_PODS[0]) as there:
        assert exchange(here, there, SECONDARY_PODS[0]) == PRIMARY_PODS[0]
        assert exchange(there, here, PRIMARY_PODS[0]) == SECONDARY_PODS[0]
    with first.udp() as pod, node.netns.udp(NODE) as kubelet:
        assert exchange(pod, kubelet, NODE) == PRIMARY_PODS[0]
    with node.netns.udp() as kubelet, second.udp(SECONDARY_PODS[0]) as pod:
        assert exchange(kubelet, pod, SECONDARY_PODS[0]) == NODE


@pytest.mark.skipif(
    tuple(map(int, platform.release().split(".")[:2])) < (6, 8),
    reason="before Linux 6.8 nothing can end a carrier change early (see messages.settle_link)",
)
async def test_the_first_packet_arrives_on_a_busy_node_too(node: Node, datapath: KernelDatapath) -> None:
    container, address = node.container(), PRIMARY_PODS[0]
    wiring = node.wiring(container, address)
    with node.container().kept_busy(), node.container().kept_busy():
        # Without the settling the first packet is lost about once in a hundred times.
        for _ in range(60):
            wired = await datapath.wire(wiring)
            with container.udp(address) as pod, node.netns.udp() as kubelet:
                exchange(kubelet, pod, address, attempts=1)
            await datapath.discard_link(wired.host_ifname)


async def test_a_pod_of_the_primary_eni_keeps_its_source_inside_the_vpc_only(
    node: Node, datapath: KernelDatapath
) -> None:
    pod = await _pod(datapath, node, PRIMARY_PODS[0])
    with pod.udp() as client, node.fabric.udp(OTHER_NODE) as other, node.fabric.udp(INTERNET) as internet:
        assert exchange(client, other, OTHER_NODE) == PRIMARY_PODS[0]
        assert exchange(client, internet, INTERNET) == NODE


async def test_a_pod_of_a_secondary_eni_leaves_by_it_inside_the_vpc_and_by_the_primary_outside(
    node: Node, datapath: KernelDatapath
) -> None:
    table_id = await datapath.ensure_eni(SECONDARY_ENI)
    pod = await _pod(datapath, node, SECONDARY_PODS[0], table_id)
    node.fabric.run(
        "nft",
        "add table inet seen; add chain inet seen in { type filter hook input priority 0; };"
        f"add rule inet seen in iifname leg-eth1 ip saddr {SECONDARY_PODS[0]} ip daddr {OTHER_NODE} counter;"
        f"add rule inet seen in iifname leg-eth0 ip saddr {NODE} ip daddr {INTERNET} counter",
    )
    with pod.udp() as client, node.fabric.udp(OTHER_NODE) as other, node.fabric.udp(INTERNET) as internet:
        for _ in range(2):
            assert exchange(client, other, OTHER_NODE) == SECONDARY_PODS[0]
            assert exchange(client, internet, INTERNET) == NODE
    counted = node.fabric.run("nft", "list", "table", "inet", "seen")
    assert "counter packets 0 " not in counted


async def test_others_reach_a_pod_of_a_secondary_eni(node: Node, datapath: KernelDatapath) -> None:
    table_id = await datapath.ensure_eni(SECONDARY_ENI)
    pod = await _pod(datapath, node, SECONDARY_PODS[0], table_id)
    with pod.udp(SECONDARY_PODS[0]) as server, node.fabric.udp() as client:
        # From outside the VPC too (a peering): the reply must not be translated, nor go by the primary ENI.
        for source in (OTHER_NODE, INTERNET):
            with node.fabric.udp(source) as bound:
                assert exchange(bound, server, SECONDARY_PODS[0]) == source
        assert exchange(client, server, SECONDARY_PODS[0]) == IPv4Address("10.0.0.1")


async def test_the_secondary_enis_own_address_answers_by_its_own_eni(node: Node, datapath: KernelDatapath) -> None:
    await datapath.ensure_eni(SECONDARY_ENI)
    own = SECONDARY_ENI.primary_address
    with node.netns.udp(own) as server, node.fabric.udp(OTHER_NODE) as client:
        assert exchange(client, server, own) == OTHER_NODE


async def test_a_spoofed_source_is_dropped_at_the_veth(node: Node, datapath: KernelDatapath) -> None:
    spoofer = await _pod(datapath, node, PRIMARY_PODS[0])
    victim = await _pod(datapath, node, PRIMARY_PODS[1])
    spoofer.ip(f"addr add {PRIMARY_PODS[2]}/32 dev eth0")
    with victim.udp(PRIMARY_PODS[1]) as server:
        with spoofer.udp(PRIMARY_PODS[0]) as honest:
            assert exchange(honest, server, PRIMARY_PODS[1]) == PRIMARY_PODS[0]
        with spoofer.udp(PRIMARY_PODS[2]) as lying:
            assert is_dropped(lying, server, PRIMARY_PODS[1])


async def test_after_unwire_the_old_owner_can_neither_send_nor_receive(node: Node, datapath: KernelDatapath) -> None:
    old = await _pod(datapath, node, PRIMARY_PODS[0])
    other = await _pod(datapath, node, PRIMARY_PODS[1])
    with old.udp(PRIMARY_PODS[0]) as gone, other.udp(PRIMARY_PODS[1]) as peer:
        exchange(gone, peer, PRIMARY_PODS[1])
        await datapath.unwire(node.wiring(old).holder.key, [PRIMARY_PODS[0]], 30)
        assert is_dropped(gone, peer, PRIMARY_PODS[1])
        assert is_dropped(peer, gone, PRIMARY_PODS[0])


@pytest.mark.parametrize(
    "policy",
    [
        DatapathPolicy(names_directory=None, external_snat=True),
        DatapathPolicy(names_directory=None, exclude_snat_cidrs=(IPv4Network("203.0.113.0/24"),)),
    ],
    ids=["external-snat", "excluded"],
)
async def test_external_snat_and_exclusions_leave_the_source_alone(node: Node, policy: DatapathPolicy) -> None:
    async with datapath_running(policy) as datapath:
        table_id = await datapath.ensure_eni(SECONDARY_ENI)
        pod = await _pod(datapath, node, SECONDARY_PODS[0], table_id)
        with pod.udp() as client, node.fabric.udp(INTERNET) as internet:
            assert exchange(client, internet, INTERNET) == SECONDARY_PODS[0]


async def test_vpc_cidrs_are_swapped_while_running(node: Node, datapath: KernelDatapath) -> None:
    pod = await _pod(datapath, node, PRIMARY_PODS[0])
    await datapath.set_vpc_cidrs([IPv4Network("10.0.0.0/16"), IPv4Network("203.0.113.0/24")])
    with pod.udp() as client, node.fabric.udp(INTERNET) as internet:
        assert exchange(client, internet, INTERNET) == PRIMARY_PODS[0]


async def test_a_nodes_own_connection_is_not_translated(node: Node, datapath: KernelDatapath) -> None:
    with node.netns.udp() as client, node.fabric.udp(INTERNET) as internet:
        client.sendto(b"ping", (str(INTERNET), 7007))
        _, peer = internet.recvfrom(100)
        assert peer == (str(NODE), client.getsockname()[1])


async def test_ipv6_addresses_are_wired_without_duplicate_address_detection(
    node: Node, datapath: KernelDatapath
) -> None:
    here, there = IPv6Address("2001:db8::11"), IPv6Address("2001:db8::12")
    first, second = node.container(), node.container()
    await datapath.wire(node.wiring(first, PRIMARY_PODS[0], here))
    await datapath.wire(node.wiring(second, PRIMARY_PODS[1], there))
    node.netns.write("ipv6/conf/all/forwarding", "1")
    with first.udp(here) as client, second.udp(there) as server:
        assert exchange(client, server, there) == here
    await datapath.check(node.wiring(first, PRIMARY_PODS[0], here))


async def test_the_primary_eni_keeps_its_addresses_and_routes(node: Node, datapath: KernelDatapath) -> None:
    before = node.netns.ip("-4 addr show dev eth0 scope 0"), node.netns.ip("route show")
    assert await datapath.ensure_eni(PRIMARY_ENI) == 254
    assert (node.netns.ip("-4 addr show dev eth0 scope 0"), node.netns.ip("route show")) == before


async def test_services_are_judged_by_their_endpoint_and_node_ports_answer_by_the_way_in(
    node: Node, datapath: KernelDatapath
) -> None:
    """Destination translation as kube-proxy does it, from a pod of a secondary ENI and to one."""
    table_id = await datapath.ensure_eni(SECONDARY_ENI)
    pod = await _pod(datapath, node, SECONDARY_PODS[0], table_id)
    inside, outside = IPv4Address("172.20.0.70"), IPv4Address("172.20.0.60")
    node.netns.run(
        "nft",
        "add table ip services; add chain ip services in { type nat hook prerouting priority -100; };"
        f"add rule ip services in ip daddr {inside} dnat to {OTHER_NODE};"
        f"add rule ip services in ip daddr {outside} dnat to {INTERNET};"
        f"add rule ip services in ip daddr {NODE} udp dport 7007 dnat to {SECONDARY_PODS[0]}",
    )
    with pod.udp() as client, node.fabric.udp(OTHER_NODE) as other, node.fabric.udp(INTERNET) as internet:
        assert exchange(client, other, inside) == SECONDARY_PODS[0]
        assert exchange(client, internet, outside) == NODE
    with pod.udp(SECONDARY_PODS[0]) as server:
        for source in (OTHER_NODE, INTERNET):
            with node.fabric.udp(source) as client:
                assert exchange(client, server, NODE) == source
