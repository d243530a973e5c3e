"""A node of the AWS plugin is taken over and given back under fifty pods with open connections."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from agent.adoption import executor
from agent.adoption.commands import Backend, NatSettings
from agent.adoption.executor import Places
from agent.datapath.kernel import KernelDatapath
from agent.datapath.policy import DatapathPolicy
from agent.errors import InvalidRequest
from agent.ipam.model import AttachmentKey, Holder
from agent.ports.datapath import PodWiring, Repair
from bench import aws_layout
from tests.kernel.acceptance.probe import ANSWER_S, ask
from tests.kernel.acceptance.probe import Path as Route
from tests.kernel.acceptance.world import OTHER_NODE, VPC_CIDR, World, eni_of, instance_of
from tests.kernel.aws_node import STREAM_PORT, TABLE, Streams, aws_node, container_id, kernel_of, pods
from tests.kernel.killed_adoption import Job, runner

PER_ENI = 25
MOST_STEPS = 40
INTERNET = IPv4Address("203.0.113.5")
GAP_S = 0.050
POLICY = DatapathPolicy(names_directory=None)


def nat_of(world: World) -> NatSettings:
    return NatSettings(
        primary_ifname="ens5",
        primary_address=world.places["N"].address,
        exempt=(VPC_CIDR,),
        veth_prefix="eni",
        external_snat=False,
        node_port_support=True,
        snat_port="prng",
        mark=0x80,
    )


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(checkpoint=tmp_path / "ipam.json", aws_node_socket=tmp_path / "ipamd.sock")


@pytest.fixture
def streams() -> Iterator[Streams]:
    made = Streams()
    yield made
    made.stop()


def opened(streams: Streams, world: World) -> None:
    """Every pod to the VPC and to the internet; from the VPC to every tenth; through a node port to one."""
    primary, secondary = pods(PER_ENI)
    for name, address in {**primary, **secondary}.items():
        streams.open(world, f"{name} to the VPC", name, "P", OTHER_NODE, STREAM_PORT)
        streams.open(world, f"{name} to the internet", name, "X", INTERNET, STREAM_PORT)
        if name.endswith("0"):
            streams.open(world, f"from the VPC to {name}", "P", name, address, STREAM_PORT)
    streams.open(world, "node port", "X", "b3", world.places["N"].address, 30080)


NODE_PORT = (
    "nft -f - <<'END'\ntable ip kube-proxy {{ chain in {{ type nat hook prerouting priority dstnat; "
    "ip daddr {node} tcp dport 30080 dnat to {pod}:{port}; }}; }}\nEND\n"
)


@pytest.mark.parametrize("backend", list(aws_layout.Backend), ids=str)
async def test_fifty_pods_keep_their_connections_both_ways(
    backend: aws_layout.Backend, places: Places, streams: Streams
) -> None:
    with aws_node(backend, PER_ENI, places.checkpoint) as world:
        secondary = pods(PER_ENI)[1]
        node_port = NODE_PORT.format(node=world.places["N"].address, pod=secondary["b3"], port=STREAM_PORT)
        world.node.run("sh", "-ec", node_port)
        before, file_before = kernel_of(world), places.checkpoint.read_text()
        opened(streams, world)
        streams.start()
        streams.wait_for(5)

        with world.node.entered():
            await _adopt(world, places)
        streams.wait_for(20)
        assert_paths(world)
        assert_nothing_of_theirs(kernel_of(world))
        assert not places.checkpoint.exists()
        with world.node.entered():
            await _an_agent_finds_them(world)
        streams.wait_for(20)

        with world.node.entered():
            command = Backend.LEGACY if backend is aws_layout.Backend.LEGACY else Backend.NFT
            plan = executor.plan_rollback(places, nat_of(world), command)
            assert plan.refusals == ()
            await executor.give_back(plan, places, time.time_ns())
        streams.wait_for(20)
        assert_paths(world)
        after = kernel_of(world)
        if backend is aws_layout.Backend.IPTABLES_NFT:
            # Given back as version 1.23 has it: connection marks in a table of their own.
            for both in (before, after):
                both["nft"] = [line for line in both["nft"] if "CONNMARK" not in line.split("--comment")[0]]
                both["nft"] = [line for line in both["nft"] if "AWS, CONNMARK" not in line and "outbound" not in line]
                both["nft"] = [line for line in both["nft"] if "AWS-CONNMARK" not in line]
                del both["connmark"], both["tables"]
        assert after == before
        assert places.checkpoint.read_text() == file_before
        assert list(places.checkpoint.parent.iterdir()) == [places.checkpoint]
        assert world.foreign() == world.foreign_before

        assert [(s.name, s.broken) for s in streams.streams if s.broken] == []
        worst = max(streams.streams, key=lambda stream: stream.gap_s)
        assert worst.gap_s < GAP_S, f"{worst.name}: {worst.gap_s * 1000:.0f} ms without an answer"


async def _adopt(world: World, places: Places) -> None:
    plan = executor.plan_adoption(places, nat_of(world))
    assert plan.refusals == ()
    assert len(plan.pods) == 2 * PER_ENI
    datapath = KernelDatapath(POLICY)
    try:
        await executor.adopt(plan, datapath, instance_of(world.enis[0]), places)
    finally:
        datapath.close()


async def _an_agent_finds_them(world: World) -> None:
    """A fresh agent sees every pod, CHECK finds them in order, and a look repairs nothing but what is broken here."""
    repairs: asyncio.Queue[Repair] = asyncio.Queue()
    datapath = KernelDatapath(POLICY)
    running = asyncio.create_task(datapath.run())
    primary, secondary = pods(PER_ENI)
    try:
        datapath.subscribe_repairs(repairs.put_nowait)
        await datapath.prepare_node(instance_of(world.enis[0]))
        for device, eni in enumerate(world.enis):
            await datapath.ensure_eni(eni_of(eni, device))
        seen = await datapath.observe()
        found = {each.holder.key.container_id: each.addresses for each in seen.attachments}
        assert found == {container_id(name): (address,) for name, address in {**primary, **secondary}.items()}
        for name, table_id in (("a3", 254), ("b3", TABLE)):
            key = AttachmentKey(container_id=container_id(name), ifname="eth0")
            holder = Holder(key=key, namespace="default", pod=name)
            place = world.places[name]
            await datapath.check(
                PodWiring(
                    holder=holder, netns=place.netns.path, addresses=(place.address,), table_id=table_id, mtu=9001
                )
            )
        veth = aws_layout.veth_name("default", "a3")
        world.node.write(f"ipv4/conf/{veth}/rp_filter", "2")
        first = await asyncio.wait_for(repairs.get(), 10)
        assert (first.subject, repairs.qsize()) == (f"rp_filter of {veth}", 0)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        datapath.close()


def assert_paths(world: World) -> None:
    """New connections of a pod of each ENI: with its own address inside the VPC, with the node's outside."""
    for client, target, peer in (
        ("a1", "P", "a1"),
        ("b1", "P", "b1"),
        ("a1", "X", "N"),
        ("b1", "X", "N"),
        ("P", "b1", "P"),
    ):
        source, asked = world.places[client], world.places[target]
        route = Route(
            client=source.netns, source=None, target=asked.address, port=8080, server=asked.netns, server_port=8080
        )
        for protocol in ("tcp", "udp", "icmp"):
            answer = ask(protocol, route, ANSWER_S)
            assert answer is not None, f"{client} to {target} by {protocol}"
            assert answer.peer == world.places[peer].address, f"{client} to {target} by {protocol}"


