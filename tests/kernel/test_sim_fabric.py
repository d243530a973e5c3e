"""The fabric against real packets: what a VPC delivers arrives, what it drops is dropped and counted."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from sim import namespaces
from sim.model.config import REALISTIC_TIMINGS
from tests.kernel.sim_program import (
    STOP_DEADLINE_S,
    Node,
    RunningSim,
    eventually,
    host_link_names,
    http_from,
    in_namespace,
    links,
    run_sim,
    running_sim,
    unique_name,
)

INTERNET = "203.0.113.5"


@pytest.fixture(scope="module")
def sim() -> Iterator[RunningSim]:
    with running_sim("--nodes", "2", "--latency", "none") as running:
        yield running


@pytest.fixture
def source_on(request: pytest.FixtureRequest) -> Callable[[Node, str], None]:
    """Give a node a further address on its loopback, to send from; taken back after the test."""

    def add(node: Node, address: str) -> None:
        node.run("ip", "address", "add", f"{address}/32", "dev", "lo")
        request.addfinalizer(lambda: node.run("ip", "address", "delete", f"{address}/32", "dev", "lo", check=False))

    return add


@pytest.fixture
def second_eni(sim: RunningSim) -> Iterator[dict[str, Any]]:
    """An ENI on device 1 of node 0 with one secondary address; removed after the test."""
    eni = sim.attach_eni(sim.nodes[0], device=1, SecondaryPrivateIpAddressCount=1)
    yield eni
    sim.ec2.detach_network_interface(AttachmentId=eni["Attachment"]["AttachmentId"])
    sim.ec2.delete_network_interface(NetworkInterfaceId=eni["NetworkInterfaceId"])


def secondary_of(eni: dict[str, Any]) -> str:
    return next(str(a["PrivateIpAddress"]) for a in eni["PrivateIpAddresses"] if not a["Primary"])


def test_primary_interface_is_as_the_machine_image_leaves_it(sim: RunningSim) -> None:
    node = sim.nodes[0]
    found = links(node.namespace)
    assert set(found) == {"lo", "ens5"}
    primary = found["ens5"]
    assert primary["address"] == node.primary_mac
    assert primary["mtu"] == 9001
    addresses = [(a["local"], a["prefixlen"]) for a in primary["addr_info"] if a["family"] == "inet"]
    assert addresses == [(node.primary_address, 24)]
    assert node.run("ip", "route", "show", "default").split()[:5] == ["default", "via", "10.0.0.1", "dev", "ens5"]
    keys = ("ip_forward", "conf.all.rp_filter", "conf.default.rp_filter", "conf.ens5.rp_filter")
    values = [node.run("sysctl", "-n", f"net.ipv4.{key}").strip() for key in keys]
    assert values == ["1", "0", "1", "1"]
    assert any(a["family"] == "inet6" for a in primary["addr_info"])


def test_nodes_reach_each_other_with_jumbo_frames(sim: RunningSim) -> None:
    first, second = sim.nodes
    whole_frame = ("-M", "do", "-s", str(9001 - 28))
    assert first.reaches(second.primary_address, *whole_frame)
    assert second.reaches(first.primary_address, *whole_frame)


def test_an_address_nobody_has_is_silence(sim: RunningSim) -> None:
    node = sim.nodes[0]
    done = in_namespace(node.namespace, "ping", "-n", "-c", "1", "-W", "1", "10.0.77.77", check=False)
    assert "100% packet loss" in done.stdout
    assert "Unreachable" not in done.stdout


def test_attached_eni_appears_as_a_bare_link_and_goes_with_its_detachment(sim: RunningSim) -> None:
    node = sim.nodes[0]
    eni = sim.attach_eni(node, device=1)
    link = links(node.namespace)["ens6"]
    assert link["address"] == eni["MacAddress"]
    assert link["operstate"] == "DOWN"
    assert link["mtu"] == 9001
    assert link["addr_info"] == []
    sim.ec2.detach_network_interface(AttachmentId=eni["Attachment"]["AttachmentId"])
    assert set(links(node.namespace)) == {"lo", "ens5"}
    sim.ec2.delete_network_interface(NetworkInterfaceId=eni["NetworkInterfaceId"])


def test_secondary_eni_carries_its_own_addresses_only(
    sim: RunningSim, second_eni: dict[str, Any], source_on: Callable[[Node, str], None]
) -> None:
    first, second = sim.nodes
    own = secondary_of(second_eni)
    source_on(first, own)
    # Out of the primary ENI the address is not EC2's.
    before = sim.source_drops(first.primary_eni_id)
    assert not first.pings(second.primary_address, source=own)
    assert sim.source_drops(first.primary_eni_id) == before + 1
    # Out of its own ENI it is, and the answer comes back there.
    first.run("ip", "link", "set", "ens6", "up")
    first.run("ip", "route", "add", "10.0.0.1", "dev", "ens6", "table", "2")
    first.run("ip", "route", "add", "default", "via", "10.0.0.1", "dev", "ens6", "table", "2")
    first.run("ip", "rule", "add", "from", own, "lookup", "2")
    try:
        assert first.reaches(second.primary_address, source=own)
        assert sim.source_drops(second_eni["NetworkInterfaceId"]) == 0
        # And a neighbour reaches it without having been spoken to.
        assert second.reaches(own)
        # But the primary's address may not leave by the secondary ENI.
        first.run("ip", "rule", "add", "from", first.primary_address, "lookup", "2")
        assert not first.pings(second.primary_address, source=first.primary_address)
        assert sim.source_drops(second_eni["NetworkInterfaceId"]) > 0
    finally:
        first.run("ip", "rule", "delete", "from", own, check=False)
        first.run("ip", "rule", "delete", "from", first.primary_address, check=False)


@pytest.mark.parametrize("kind", ["address", "prefix"])
def test_assigned_addresses_pass_from_the_answer_on_and_until_they_are_taken_back(
    sim: RunningSim, source_on: Callable[[Node, str], None], kind: str
) -> None:
    first, second = sim.nodes
    eni_id = first.primary_eni_id
    if kind == "address":
        granted = sim.ec2.assign_private_ip_addresses(NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=1)
        source = granted["AssignedPrivateIpAddresses"][0]["PrivateIpAddress"]
        give_back = {"PrivateIpAddresses": [source]}
    else:
        granted = sim.ec2.assign_private_ip_addresses(NetworkInterfaceId=eni_id, Ipv4PrefixCount=1)
        prefix = granted["AssignedIpv4Prefixes"][0]["Ipv4Prefix"]
        source = prefix.replace("/28", "").rpartition(".")[0] + f".{int(prefix.split('.')[3].split('/')[0]) + 5}"
        give_back = {"Ipv4Prefixes": [prefix]}
    source_on(first, source)
    before = sim.source_drops(eni_id)
    assert first.reaches(second.primary_address, source=source)
    assert sim.source_drops(eni_id) == before
    sim.ec2.unassign_private_ip_addresses(NetworkInterfaceId=eni_id, **give_back)
    assert not first.pings(second.primary_address, source=source)
    assert sim.source_drops(eni_id) == before + 1


def test_source_check_can_be_switched_off(sim: RunningSim, source_on: Callable[[Node, str], None]) -> None:
    first, second = sim.nodes
    source_on(first, "10.0.0.200")
    before = sim.source_drops(first.primary_eni_id)
    sim.ec2.modify_network_interface_attribute(
        NetworkInterfaceId=first.primary_eni_id, SourceDestCheck={"Value": False}
    )
    first.pings(second.primary_address, source="10.0.0.200")  # the answer has no way back
    assert sim.source_drops(first.primary_eni_id) == before
    sim.ec2.modify_network_interface_attribute(NetworkInterfaceId=first.primary_eni_id, SourceDestCheck={"Value": True})
    first.pings(second.primary_address, source="10.0.0.200")
    assert sim.source_drops(first.primary_eni_id) == before + 1


def test_address_moves_to_another_eni(sim: RunningSim, source_on: Callable[[Node, str], None]) -> None:
    first, second = sim.nodes
    granted = sim.ec2.assign_private_ip_addresses(
        NetworkInterfaceId=first.primary_eni_id, SecondaryPrivateIpAddressCount=1
    )
    moving = granted["AssignedPrivateIpAddresses"][0]["PrivateIpAddress"]
    sim.ec2.assign_private_ip_addresses(
        NetworkInterfaceId=second.primary_eni_id, PrivateIpAddresses=[moving], AllowReassignment=True
    )
    source_on(second, moving)
    assert second.reaches(first.primary_address, source=moving)
    assert first.reaches(moving)
    sim.ec2.unassign_private_ip_addresses(NetworkInterfaceId=second.primary_eni_id, PrivateIpAddresses=[moving])


def test_internet_sees_primary_addresses_and_no_others(sim: RunningSim, source_on: Callable[[Node, str], None]) -> None:
    node = sim.nodes[1]
    status, body, _ = http_from(node.namespace, INTERNET, "GET", "/")
    assert (status, body.rpartition(":")[0]) == (200, node.primary_address)
    granted = sim.ec2.assign_private_ip_addresses(
        NetworkInterfaceId=node.primary_eni_id, SecondaryPrivateIpAddressCount=1
    )
    private = granted["AssignedPrivateIpAddresses"][0]["PrivateIpAddress"]
    source_on(node, private)
    before, source_drops_before = sim.control("/drops/internet"), sim.control("/drops")
    assert not node.pings(INTERNET, source=private)
    in_namespace(sim.ready["namespaces"]["internet"], "ping", "-n", "-c", "1", "-W", "1", private, check=False)
    assert sim.control("/drops/internet") == {"out": before["out"] + 1, "in": before["in"] + 1}
    assert sim.control("/drops") == source_drops_before
    sim.ec2.unassign_private_ip_addresses(NetworkInterfaceId=node.primary_eni_id, PrivateIpAddresses=[private])


def test_internet_answers_datagrams_with_the_peer_it_saw(sim: RunningSim) -> None:
    node = sim.nodes[0]

    def ask() -> tuple[str, int]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.settimeout(5)
            sender.sendto(b"who am I", (INTERNET, 7777))
            return sender.recv(100).decode(), sender.getsockname()[1]

    answer, port = namespaces.run_inside(node.namespace, ask)
    assert answer == f"{node.primary_address}:{port}\n"


def test_internet_path_is_narrower_than_the_vpc(sim: RunningSim) -> None:
    node = sim.nodes[0]
    done = in_namespace(
        node.namespace, "ping", "-n", "-c", "1", "-W", "1", "-M", "do", "-s", "3000", INTERNET, check=False
    )
    assert "mtu = 1500" in done.stdout


def test_ec2_answers_inside_the_vpc(sim: RunningSim) -> None:
    status, body, _ = http_from(sim.nodes[0].namespace, "203.0.113.20", "GET", "/?Action=DescribeVpcs")
    assert status in {200, 400, 401, 403}
    assert "<?xml" in body


def test_launched_instance_is_a_node_and_a_terminated_one_is_gone(sim: RunningSim) -> None:
    answer = httpx.post(sim.ready["control"] + "/instances", json={"instance_type": "m5.large"}, timeout=30)
    instance_id = answer.raise_for_status().json()["instance_id"]
    node = next(n for n in sim.nodes if n.instance_id == instance_id)
    assert node.namespace == f"{sim.name}-node-2"
    assert node.reaches(sim.nodes[0].primary_address)
    httpx.delete(f"{sim.ready['control']}/instances/{instance_id}", timeout=30).raise_for_status()
    assert node.namespace not in namespaces.names()
    assert instance_id not in {n.instance_id for n in sim.nodes}


def made_by(name: str) -> set[str]:
    return {n for n in namespaces.names() if n.startswith(name)}


def test_sigterm_leaves_nothing(tmp_path: Path) -> None:
    name = unique_name()
    links_before = host_link_names()
    state_file = tmp_path / "sim.json"
    with running_sim("--nodes", "1", "--latency", "none", "--state-file", str(state_file), name=name) as sim:
        assert made_by(name) == {f"{name}-vpc", f"{name}-internet", f"{name}-node-0"}
        assert sim.name in state_file.read_text(encoding="utf-8")
        # A connection that is open must not keep it from going.
        with httpx.Client() as client:
            client.get(sim.ready["control"] + "/nodes")
            sim.process.terminate()
            assert sim.process.wait(STOP_DEADLINE_S) == 0
    assert made_by(name) == set()
    assert not state_file.exists()
    assert not {n for n in host_link_names() - links_before if n.startswith(("eni", "ens", "igw"))}


def test_killed_run_is_cleaned_up_by_name_and_only_that(request: pytest.FixtureRequest) -> None:
    name = unique_name()
    neighbour = f"{name}-node-x"
    namespaces.create(neighbour)
    request.addfinalizer(lambda: namespaces.delete(neighbour))
    with running_sim("--nodes", "1", "--latency", "none", name=name) as sim:
        sim.process.kill()
        sim.process.wait(STOP_DEADLINE_S)
        assert len(made_by(name)) == 4
        for _ in range(2):
            assert run_sim("down", name).returncode == 0
            assert made_by(name) == {neighbour}


def test_start_over_what_a_killed_run_left() -> None:
    name = unique_name()
    with running_sim("--nodes", "2", "--latency", "none", name=name) as killed:
        killed.process.kill()
        killed.process.wait(STOP_DEADLINE_S)
        with running_sim("--nodes", "1", "--latency", "none", name=name) as sim:
            assert made_by(name) == {f"{name}-vpc", f"{name}-internet", f"{name}-node-0"}
            assert sim.nodes[0].reaches(INTERNET)


@pytest.mark.parametrize("verb", ["up", "down"])
def test_living_run_keeps_its_name(sim: RunningSim, verb: str) -> None:
    before = made_by(sim.name)
    refused = run_sim(verb, sim.name)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr == (
        f"A simulated VPC named {sim.name} runs already, as process {sim.process.pid}; end that first.\n"
    )
    assert made_by(sim.name) == before


def test_taken_port_is_refused_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        name = unique_name()
        refused = run_sim("up", name, "--ec2-port", str(taken.getsockname()[1]))
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert made_by(name) == set()


def test_attachment_takes_its_time_with_real_latency() -> None:
    with running_sim("--nodes", "1", "--latency", "real") as sim:
        node = sim.nodes[0]
        created = sim.ec2.create_network_interface(SubnetId=sim.ready["subnets"][0]["subnet_id"])["NetworkInterface"]
        began_s = time.monotonic()
        sim.ec2.attach_network_interface(
            NetworkInterfaceId=created["NetworkInterfaceId"], InstanceId=node.instance_id, DeviceIndex=1
        )
        is_there = "ens6" in links(node.namespace)
        assert not is_there or time.monotonic() - began_s > REALISTIC_TIMINGS.attach_s  # on a machine that is very slow
        eventually(lambda: "ens6" in links(node.namespace), "the link of an attached ENI")
        assert links(node.namespace)["ens6"]["address"] == created["MacAddress"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("no/slash", ()),
        ("", ("--instance-type", "m5.unheard-of")),
        ("", ("--subnet", "10.0.0.0/28", "--nodes", "12")),
        ("", ("--subnet", "192.168.0.0/24")),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(name: str, options: tuple[str, ...]) -> None:
    name = name or unique_name()
    refused = run_sim("up", name, *options)
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert made_by(name) == set()
