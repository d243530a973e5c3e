"""Wire, unwire, check and observe against the real kernel."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from agent.datapath import layout, pods, releases
from agent.datapath.desired import describe_wiring, plan_pod
from agent.datapath.kernel import KernelDatapath
from agent.datapath.netlink import NetlinkSocket
from agent.datapath.policy import DatapathPolicy
from agent.errors import Cause, InvalidRequest, KernelFailed
from agent.ipam.model import AttachmentKey
from tests.kernel.datapath_node import (
    PRIMARY_PODS,
    SECONDARY_ENI,
    SECONDARY_PODS,
    Node,
    datapath_running,
)

POLICY = DatapathPolicy(names_directory=None)
ADDRESS = PRIMARY_PODS[0]


def _ifindex(node: Node, ifname: str) -> int:
    return int(node.netns.ip(f"-o link show dev {ifname}").partition(":")[0])


async def test_wire_reports_what_the_kernel_has(node: Node, datapath: KernelDatapath) -> None:
    container = node.container()
    wiring = node.wiring(container, ADDRESS, pod="web-0")

    wired = await datapath.wire(wiring)

    assert wired == describe_wiring(wiring, POLICY)
    host = node.netns.ip(f"-d link show dev {wired.host_ifname}")
    assert wired.host_mac in host
    assert f"alias enoki {container.name} eth0 default/web-0" in host
    assert "mtu 9001" in host
    assert "group 20000" in host
    assert wired.pod_mac in container.ip("link show dev eth0")
    assert f"{ADDRESS} dev {wired.host_ifname} proto 205 scope 253" in node.netns.ip("route show table 20512")
    assert container.ip("route show").split("\n")[:2] == [
        "default via 169.254.1.1 dev eth0 ",
        "169.254.1.1 dev eth0 scope 253 ",
    ]
    assert f"169.254.1.1 dev eth0 lladdr {wired.host_mac} PERMANENT" in container.ip("neigh show")
    assert f"{ADDRESS} dev {wired.host_ifname} lladdr {wired.pod_mac} PERMANENT" in node.netns.ip("neigh show")
    assert Path(f"/proc/sys/net/ipv4/conf/{wired.host_ifname}/rp_filter").read_text() == "1\n"
    assert Path(f"/proc/sys/net/ipv6/conf/{wired.host_ifname}/accept_ra").read_text() == "0\n"


async def test_wiring_twice_keeps_the_link_and_its_connections(node: Node, datapath: KernelDatapath) -> None:
    wiring = node.wiring(node.container(), ADDRESS)
    wired = await datapath.wire(wiring)
    before = _ifindex(node, wired.host_ifname)
    assert await datapath.wire(wiring) == wired
    assert _ifindex(node, wired.host_ifname) == before


async def test_wiring_again_repairs_a_half_made_attachment(node: Node, unwatched: KernelDatapath) -> None:
    container = node.container()
    wiring = node.wiring(container, ADDRESS)
    wired = await unwatched.wire(wiring)
    node.netns.ip(f"route del {ADDRESS} table 20512")
    assert await unwatched.wire(wiring) == wired
    await unwatched.check(wiring)


async def test_a_pod_recreated_under_its_name_takes_the_link_over(node: Node, datapath: KernelDatapath) -> None:
    old, new = node.container(), node.container()
    await datapath.wire(node.wiring(old, PRIMARY_PODS[0], pod="db-0"))
    wired = await datapath.wire(node.wiring(new, PRIMARY_PODS[1], pod="db-0"))
    assert node.host_links() == [wired.host_ifname]
    seen = await datapath.observe()
    assert [(each.holder.key.container_id, each.addresses) for each in seen.attachments] == [
        (new.name, (PRIMARY_PODS[1],))
    ]


async def test_a_taken_interface_name_is_refused_and_leaves_nothing(node: Node, datapath: KernelDatapath) -> None:
    container = node.container()
    container.ip("link add eth0 type veth peer name other")
    with pytest.raises(InvalidRequest, match="already has an interface eth0") as refused:
        await datapath.wire(node.wiring(container, ADDRESS))
    assert refused.value.cause is Cause.REQUEST_INVALID
    assert node.host_links() == []


async def test_a_leftover_of_the_same_attachment_in_the_container_is_replaced(
    node: Node, datapath: KernelDatapath
) -> None:
    container = node.container()
    unnamed = node.wiring(container, ADDRESS)
    unnamed = dataclasses.replace(unnamed, holder=dataclasses.replace(unnamed.holder, namespace="", pod=""))
    first = await datapath.wire(unnamed)
    await datapath.unwire(unnamed.holder.key, [ADDRESS], 0)
    second = await datapath.wire(node.wiring(container, ADDRESS))
    assert first.host_ifname != second.host_ifname
    assert node.host_links() == [second.host_ifname]


async def test_a_failure_late_in_the_way_undoes_everything(node: Node, datapath: KernelDatapath) -> None:
    container = node.container()
    await datapath.wire(node.wiring(node.container(), ADDRESS))
    before = node.host_links()
    # The address is routed to the first pod: the very last message of the second ADD fails.
    with pytest.raises(KernelFailed, match="File exists") as failed:
        await datapath.wire(node.wiring(container, ADDRESS))
    assert failed.value.evidence["errno"] == "EEXIST"
    assert node.host_links() == before
    assert "eth0" not in container.ip("link show")


async def test_an_expired_add_leaves_nothing(node: Node) -> None:
    plan = plan_pod(node.wiring(node.container(), ADDRESS), POLICY)
    route = NetlinkSocket()
    try:
        with pytest.raises(KernelFailed, match="took too long"):
            pods.wire(route, plan, pods.HostIfindexes(), expires_at_s=0.0)
    finally:
        route.close()
    assert node.host_links() == []


async def test_a_foreign_link_with_our_name_is_left_alone(node: Node, datapath: KernelDatapath) -> None:
    wiring = node.wiring(node.container(), ADDRESS)
    name = describe_wiring(wiring, POLICY).host_ifname
    node.netns.ip(f"link add {name} type veth peer name foreign-peer")
    before = _ifindex(node, name)
    with pytest.raises(KernelFailed, match="not ours"):
        await datapath.wire(wiring)
    await datapath.discard_link(name)
    assert _ifindex(node, name) == before


async def test_a_taken_interface_index_is_avoided(node: Node, datapath: KernelDatapath) -> None:
    container = node.container()
    container.ip(f"link add other index {layout.POD_IFINDEX} type veth peer name another")
    wiring = node.wiring(container, ADDRESS)
    await datapath.wire(wiring)
    await datapath.check(wiring)


@pytest.mark.parametrize("kind", ["relative", "missing", "file", "fifo", "other-namespace", "own", "nul"])
async def test_what_is_not_a_network_namespace_is_refused(
    node: Node, datapath: KernelDatapath, kind: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    path = {
        "relative": "run/netns/x",
        "missing": "/run/netns/ek-no-such-namespace",
        "file": str(tmp_path / "file"),
        "fifo": str(tmp_path / "fifo"),
        "other-namespace": "/proc/self/ns/uts",
        "own": node.netns.path,
        "nul": "/run/netns/\0",
    }[kind]
    wiring = dataclasses.replace(node.wiring(node.container(), ADDRESS), netns=path)
    with pytest.raises(InvalidRequest) as refused:
        await datapath.wire(wiring)
    assert refused.value.cause is Cause.NETNS_INVALID
    assert node.host_links() == []


async def test_unwire_releases_the_address_and_cools_it(node: Node, datapath: KernelDatapath) -> None:
    wiring = node.wiring(node.container(), ADDRESS)
    wired = await datapath.wire(wiring)
    await datapath.unwire(wiring.holder.key, [ADDRESS], 600)
    seen = await datapath.observe()
    assert seen.attachments == ()
    assert [each.address for each in seen.cooling] == [ADDRESS]
    assert 500 < seen.cooling[0].remaining_s <= 601
    assert "group 20099" in node.netns.ip(f"-d link show dev {wired.host_ifname}")


async def test_unwire_of_something_gone_still_cools(node: Node, datapath: KernelDatapath) -> None:
    wiring = node.wiring(node.container(), ADDRESS)
    wired = await datapath.wire(wiring)
    node.netns.ip(f"link del {wired.host_ifname}")
    await datapath.unwire(wiring.holder.key, [ADDRESS], 30)
    await datapath.unwire(AttachmentKey(container_id="never-seen", ifname="eth0"), [PRIMARY_PODS[1]], 30)
    assert {each.address for each in (await datapath.observe()).cooling} == {ADDRESS, PRIMARY_PODS[1]}


async def test_unwire_does_not_take_the_address_of_a_newer_owner(node: Node, datapath: KernelDatapath) -> None:
    old, new = node.wiring(node.container(), PRIMARY_PODS[0]), node.wiring(node.container(), PRIMARY_PODS[1])
    await datapath.wire(old)
    await datapath.wire(new)
    await datapath.unwire(old.holder.key, [PRIMARY_PODS[0], PRIMARY_PODS[1]], 0)
    assert [each.addresses for each in (await datapath.observe()).attachments] == [(PRIMARY_PODS[1],)]


async def test_a_restarted_agent_sees_and_releases_what_its_predecessor_wired(
    node: Node, unwatched: KernelDatapath
) -> None:
    table_id = await unwatched.ensure_eni(SECONDARY_ENI)
    wirings = [
        node.wiring(node.container(), PRIMARY_PODS[0]),
        node.wiring(node.container(), SECONDARY_PODS[0], table_id=table_id),
    ]
    for wiring in wirings:
        await unwatched.wire(wiring)
    await unwatched.unwire(AttachmentKey(container_id="x", ifname="eth0"), [PRIMARY_PODS[3]], 30)

    async with datapath_running(POLICY) as successor:
        seen = await successor.observe()
        assert {(each.holder, each.addresses) for each in seen.attachments} == {
            (wiring.holder, wiring.addresses) for wiring in wirings
        }
        assert [each.address for each in seen.cooling] == [PRIMARY_PODS[3]]
        assert await successor.wire(wirings[0]) == describe_wiring(wirings[0], POLICY)
        newer = await successor.wire(node.wiring(node.container(), PRIMARY_PODS[1]))
        assert _ifindex(node, newer.host_ifname) > max(each.host_ifindex for each in seen.attachments)
        node.netns.ip(f"link del {newer.host_ifname}")
        await successor.unwire(wirings[1].holder.key, wirings[1].addresses, 30)
        assert [each.holder for each in (await successor.observe()).attachments] == [wirings[0].holder]


async def test_torn_adds_are_seen_without_addresses_and_can_be_discarded(node: Node, unwatched: KernelDatapath) -> None:
    wired = await unwatched.wire(node.wiring(node.container(), ADDRESS))
    node.netns.ip(f"link set dev {wired.host_ifname} alias not-ours")
    node.netns.ip(f"route del {ADDRESS} table 20512")
    async with datapath_running(POLICY) as successor:
        (torn,) = (await successor.observe()).attachments
        assert (torn.holder.key.container_id, torn.addresses, torn.host_ifname) == ("", (), wired.host_ifname)
        await successor.discard_link(torn.host_ifname)
        await successor.discard_link(torn.host_ifname)
    assert node.host_links() == []


@pytest.mark.parametrize(
    ("where", "damage", "named"),
    [
        ("host", "link set dev {host} alias x", "alias"),
        ("host", "link set dev {host} group 0", "group"),
        ("host", "link set dev {host} mtu 1400", "MTU"),
        ("host", "link set dev {host} down", "up"),
        ("host", "link set dev {host} address 02:00:00:00:00:99", "MAC"),
        ("host", "route del {address} table 20512", "table pods"),
        ("host", "neigh del {address} dev {host}", "permanent neighbour"),
        ("host", "link del {host}", "missing"),
        ("pod", "link set dev eth0 down", "down"),
        ("pod", "link set dev eth0 mtu 1400", "MTU"),
        ("pod", "link set dev eth0 address 02:00:00:00:00:99", "MAC"),
        ("pod", "addr del {address}/32 dev eth0", "lacks"),
        ("pod", "route del default", "default route"),
        ("pod", "neigh del 169.254.1.1 dev eth0", "permanent neighbour"),
    ],
)
async def test_check_names_the_first_difference(
    node: Node, unwatched: KernelDatapath, where: str, damage: str, named: str
) -> None:
    container = node.container()
    wiring = node.wiring(container, ADDRESS)
    wired = await unwatched.wire(wiring)
    await unwatched.check(wiring)
    (node.netns if where == "host" else container).ip(damage.format(host=wired.host_ifname, address=ADDRESS))
    with pytest.raises(InvalidRequest, match=named) as drifted:
        await unwatched.check(wiring)
    assert drifted.value.cause is Cause.ATTACHMENT_DRIFTED


async def test_released_links_are_deleted_in_the_background(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "SWEEP_DELAY_S", 0.01)
    async with datapath_running(POLICY) as datapath:
        kept = await datapath.wire(node.wiring(node.container(), PRIMARY_PODS[0]))
        released = node.wiring(node.container(), PRIMARY_PODS[1])
        wired = await datapath.wire(released)
        gone = asyncio.Event()
        watcher = _link_deletions(wired.host_ifname, gone)
        try:
            await datapath.unwire(released.holder.key, released.addresses, 0)
            async with asyncio.timeout(60):
                await gone.wait()
        finally:
            asyncio.get_running_loop().remove_reader(watcher)
            watcher.close()
        assert node.host_links() == [kept.host_ifname]


def _link_deletions(ifname: str, gone: asyncio.Event) -> socket.socket:
    """A second, independent listener on the kernel's link notifications."""
    listener = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    listener.bind((0, 1))

    def read() -> None:
        data = listener.recv(65536)
        if int.from_bytes(data[4:6], "little") == 17 and ifname.encode() in data:
            gone.set()

    asyncio.get_running_loop().add_reader(listener, read)
    return listener