def assert_nothing_of_theirs(kernel: dict[str, list[str]], pod_count: int = 2 * PER_ENI) -> None:
    for place in ("legacy", "nft", "tables"):
        assert [line for line in kernel[place] if "AWS" in line or "aws" in line] == []
    assert len(kernel["rules"]) == len([line for line in kernel["rules"] if not line.startswith(("512:", "1536:"))]) + 3
    assert [line for line in kernel["main"] if " dev eni" in line] == []
    assert len(kernel["pods table"]) == pod_count
    for kept in ("1024:\tfrom all fwmark 0x80/0x80 lookup 254", "32765:\tfrom 10.0.0.20 lookup 2"):
        assert [line.split(" proto ")[0] for line in kernel["rules"] if line.startswith(kept[:6])] == [kept]


def test_a_dry_run_prints_commands_and_changes_nothing(places: Places) -> None:
    with aws_node(aws_layout.Backend.NFT_CONNMARK, 2, places.checkpoint) as world, world.node.entered():
        before = kernel_of(world)
        text = executor.describe(executor.plan_adoption(places, nat_of(world)))
        assert "link set dev eni" in text
        assert f"rule del pref 1536 from 10.0.0.90 lookup {TABLE}" in text
        assert kernel_of(world) == before
        assert places.checkpoint.exists()


