"""The AWS plugin itself runs on the simulated VPC, unmodified, and a node that it has run becomes ours and goes back.

Skipped where its programs are not given (CONTRIBUTING.md, "Beside the AWS plugin").
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from typing import Any

import httpx
import pytest

from lab.agent_api import get
from lab.lab import REPOSITORY, LabPlan
from lab.pods import CniFailed, Pod, delete_namespace
from tests.kernel.aws_node import STREAM_PORT, Streams
from tests.kernel.datapath_node import Netns
from tests.system.aws_plugin import AwsPlugin, NodesOnly, aws_plugins, why_not
from tests.system.eventually import eventually

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")

INTERNET = IPv4Address("203.0.113.5")
GAP_S = 0.050
PER_NODE = 14
"""m5.large has 9 addresses per ENI: some pods are on the second one."""


@contextmanager
def nodes(settings: dict[str, str], *, count: int = 2, iptables: str = "nft") -> Iterator[list[AwsPlugin]]:
    """Nodes that the AWS plugin runs."""
    lab = NodesOnly(LabPlan(name=f"aws{os.getpid():x}", node_count=count, instance_type="m5.large", latency="none"))
    with ExitStack() as ends:
        ends.callback(lab.down)
        lab.up()
        plugins = ends.enter_context(aws_plugins(lab, settings, iptables=iptables))
        yield plugins


def a_pod(plugin: AwsPlugin, name: str) -> Pod:
    return Pod(container_id=f"{plugin.lab.plan.name}-pod-{name}", name=name, socket=plugin.node.socket)


def added(plugin: AwsPlugin, name: str) -> tuple[Pod, IPv4Address]:
    """A pod with an address; an ADD that finds none is repeated, as a kubelet does."""
    pod = a_pod(plugin, name)

    def tried() -> str:
        try:
            return plugin.add(pod)
        except CniFailed:
            delete_namespace(pod.container_id)
            return ""

    return pod, IPv4Address(eventually(tried, bool, deadline_s=60.0))


def refused_calls(plugin: AwsPlugin) -> list[tuple[str, str]]:
    answer = httpx.get(f"{plugin.lab.announced['control']}/calls", timeout=10)
    return [(one["action"], one["outcome"]) for one in answer.json()["calls"] if one["outcome"] != "ok"]


def enis_of(plugin: AwsPlugin) -> dict[str, Any]:
    """What its agent says about its ENIs, by id; in newer versions for each network card."""
    said = plugin.introspect("/v1/enis")
    found: dict[str, Any] = (said if "ENIs" in said else next(iter(said.values())))["ENIs"]
    return found


def test_it_serves_pods_on_the_simulated_vpc() -> None:
    """Pods of two nodes on primary and secondary ENIs reach each other and the internet; nothing EC2 refuses."""
    with nodes({"WARM_ENI_TARGET": "1"}) as plugins:
        made = [added(plugins[n % 2], f"p{n}") for n in range(2 * PER_NODE)]
        assert len({address for _, address in made}) == len(made)
        assert all(len(enis_of(plugin)) >= 2 for plugin in plugins)
        for number, (pod, _) in enumerate(made):
            other = made[-1 - number][1]
            assert pod.run("ping", "-c", "1", "-W", "5", str(other)).returncode == 0, f"{pod.name} to {other}"
            seen = pod.run("curl", "-s", "-m", "5", f"http://{INTERNET}/").stdout
            assert seen.startswith(f"{plugins[number % 2].node.primary_address}:"), f"{pod.name} to the internet"
        assert set(plugins[0].lab.source_check_drops().values()) == {0}
        assert refused_calls(plugins[0]) == []
        plugins[0].stop()
        plugins[0].start()
        for pod, _ in made:
            plugins[int(pod.name[1:]) % 2].delete(pod)


@pytest.mark.parametrize("backend", ["nft", "legacy"])
def test_a_node_it_has_run_becomes_ours_and_goes_back(backend: str) -> None:
    with ExitStack() as ends:
        plugins = ends.enter_context(nodes({"WARM_ENI_TARGET": "1"}, iptables=backend))
        plugin, other = plugins
        pods = [added(plugin, f"p{n}") for n in range(PER_NODE)]
        peer, peer_address = added(other, "peer")
        streams = Streams()
        ends.callback(streams.stop)
        internet = Netns(name=plugin.lab.announced["namespaces"]["internet"])
        for pod, address in pods:
            netns, far = Netns(name=pod.container_id), Netns(name=peer.container_id)
            streams.connect(f"{pod.name} to the other node", netns, far, peer_address, STREAM_PORT)
            streams.connect(f"{pod.name} to the internet", netns, internet, INTERNET, STREAM_PORT)
            streams.connect(f"the other node to {pod.name}", far, netns, address, STREAM_PORT)
        streams.start()
        streams.wait_for(5)
        streams.worst_gap_s()

        before, file_before = layout(plugin), (plugin.directory / "ipam.json").read_text()
        plugin.stop()
        assert adopt(plugin, "--dry-run").returncode == 0
        assert layout(plugin) == before
        done = adopt(plugin, "--apply")
        assert done.returncode == 0, done.stderr
        streams.wait_for(20)
        after = layout(plugin)
        assert not [line for line in (*after["iptables"], *after["nft"]) if "AWS" in line or "aws-cni" in line]
        assert not [line for line in after["rules"] if line.split()[0] in {"512:", "1536:"} and "proto" not in line]

        gaps = {"adopted": streams.worst_gap_s()}
        plugin.lab.start_our_agents([0])
        held = {one["pod"]: one["addresses"][0] for one in get(plugin.node.socket, "/v1/allocations")}
        assert held == {pod.name: str(address) for pod, address in pods}
        fresh = a_pod(plugin, "fresh")
        fresh_address = IPv4Address(fresh.start())
        assert fresh.run("ping", "-c", "1", "-W", "5", str(peer_address)).returncode == 0
        leaving, _ = pods.pop()
        streams.forget(leaving.name)
        leaving.stop()
        assert leaving.name not in {one["pod"] for one in get(plugin.node.socket, "/v1/allocations")}
        streams.wait_for(20)
        gaps["ours"] = streams.worst_gap_s()
        plugin.lab.stop_agent(0)

        done = adopt(plugin, "--rollback", "--backend", f"iptables-{backend}")
        assert done.returncode == 0, done.stderr
        streams.wait_for(20)
        gaps["given back"] = streams.worst_gap_s()
        given_back = layout(plugin)
        if not any("AWS CONNMARK CHAIN, VPC CIDR" in line for line in before["iptables"]):  # as older versions say it
            assert (given_back["iptables"], given_back["nft"]) == (before["iptables"], before["nft"])
        again = {
            one["containerID"]: one for one in json.loads((plugin.directory / "ipam.json").read_text())["allocations"]
        }
        was = {one["containerID"]: one for one in json.loads(file_before)["allocations"]}
        assert again.keys() == was.keys() - {leaving.container_id} | {fresh.container_id}
        assert all(again[key] == was[key] for key in again.keys() & was.keys())
        plugin.start()
        assert layout(plugin)["rules"] == given_back["rules"]
        known = {
            key
            for eni in enis_of(plugin).values()
            for cidr in eni["AvailableIPv4Cidrs"].values()
            for key in cidr["IPAddresses"]
        }
        assert {str(address) for address in (*(address for _, address in pods), fresh_address)} <= known
        for pod, _ in pods:
            seen = pod.run("curl", "-s", "-m", "5", f"http://{INTERNET}/").stdout
            assert seen.startswith(f"{plugin.node.primary_address}:"), f"{pod.name} to the internet"
        streams.wait_for(20)
        assert [stream.broken for stream in streams.streams if stream.broken] == []
        # What their agent's own restart does to its rules is not ours to judge.
        assert max(gaps.values()) < GAP_S, gaps
        streams.stop()
        for pod in (*(pod for pod, _ in pods), fresh):
            plugin.delete(pod)
        assert json.loads((plugin.directory / "ipam.json").read_text())["allocations"] == []


def adopt(plugin: AwsPlugin, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m agent adopt`, with the agent's own settings, on the node."""
    argv = [
        "nsenter",
        f"--net=/run/netns/{plugin.node.namespace}",
        "--",
        sys.executable,
        "-m",
        "agent",
        "adopt",
        *arguments,
    ]
    argv += ["--checkpoint", str(plugin.directory / "ipam.json")]
    argv += ["--aws-node-socket", str(plugin.directory / "ipamd.sock")]
    return subprocess.run(
        argv,
        env=plugin.lab.agent_environment(plugin.node),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def layout(plugin: AwsPlugin) -> dict[str, list[str]]:
    """Everything of the node's kernel that either of us writes, as lines without counters."""
    commands = {
        "rules": "ip -N rule show",
        "routes": "ip -N route show table all type unicast | grep -v '^fe80\\|^multicast'",
        "iptables": f"iptables-{plugin.iptables}-save | grep -v '^[#:]'",
        "nft": "nft list tables; nft list table ip aws-cni 2>/dev/null | sed 's/packets [0-9]* bytes [0-9]*//'",
    }
    return {name: sorted(plugin.run("sh", "-c", f"{text} || true").splitlines()) for name, text in commands.items()}
