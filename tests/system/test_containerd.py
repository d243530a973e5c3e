"""A real containerd runs pod sandboxes through our plugin, as a kubelet asks it to, and packets flow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import boto3
import httpx
import pytest

from lab import agent_api, echo
from lab.lab import Lab, LabNode
from lab.pods import SHIM, delete_namespace, make_namespace
from tests.system import containerd as runtime
from tests.system.conftest import LabFactory
from tests.system.containerd import PLUGINS, Containerd, ContainerdPlan
from tests.system.cri import CriFailed, SandboxState, SandboxStatus

T = TypeVar("T")

POD_TABLE = "20512"
PARALLEL_COUNT = 20
"""With two addresses kept warm, most of them wait for EC2. A t3.xlarge has four ENIs with 14 pod addresses each (EC2
User Guide, "IP addresses per network interface per instance type"): room for them all while others still cool."""
COMMAND_DEADLINE_S = 20.0
SETTLE_DEADLINE_S = 10.0


@pytest.fixture(scope="module")
def requires_containerd(requires_root: None) -> None:
    """Skip where Debian's container packages are not installed."""
    if lacking := runtime.missing():
        pytest.skip(f"needs containerd, runc, busybox-static and containernetworking-plugins; not found: {lacking}")


@pytest.fixture(scope="module")
def vpc(requires_containerd: None, lab: LabFactory) -> Lab:
    return lab(instance_type="t3.xlarge", agent_environment={"WARM_IP_TARGET": "2"})


@pytest.fixture(scope="module")
def node(vpc: Lab) -> LabNode:
    return vpc.nodes[0]


@pytest.fixture(scope="module")
def containerd(vpc: Lab, node: LabNode) -> Iterator[Containerd]:
    plan = ContainerdPlan(
        name=f"{vpc.plan.name}-ctd",
        netns=_netns(node),
        network={
            "cniVersion": "1.0.0",
            "name": "enoki",
            "plugins": [{"type": "enoki", "capabilities": {"portMappings": True, "bandwidth": True}}],
        },
        plugins={"enoki": SHIM},
        environment={"ENOKI_SOCKET": str(node.socket)},
    )
    with Containerd(plan) as running:
        yield running


def test_one_sandbox_gets_an_address(node: LabNode, containerd: Containerd) -> None:
    before = _wiring(node)

    first, second = containerd.run_pod("first"), containerd.run_pod("second")

    assert len(_wiring(node)) > len(before)
    assert (first.state, len(first.addresses)) == (SandboxState.READY, 1)
    assert _held(node) == {first.sandbox_id: _address(first), second.sandbox_id: _address(second)}
    _ping(_netns(node), _address(first))
    _ping(_netns(node), _address(second))
    with (
        echo.Running(second.netns, "serve", str(echo.PORT)),
        echo.Running(first.netns, "hold", _address(second), str(echo.PORT)) as client,
    ):
        assert client.greeting == _address(first), "the source the other pod saw"
        assert client.ask("hello") == "hello"

    _in_parallel(containerd.remove_pod, [first.sandbox_id, second.sandbox_id])

    assert _held(node) == {}
    assert {_address(first), _address(second)} <= _cooling(node)
    _eventually(lambda: _wiring(node), before)


def test_the_agent_learns_which_pod_it_is(node: LabNode, containerd: Containerd) -> None:
    pod = containerd.run_pod("web-0", namespace="shop")
    try:
        (allocation,) = agent_api.get(node.socket, "/v1/allocations?namespace=shop&pod=web-0")
        assert (allocation["container_id"], allocation["ifname"]) == (pod.sandbox_id, "eth0")
        assert allocation["addresses"] == [_address(pod)]
        (link,) = json.loads(_in(_netns(node), "ip", "-json", "link", "show", "dev", allocation["host_ifname"]))
        assert link["ifalias"] == f"enoki {pod.sandbox_id} eth0 shop/web-0"
    finally:
        containerd.remove_pod(pod.sandbox_id)


