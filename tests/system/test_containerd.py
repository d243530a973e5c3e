"""A real containerd runs pod sandboxes through our plugin, as a kubelet asks it to, and packets flow."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import agent_api, echo
from lab.lab import Lab, LabNode
from lab.pods import SHIM, delete_namespace, make_namespace
from tests.system import containerd as runtime
from tests.system import three_truths as truths
from tests.system.conftest import LabFactory
from tests.system.containerd import PLUGINS, Containerd, ContainerdPlan
from tests.system.cri import CriFailed, SandboxState, SandboxStatus
from tests.system.eventually import eventually_equal
from tests.system.plugin_process import in_parallel

PARALLEL_COUNT = 20
"""With two addresses kept warm, most of them wait for EC2. A t3.xlarge has four ENIs with 14 pod addresses each (EC2
User Guide, "IP addresses per network interface per instance type"): room for them all while others still cool."""


@pytest.fixture(scope="module")
def requires_containerd(requires_root: None) -> None:
    """Skip where Debian's container packages are not installed."""
    if lacking := runtime.missing():
        pytest.skip(f"needs containerd, runc, busybox-static and containernetworking-plugins; not found: {lacking}")


@pytest.fixture(scope="module")
def vpc(requires_containerd: None, lab: LabFactory) -> Lab:
    """What cools is seen to cool, however slow the machine is."""
    return lab(instance_type="t3.xlarge", agent_environment={"WARM_IP_TARGET": "2", "IP_COOLDOWN_PERIOD": "600"})


@pytest.fixture(scope="module")
def containerd(vpc: Lab, node: LabNode) -> Iterator[Containerd]:
    plan = ContainerdPlan(
        name=f"{vpc.plan.name}-ctd",
        netns=truths.netns(node),
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
    first, second = containerd.run_pod("first"), containerd.run_pod("second")

    assert len(_wiring(node)) == 6
    assert (first.state, len(first.addresses)) == (SandboxState.READY, 1)
    assert truths.allocations(node) == {first.sandbox_id: _address(first), second.sandbox_id: _address(second)}
    _ping(truths.netns(node), _address(first))
    _ping(truths.netns(node), _address(second))
    with (
        echo.Running(second.netns, "serve", str(echo.PORT)),
        echo.Running(first.netns, "hold", _address(second), str(echo.PORT)) as client,
    ):
        assert client.greeting == _address(first), "the source the other pod saw"
        assert client.ask("hello") == "hello"

    in_parallel(containerd.remove_pod, [first.sandbox_id, second.sandbox_id])

    assert truths.allocations(node) == {}
    assert {_address(first), _address(second)} <= truths.cooling(node)
    eventually_equal(lambda: _wiring(node), [])


def test_the_agent_learns_which_pod_it_is(node: LabNode, containerd: Containerd) -> None:
    pod = containerd.run_pod("web-0", namespace="shop")
    try:
        (allocation,) = agent_api.get(node.socket, "/v1/allocations?namespace=shop&pod=web-0")
        assert (allocation["container_id"], allocation["ifname"]) == (pod.sandbox_id, "eth0")
        assert allocation["addresses"] == [_address(pod)]
        (link,) = json.loads(
            truths.run_in(truths.netns(node), "ip", "-json", "link", "show", "dev", allocation["host_ifname"])
        )
        assert link["ifalias"] == f"enoki {pod.sandbox_id} eth0 shop/web-0"
    finally:
        containerd.remove_pod(pod.sandbox_id)


def test_a_host_port_and_a_limit_arrive_by_the_runtime(node: LabNode, containerd: Containerd) -> None:
    limits = {"kubernetes.io/ingress-bandwidth": "100M", "kubernetes.io/egress-bandwidth": "50M"}
    pod = containerd.run_pod("web-0", namespace="shop", host_ports={8080: echo.PORT}, annotations=limits)
    try:
        with (
            echo.Running(pod.netns, "serve", str(echo.PORT)),
            echo.Running(str(truths.netns(node)), "hold", "127.0.0.1", "8080") as client,
        ):
            assert client.ask("hello") == "hello"
        (allocation,) = agent_api.get(node.socket, "/v1/allocations?namespace=shop&pod=web-0")
        host_end = truths.run_in(truths.netns(node), "tc", "qdisc", "show", "dev", allocation["host_ifname"])
        assert "tbf" in host_end
        assert "rate 100Mbit" in host_end
        assert "rate 50Mbit" in truths.run_in(Path(pod.netns), "tc", "qdisc", "show", "dev", "eth0")
        with pytest.raises(CriFailed, match=r"host_port_taken: host port \*:8080/tcp belongs to shop/web-0"):
            containerd.run_pod("web-1", namespace="shop", host_ports={8080: 80})
    finally:
        containerd.remove_pod(pod.sandbox_id)
    assert "8080" not in truths.run_in(truths.netns(node), "nft", "list", "map", "inet", "enoki", "hostport4")


def test_twenty_sandboxesin_parallel(vpc: Lab, node: LabNode, containerd: Containerd) -> None:
    eventually_equal(lambda: _wiring(node), [])

    pods = in_parallel(containerd.run_pod, [f"web-{number}" for number in range(PARALLEL_COUNT)])

    addresses = {_address(pod) for pod in pods}
    assert len(addresses) == PARALLEL_COUNT
    assert truths.allocations(node) == {pod.sandbox_id: _address(pod) for pod in pods}
    assert addresses <= truths.Ec2(vpc).pod_addresses(node)
    in_parallel(lambda pod: _ping(truths.netns(node), _address(pod)), pods)
    in_parallel(lambda pod: _ping(Path(pods[0].netns), _address(pod)), pods[1:])

    in_parallel(containerd.remove_pod, [pod.sandbox_id for pod in pods])

    counts = agent_api.get(node.socket, "/v1/pool")["counts"]
    assert (truths.allocations(node), counts["held_count"], counts["quarantined_count"]) == ({}, 0, 0)
    assert counts["cooling_count"] >= PARALLEL_COUNT
    assert addresses <= truths.cooling(node)
    eventually_equal(lambda: _wiring(node), [])
    assert not any(vpc.source_check_drops().values())


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

    # Its namespace is gone, or goes, so nobody holds the address.
    eventually_equal(lambda: truths.allocations(node), {})
    again = containerd.run_pod("early")
    _ping(truths.netns(node), _address(again))
    containerd.remove_pod(again.sandbox_id)
    assert truths.allocations(node) == {}


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


def _address(pod: SandboxStatus) -> str:
    (address,) = pod.addresses
    return str(address)


def _wiring(node: LabNode) -> list[str]:
    """What pods leave in a node's namespace: host veths, pod routes, permanent neighbours."""
    netns = truths.netns(node)
    neighbours = truths.run_in(netns, "ip", "neighbour", "show", "nud", "permanent").splitlines()
    return sorted([*truths.host_links(node), *truths.pod_routes(node), *neighbours])


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
    truths.run_in(netns, "ping", "-q", "-c", "1", "-W", "5", address)