DOUBTS = {
    "address without a veth": ("ip link del {veth}", "no host veth"),
    "veth without an address": (
        "ip link add eni0123456789a type veth peer name eth9; ip link set eni0123456789a up",
        "eni0123456789a has no address in the file",
    ),
    "route elsewhere": ("ip route replace 10.0.0.30/32 dev ens5", "table main leads it to ens5"),
    "no rule to it": ("ip rule del pref 512 to 10.0.0.30", "no rule 512 to it"),
    "two rules from it": ("ip rule add pref 1536 from 10.0.0.90 lookup 7", "2 rules 1536 from it"),
    "no such ENI": ("ip rule del pref 1536 from 10.0.0.90; ip rule add pref 1536 from 10.0.0.90 lookup 7", "no ENI's"),
    "somebody's rule": ("ip rule add pref 1536 from 10.0.0.0/24 lookup 7", "rule is in the way"),
    "somebody's mark": ("ip rule add pref 700 fwmark 0x2/0xf lookup 7", "rule is in the way"),
    "branch ENI": (
        (
            "ip link add vlan.eth.7 type veth peer name trunk9; ip link set vlan.eth.7 up; "
            "ip link add vlan0123456789a type veth peer name eth9; ip link set vlan0123456789a up; "
            "ip route add 10.0.1.1 dev vlan.eth.7 scope link table 107; "
            "ip route add default via 10.0.1.1 dev vlan.eth.7 onlink table 107; "
            "ip route add 10.0.1.50 dev vlan0123456789a scope link table 107; "
            "ip rule add pref 10 iif vlan.eth.7 lookup 107; ip rule add pref 10 iif vlan0123456789a lookup 107; "
            "ip rule add pref 20 lookup local; ip rule del pref 0"
        ),
        "security groups for pods",
    ),
    "our group": ("ip link set dev {veth} group 20000", "our group 20000"),
    "an alias": ("ip link set dev {veth} alias mine", "alias 'mine'"),
    "another SNAT": (
        "for do in '-F POSTROUTING' '-F AWS-SNAT-CHAIN-0' '-X AWS-SNAT-CHAIN-0'; do iptables-nft -t nat $do; done",
        "AWS_VPC_K8S_CNI_EXTERNALSNAT",
    ),
}


async def test_a_node_of_an_ipv6_cluster_is_refused(places: Places) -> None:
    with aws_node(aws_layout.Backend.NFT_CONNMARK, 1, places.checkpoint) as world:
        veth = aws_layout.veth_name("default", "a0")
        world.node.run(
            "sh", "-ec", f"ip -6 route add 2600:1f::2/128 dev {veth}; ip -6 rule add pref 512 to 2600:1f::2 lookup main"
        )
        entry = json.loads(places.checkpoint.read_text())
        for each in entry["allocations"]:
            del each["ipv4"]
            each["ipv6"] = "2600:1f::2"
        places.checkpoint.write_text(json.dumps(entry))
        before = kernel_of(world)
        with world.node.entered():
            plan = executor.plan_adoption(places, nat_of(world))
            assert "2600:1f::2" in plan.refusals[0]
            with pytest.raises(InvalidRequest):
                executor.refuse(plan)
        assert kernel_of(world) == before


