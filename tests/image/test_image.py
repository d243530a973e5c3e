"""The image, run by a containerd as the DaemonSet says, on a node of the lab whose host directories are its own.

Built by `make test-image`, which takes minutes the first time; without it this module skips.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import agent_api
from lab.lab import REPOSITORY, Lab, LabNode
from tests.image.host import ARCHIVE, IMAGE, Host, snapshotter
from tests.image.kubelet import EXITED, ManifestPod, Place
from tests.system import containerd as runtime
from tests.system import three_truths as truths
from tests.system.conftest import LabFactory, lab, requires_root  # noqa: F401  # fixtures
from tests.system.containerd import Containerd, ContainerdPlan
from tests.system.cri import SandboxConfig
from tests.system.eventually import eventually, eventually_equal

MANIFEST = REPOSITORY / "deploy" / "kustomize" / "base" / "daemonset.yaml"
LONG_S = 90.0
"""Of a step that unpacks the image."""
SYSTEMD = {
    "/etc/systemd/networkd.conf.d/80-local.conf": "[Network]\nManageForeignRoutes=no\n",
    "/usr/lib/systemd/network/99-default.link": "[Match]\nOriginalName=*\n[Link]\nMACAddressPolicy=persistent\n",
    "/run/systemd/netif/state": "OPER_STATE=routable\n",
}
"""A host whose systemd-networkd leaves routes alone, and not rules."""


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    """The manifest itself, not a copy."""
    found: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())["spec"]["template"]["spec"]
    return found


@pytest.fixture(scope="module")
def vpc(requires_root: None, lab: LabFactory) -> Lab:  # noqa: F811
    if not ARCHIVE.exists():
        pytest.skip("needs the image: run `make test-image`")
    if lacking := runtime.missing():
        pytest.skip(f"needs a containerd; not found: {lacking}")
    vpc = lab(instance_type="t3.small", agent_environment={"WARM_IP_TARGET": "2"})
    vpc.stop_agent(0)
    return vpc


@pytest.fixture(scope="module")
def node(vpc: Lab) -> LabNode:
    return vpc.nodes[0]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(root=tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def containerd(vpc: Lab, node: LabNode, host: Host) -> Iterator[Containerd]:
    """As a node's: its CNI directories are the host's, its pods' namespaces are in /run/netns."""
    for path in ("/etc/cni/net.d", "/opt/cni/bin", "/run/enoki"):
        host.path(path).mkdir(parents=True)
    for path, text in SYSTEMD.items():
        host.path(path).parent.mkdir(parents=True, exist_ok=True)
        host.path(path).write_text(text)
    plan = ContainerdPlan(
        name=f"{vpc.plan.name}-img",
        netns=Path("/run/netns") / node.namespace,
        network=host.path("/etc/cni/net.d"),
        plugins={"enoki": host.path("/opt/cni/bin") / "enoki"},
        environment={"ENOKI_SOCKET": str(host.path("/run/enoki") / "agent.sock")},
        netns_in_run=True,
        snapshotter=snapshotter(),
        network_comes_later=True,
    )
    with Containerd(plan) as running:
        running.import_image(ARCHIVE, IMAGE)
        yield running


@pytest.fixture(scope="module")
def pod(vpc: Lab, spec: dict[str, Any], host: Host, containerd: Containerd) -> Iterator[ManifestPod]:
    place = Place(
        cri=containerd.cri,
        image=IMAGE,
        host=host.path,
        environment={"AWS_ENDPOINT_URL_EC2": vpc.announced["ec2_endpoint_in_vpc"], "WARM_IP_TARGET": "2"},
    )
    sandbox = SandboxConfig(
        name="enoki",
        namespace="kube-system",
        uid=str(uuid.uuid4()),
        cgroup_parent=f"/{containerd.plan.name}",
        log_directory=containerd.directory / "pods" / "kube-system_enoki",
    )
    running = ManifestPod(place, spec, sandbox)
    try:
        yield running
    finally:
        running.remove()


def test_the_daemon_set_makes_a_node_ready_and_its_containerd_makes_pods(
    vpc: Lab, node: LabNode, spec: dict[str, Any], host: Host, containerd: Containerd, pod: ManifestPod
) -> None:
    (install,), (agent,) = spec["initContainers"], spec["containers"]
    socket = host.path("/run/enoki") / "agent.sock"
    published = host.path("/etc/cni/net.d") / "05-enoki.conflist"

    installing = pod.start(install)
    assert eventually(lambda: pod.state(installing), lambda state: state[0] == EXITED, deadline_s=LONG_S) == (
        EXITED,
        0,
    ), pod.log(install)
    assert (host.path("/opt/cni/bin") / "enoki").stat().st_mode & 0o777 == 0o755
    assert not containerd.is_network_ready()

    running = pod.start(agent)
    try:
        ready = agent["readinessProbe"]
        eventually(
            lambda: pod.execute(running, ready["exec"]["command"], timeout_s=ready["timeoutSeconds"]).exit_code,
            lambda code: code == 0,
            deadline_s=LONG_S,
        )
    except AssertionError as exc:
        raise AssertionError(pod.log(agent)) from exc
    alive = agent["livenessProbe"]
    assert pod.execute(running, alive["exec"]["command"], timeout_s=alive["timeoutSeconds"]).exit_code == 0
    asked = pod.execute(running, ["enokictl", "pool"], timeout_s=ready["timeoutSeconds"])
    assert asked.exit_code == 0, asked
    checks = {one["name"]: one["verdict"] for one in agent_api.get(socket, "/v1/doctor")["checks"]}
    assert checks["networkd_foreign_routes"] == checks["udev_mac_policy"] == checks["nm_cloud_setup"] == "ok"
    assert checks["networkd_foreign_rules"] == "failing"
    eventually(published.exists, bool)
    eventually_equal(containerd.is_network_ready, True)

    first, second = containerd.run_pod("first"), containerd.run_pod("second")
    held = {one["container_id"]: one["addresses"] for one in agent_api.get(socket, "/v1/allocations")}
    assert held == {one.sandbox_id: [str(one.addresses[0])] for one in (first, second)}
    assert first.netns.startswith("/var/run/netns/cni-")
    for target in (str(second.addresses[0]), node.primary_address):
        ping(first.netns, target)
    assert (host.path("/etc/iproute2") / "rt_tables.d").is_dir(), "names of our tables, for people on the node"

    pod.stop(running)
    assert pod.state(running) == (EXITED, 0)
    assert published.exists(), "an upgrade does not make the node NotReady"
    containerd.remove_pod(first.sandbox_id)
    ping(second.netns, node.primary_address)
    again = pod.start({**agent, "name": "agent-1"})
    eventually(
        lambda: pod.execute(again, ready["exec"]["command"], timeout_s=ready["timeoutSeconds"]).exit_code,
        lambda code: code == 0,
    )
    containerd.remove_pod(second.sandbox_id)
    assert agent_api.get(socket, "/v1/allocations") == []
    assert set(vpc.source_check_drops().values()) == {0}
    assert tracebacks(pod.log(agent)) == []
    pod.stop(again)


def ping(netns: str, address: str) -> None:
    truths.run_in(Path(netns), "ping", "-q", "-c", "1", "-W", "5", address)


def tracebacks(log: str) -> list[str]:
    return [line for line in log.splitlines() if "Traceback" in line or '"level": "error"' in line]