def test_a_host_port_and_a_limit_arrive_by_the_runtime(node: LabNode, containerd: Containerd) -> None:
    limits = {"kubernetes.io/ingress-bandwidth": "100M", "kubernetes.io/egress-bandwidth": "50M"}
    pod = containerd.run_pod("web-0", namespace="shop", host_ports={8080: echo.PORT}, annotations=limits)
    try:
        with (
            echo.Running(pod.netns, "serve", str(echo.PORT)),
            echo.Running(str(_netns(node)), "hold", "127.0.0.1", "8080") as client,
        ):
            assert client.ask("hello") == "hello"
        (allocation,) = agent_api.get(node.socket, "/v1/allocations?namespace=shop&pod=web-0")
        host_end = _in(_netns(node), "tc", "qdisc", "show", "dev", allocation["host_ifname"])
        assert "tbf" in host_end
        assert "rate 100Mbit" in host_end
        assert "rate 50Mbit" in _in(Path(pod.netns), "tc", "qdisc", "show", "dev", "eth0")
        with pytest.raises(CriFailed, match=r"host_port_taken: host port \*:8080/tcp belongs to shop/web-0"):
            containerd.run_pod("web-1", namespace="shop", host_ports={8080: 80})
    finally:
        containerd.remove_pod(pod.sandbox_id)
    assert "8080" not in _in(_netns(node), "nft", "list", "map", "inet", "enoki", "hostport4")


def test_twenty_sandboxes_in_parallel(vpc: Lab, node: LabNode, containerd: Containerd) -> None:
    before = _wiring(node)

    pods = _in_parallel(containerd.run_pod, [f"web-{number}" for number in range(PARALLEL_COUNT)])

    addresses = {_address(pod) for pod in pods}
    assert len(addresses) == PARALLEL_COUNT
    assert _held(node) == {pod.sandbox_id: _address(pod) for pod in pods}
    assert addresses <= _secondary_addresses_in_ec2(vpc, node)
    _in_parallel(lambda pod: _ping(_netns(node), _address(pod)), pods)
    _in_parallel(lambda pod: _ping(Path(pods[0].netns), _address(pod)), pods[1:])

    _in_parallel(containerd.remove_pod, [pod.sandbox_id for pod in pods])

    counts = agent_api.get(node.socket, "/v1/pool")["counts"]
    assert (_held(node), counts["held_count"], counts["quarantined_count"]) == ({}, 0, 0)
    assert counts["cooling_count"] >= PARALLEL_COUNT
    assert addresses <= _cooling(node)
    _eventually(lambda: _wiring(node), before)
    assert not any(_source_check_drops(vpc).values())


def test_a_stopped_agent_fails_starts_and_hinders_no_stop(vpc: Lab, node: LabNode, containerd: Containerd) -> None:
    leaving = containerd.run_pod("leaving")
    vpc.stop_agent(node.index)
    try:
        containerd.remove_pod(leaving.sandbox_id)
        with pytest.raises(CriFailed, match="the node agent is not there"):
            containerd.run_pod("early")
        assert [sandbox for sandbox in containerd.cri.sandboxes() if sandbox.state is SandboxState.READY] == []
    finally:
        vpc.start_agents([node.index])

    assert _held(node) == {}, "its namespace is gone, so nobody holds the address"
    again = containerd.run_pod("early")
    _ping(_netns(node), _address(again))
    containerd.remove_pod(again.sandbox_id)
    assert _held(node) == {}


def test_a_killed_containerd_leaves_nothing(requires_containerd: None) -> None:
    """The harness itself, with the CNI project's plugins: shims and sandboxes outlive containerd by design."""
    name = f"ek{os.getpid():x}-ptp"
    range_of_addresses = {
        "type": "host-local",
        "dataDir": f"/run/{name}/ipam",
        "ranges": [[{"subnet": "10.99.0.0/24"}]],
    }
    make_namespace(name)
    try:
        plan = ContainerdPlan(
            name=name,
            netns=Path("/run/netns") / name,
            network={"cniVersion": "1.0.0", "name": "peer", "plugins": [{"type": "ptp", "ipam": range_of_addresses}]},
            plugins={plugin: PLUGINS / plugin for plugin in ("ptp", "host-local")},
            environment={},
        )
        with Containerd(plan) as containerd:
            pods = [containerd.run_pod("first"), containerd.run_pod("second")]
            _ping(Path(pods[0].netns), _address(pods[1]))
            assert _traces_of(name) != []
            os.kill(containerd.pid, signal.SIGKILL)
        assert _traces_of(name) == []
    finally:
        delete_namespace(name)