@pytest.mark.parametrize("doubt", list(DOUBTS))
async def test_any_doubt_is_a_refusal_that_changes_nothing(places: Places, doubt: str) -> None:
    command, reason = DOUBTS[doubt]
    with aws_node(aws_layout.Backend.NFT_CONNMARK, 1, places.checkpoint) as world:
        world.node.run("sh", "-ec", command.format(veth=aws_layout.veth_name("default", "a0")))
        before = kernel_of(world)
        with world.node.entered():
            plan = executor.plan_adoption(places, nat_of(world))
            assert any(reason in why for why in plan.refusals), plan.refusals
            datapath = KernelDatapath(POLICY)
            try:
                with pytest.raises(InvalidRequest):
                    await executor.adopt(plan, datapath, instance_of(world.enis[0]), places)
            finally:
                datapath.close()
        assert kernel_of(world) == before
        assert places.checkpoint.exists()


def test_killed_at_any_step_it_goes_on_from_there(places: Places, streams: Streams) -> None:
    """Both ways, by SIGKILL of the process: the same again ends it, and no pod's connection notices."""
    with aws_node(aws_layout.Backend.NFT_CONNMARK, 2, places.checkpoint) as world, runner(world.node) as process:
        job = Job(
            back=False,
            backend=Backend.NFT,
            nat=nat_of(world),
            instance=instance_of(world.enis[0]),
            places=places,
            dies_at=0,
        )
        before, file_before = kernel_of(world), places.checkpoint.read_text()
        for name, target in (("a0", OTHER_NODE), ("b0", OTHER_NODE), ("a1", INTERNET), ("b1", INTERNET)):
            server = "P" if target == OTHER_NODE else "X"
            streams.open(world, f"{name} to {server}", name, server, target, STREAM_PORT)
        streams.start()
        steps = {False: 0, True: 0}
        gaps_s: dict[tuple[int, bool, bool], float] = {}
        for step in range(1, MOST_STEPS):
            # Each way, killed at this step, then the same again; at every third step also the other way.
            turns = [(False, True)] * (step % 3 == 0) + [(False, False)]
            turns += [(True, False)] * (step % 3 == 0) + [(True, True)]
            for back, then in turns:
                died = process.dies(replace(job, back=back, dies_at=step))
                steps[back] = step if died else steps[back]
                streams.wait_for(2)
                if back and not then and not places.checkpoint.exists():
                    # Without the file a take-over is refused: the way back comes to its end first.
                    with world.node.entered():
                        plan = executor.plan_adoption(places, nat_of(world))
                    assert "do --rollback again" in plan.refusals[0]
                    assert not process.dies(replace(job, back=True))
                taken_over = not back and not then and not places.checkpoint.exists()
                if (died or back != then) and not taken_over:
                    assert not process.dies(replace(job, back=then))
                streams.wait_for(2)
                gaps_s[step, back, then] = streams.worst_gap_s()
                found = kernel_of(world)
                if not then:
                    assert_nothing_of_theirs(found, pod_count=4)
                    assert not places.checkpoint.exists()
                    continue
                assert found == before, f"killed at step {step}"
                assert places.checkpoint.read_text() == file_before
                assert list(places.checkpoint.parent.iterdir()) == [places.checkpoint]
            if step > max(steps.values()):
                break
        assert min(steps.values()) >= 12, steps
        streams.wait_for(2)
        assert [(s.name, s.broken) for s in streams.streams if s.broken] == []
        assert max(gaps_s.values()) < GAP_S, {turn: gap_s for turn, gap_s in gaps_s.items() if gap_s >= GAP_S}
        assert world.foreign() == world.foreign_before
