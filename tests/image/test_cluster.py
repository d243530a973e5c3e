"""A node of a real cluster: its kubelet runs the DaemonSet, its pods come from the scheduler, their network from us.

Needs the image (`make test-image`) and, in KUBEBUILDER_ASSETS, more than envtest has: see `tests/image/cluster.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import agent_api
from lab.lab import REPOSITORY, Lab
from tests import control_plane
from tests.image.cluster import NODE, PROGRAMS, Cluster, ClusterPlan
from tests.image.host import ARCHIVE, IMAGE, Host, snapshotter
from tests.system import containerd as runtime
from tests.system import three_truths as truths
from tests.system.conftest import LabFactory, lab, requires_root  # noqa: F401  # fixtures
from tests.system.containerd import Containerd, ContainerdPlan
from tests.system.eventually import eventually, eventually_equal

DIRECTORY = REPOSITORY / "deploy" / "kustomize" / "overlays" / "annotate-pod-ip"
CAPACITY = 9
"""Of t3.small: 3 ENIs with 3 addresses for pods each."""
ENVIRONMENT = {"WARM_IP_TARGET": "1", "IP_COOLDOWN_PERIOD": "1", "ENOKI_ADD_DEADLINE_S": "2"}
LONG_S = 180.0
"""Of what takes a kubelet some of its own periods, on a loaded machine."""


@pytest.fixture(scope="module")
def vpc(requires_root: None, lab: LabFactory) -> Lab:  # noqa: F811
    if not ARCHIVE.exists():
        pytest.skip("needs the image: run `make test-image`")
    if lacking := control_plane.missing(*PROGRAMS):
        pytest.skip(lacking)
    if lacking := runtime.missing():
        pytest.skip(f"needs a containerd; not found: {lacking}")
    vpc = lab(instance_type="t3.small")
    vpc.stop_agent(0)
    return vpc


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    return Host(root=tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def socket(host: Host) -> Path:
    return host.path("/run/enoki") / "agent.sock"


@pytest.fixture(scope="module")
def cluster(vpc: Lab, host: Host, socket: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    node = vpc.nodes[0]
    for path in ("/etc/cni/net.d", "/opt/cni/bin", "/run/enoki"):
        host.path(path).mkdir(parents=True)
    runtime_plan = ContainerdPlan(
        name=f"{vpc.plan.name}-k8s",
        netns=Path("/run/netns") / node.namespace,
        network=host.path("/etc/cni/net.d"),
        plugins={"enoki": host.path("/opt/cni/bin") / "enoki"},
        environment={"ENOKI_SOCKET": str(socket)},
        netns_in_run=True,
        snapshotter=snapshotter(),
        network_comes_later=True,
    )
    with Containerd(runtime_plan) as containerd:
        containerd.import_image(ARCHIVE, IMAGE)
        plan = ClusterPlan(
            lab=vpc,
            node=node,
            directory=tmp_path_factory.mktemp("cluster"),
            containerd=containerd,
            host=host.path,
            max_pods=30,
            environment={"AWS_ENDPOINT_URL_EC2": vpc.announced["ec2_endpoint_in_vpc"], **ENVIRONMENT},
        )
        with Cluster(plan) as made:
            yield made


def web(replica_count: int) -> dict[str, Any]:
    """A Deployment that serves HTTP at port 8080."""
    labels = {"app": "web"}
    container = {
        "name": "main",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python3", "-m", "http.server", "8080"],
    }
    pod = {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"replicas": replica_count, "selector": {"matchLabels": labels}, "template": pod},
    }


def running(cluster: Cluster) -> int:
    found: int = cluster.plane.get("deployment", "web")["status"].get("readyReplicas", 0)
    return found


def rolled_out(cluster: Cluster, generation: int) -> bool:
    status = cluster.plane.get("daemonset", "enoki", "-n", "kube-system")["status"]
    wanted = (generation, 1, 1)
    return (status.get("observedGeneration"), status.get("updatedNumberScheduled"), status.get("numberReady")) == wanted


def test_a_cluster_uses_the_node(vpc: Lab, cluster: Cluster, socket: Path) -> None:
    plane, node = cluster.plane, vpc.nodes[0]
    eventually(lambda: plane.kubectl("get", "nodes", "-o", "name").stdout, bool, deadline_s=LONG_S)
    assert not cluster.ready(), "no network configuration yet"

    cluster.install(DIRECTORY)
    eventually(lambda: rolled_out(cluster, 1), bool, deadline_s=LONG_S)
    eventually(cluster.ready, bool, deadline_s=LONG_S)

    # The scheduler's pods get addresses; the kubelet, the agent and the annotation agree on which.
    cluster.apply(web(4))
    eventually_equal(lambda: running(cluster), 4, deadline_s=LONG_S)
    pods = {one["metadata"]["uid"]: one for one in plane.get("pods")["items"]}
    addresses = {uid: one["status"]["podIP"] for uid, one in pods.items()}
    assert {one["pod_uid"]: one["addresses"][0] for one in agent_api.get(socket, "/v1/allocations")} == addresses
    eventually_equal(
        lambda: {
            one["metadata"]["uid"]: one["metadata"].get("annotations", {}).get("vpc.amazonaws.com/pod-ips")
            for one in plane.get("pods")["items"]
        },
        addresses,
        deadline_s=LONG_S,
    )
    for address in addresses.values():
        truths.run_in(Path("/run/netns") / node.namespace, "curl", "-sf", "-m", "10", f"http://{address}:8080/")

    # An upgrade while pods come: they come all the same.
    plane.kubectl("rollout", "restart", "daemonset/enoki", "-n", "kube-system")
    plane.kubectl("scale", "deployment/web", "--replicas=8")
    eventually(lambda: rolled_out(cluster, 2), bool, deadline_s=LONG_S)
    eventually_equal(lambda: running(cluster), 8, deadline_s=LONG_S)

    # More pods than addresses: `kubectl describe` says why, of the pod and of the node.
    plane.kubectl("scale", "deployment/web", f"--replicas={CAPACITY + 2}")
    eventually_equal(lambda: running(cluster), CAPACITY, deadline_s=LONG_S)
    eventually(
        lambda: plane.kubectl("describe", "pods").stdout,
        lambda text: "FailedCreatePodSandBox" in text and "instance_limit" in text,
        deadline_s=LONG_S,
    )
    eventually(
        lambda: plane.kubectl("describe", "node", NODE).stdout,
        lambda text: "PoolExhausted" in text and "MaxPodsTooHigh" in text,
        deadline_s=LONG_S,
    )

    # Drained, it gives everything back to whom it belongs: no allocation stays.
    plane.kubectl("cordon", NODE)
    plane.kubectl("scale", "deployment/web", "--replicas=0")
    eventually_equal(lambda: plane.get("pods")["items"], [], deadline_s=LONG_S)
    eventually_equal(lambda: agent_api.get(socket, "/v1/allocations"), [], deadline_s=LONG_S)
    assert set(vpc.source_check_drops().values()) == {0}
    plane.kubectl("delete", "daemonset", "enoki", "-n", "kube-system")
    eventually_equal(lambda: plane.get("pods", "-n", "kube-system")["items"], [], deadline_s=LONG_S)