def _netns(node: LabNode) -> Path:
    return Path("/run/netns") / node.namespace


def _address(pod: SandboxStatus) -> str:
    (address,) = pod.addresses
    return str(address)


def _held(node: LabNode) -> dict[str, str]:
    """Container id to address, as the agent says."""
    return {item["container_id"]: item["addresses"][0] for item in agent_api.get(node.socket, "/v1/allocations")}


def _cooling(node: LabNode) -> set[str]:
    """The kernel's cooldown set."""
    listed = json.loads(_in(_netns(node), "nft", "--json", "list", "set", "inet", "enoki", "cooling"))
    (found,) = (item["set"] for item in listed["nftables"] if "set" in item)
    return {item["elem"]["val"] for item in found.get("elem", [])}


def _wiring(node: LabNode) -> list[str]:
    """What pods leave in a node's namespace: host veths, pod routes, permanent neighbours."""
    netns = _netns(node)
    links = [link["ifname"] for link in json.loads(_in(netns, "ip", "-json", "link")) if link["ifname"][:3] == "eni"]
    # The table exists only while it holds a route; asking for it fails without one.
    routes = _in(netns, "ip", "route", "show", "table", POD_TABLE, check=False).splitlines()
    return sorted([*links, *routes, *_in(netns, "ip", "neighbour", "show", "nud", "permanent").splitlines()])


def _secondary_addresses_in_ec2(vpc: Lab, node: LabNode) -> set[str]:
    ec2 = boto3.client(
        "ec2",
        region_name="us-west-2",
        endpoint_url=vpc.announced["ec2_endpoint"],
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )
    of_node = [{"Name": "attachment.instance-id", "Values": [node.instance_id]}]
    enis = ec2.describe_network_interfaces(Filters=of_node)["NetworkInterfaces"]
    addresses = [address for eni in enis for address in eni["PrivateIpAddresses"]]
    return {address["PrivateIpAddress"] for address in addresses if not address["Primary"]}


def _source_check_drops(vpc: Lab) -> dict[str, int]:
    """Packets the VPC dropped because EC2 does not know their (ENI, source), by ENI."""
    drops: dict[str, int] = httpx.get(f"{vpc.announced['control']}/drops", timeout=COMMAND_DEADLINE_S).json()
    assert drops, "the simulator counts for every ENI"
    return drops


def _traces_of(name: str) -> list[str]:
    """Processes, mounts, cgroups, directories and shim sockets that carry a name."""
    found = [str(path) for path in [Path("/run") / name, *Path("/sys/fs/cgroup").rglob(name)] if path.exists()]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"/run/{name}/" in line]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if f"/run/{name}/" in command:
            found.append(command)
    return found


def _ping(netns: Path, address: str) -> None:
    _in(netns, "ping", "-q", "-c", "1", "-W", "5", address)


def _in(netns: Path, *argv: str, check: bool = True) -> str:
    done = subprocess.run(
        ["nsenter", f"--net={netns}", "--", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_DEADLINE_S,
    )
    assert done.returncode == 0 or not check, f"{argv} in {netns}: {done.stdout}{done.stderr}"
    return done.stdout


def _in_parallel(do: Callable[[Any], T], items: Sequence[Any]) -> list[T]:
    """All at once; the first failure is raised after all have ended."""
    with ThreadPoolExecutor(len(items)) as threads:
        return list(threads.map(do, items))


def _eventually(read: Callable[[], T], wanted: T) -> None:
    """The kernel takes a namespace and its veths away some time after the last process has left it."""
    deadline = time.monotonic() + SETTLE_DEADLINE_S
    while read() != wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    assert read() == wanted