async def test_the_disappearance_of_a_namespace_wakes_the_subscriber(node: Node, datapath: KernelDatapath) -> None:
    woken = asyncio.Event()
    datapath.subscribe(woken.set)
    container = node.container()
    await datapath.wire(node.wiring(container, ADDRESS))
    node.netns.ip("link add foreign type veth peer name foreign2")
    node.netns.ip("link del foreign")
    assert not woken.is_set()
    node.netns.ip(f"netns del {container.name}")
    async with asyncio.timeout(60):
        await woken.wait()
    assert (await datapath.observe()).attachments == ()


async def test_many_pods_at_once(node: Node, datapath: KernelDatapath) -> None:
    addresses = [IPv4Address(f"10.0.0.{host}") for host in range(100, 120)]
    wirings = [node.wiring(node.container(), address) for address in addresses]
    await asyncio.gather(*(datapath.wire(wiring) for wiring in wirings))
    seen = await datapath.observe()
    assert {each.holder.key: each.addresses for each in seen.attachments} == {
        wiring.holder.key: wiring.addresses for wiring in wirings
    }
    await asyncio.gather(*(datapath.check(wiring) for wiring in wirings))
    await asyncio.gather(*(datapath.unwire(wiring.holder.key, wiring.addresses, 30) for wiring in wirings))
    seen = await datapath.observe()
    assert seen.attachments == ()
    assert {each.address for each in seen.cooling} == set(addresses)


async def test_two_containers_of_one_pod_name_at_once_leave_one_whole_attachment(
    node: Node, datapath: KernelDatapath
) -> None:
    wirings = [node.wiring(node.container(), address, pod="db-0") for address in PRIMARY_PODS]
    results = await asyncio.gather(*(datapath.wire(wiring) for wiring in wirings), return_exceptions=True)
    assert all(not isinstance(each, BaseException) or isinstance(each, KernelFailed) for each in results), results
    (seen,) = (await datapath.observe()).attachments
    (winner,) = (wiring for wiring in wirings if wiring.holder == seen.holder)
    assert seen.addresses == winner.addresses
    await datapath.check(winner)


async def test_cancelling_the_caller_does_not_tear_the_work(node: Node, datapath: KernelDatapath) -> None:
    wiring = node.wiring(node.container(), ADDRESS)
    impatient = KernelDatapath(POLICY)
    task = asyncio.create_task(impatient.wire(wiring))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    impatient.close()
    await datapath.check(wiring)
