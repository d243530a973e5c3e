"""A whole agent beside an API server: it knows the pods, tells what happens, and serves pods without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from lab.agent_api import get
from lab.lab import Lab
from lab.pods import Pod, delete_namespace, make_namespace
from lab.processes import GRACEFUL, ProcessId, end, start_announcing
from tests.system.conftest import LabFactory
from tests.system.eventually import eventually
from tests.system.plugin_process import ask
from tests.system.vpc_control import VpcControl

NODE = "node-0"
POD_SUBNET = ip_network("10.0.16.0/24")
PORT = 6443
POD_COUNT = 6
SETTINGS = {
    "MY_NODE_NAME": NODE,
    "ANNOTATE_POD_IP": "true",
    "WARM_IP_TARGET": "1",
    "MINIMUM_IP_TARGET": "1",
    "IP_COOLDOWN_PERIOD": "1",
}


class Kubernetes:
    """An API server on the loopback of a node's namespace."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._inside = ["nsenter", f"--net=/run/netns/{lab.nodes[0].namespace}", "--"]
        self._log = directory / "apiserver.log"
        self._process: ProcessId | None = None

    def start(self, *arguments: str, pod_count: int = POD_COUNT) -> None:
        argv = [*self._inside, sys.executable, "-m"]
        argv += ["sim.kube", "--port", str(PORT), "--node", NODE, "--pods", str(pod_count), "--max-pods", "500"]
        argv += arguments
        self._process, _ = start_announcing(argv, log=self._log, timeout_s=15.0)

    def stop(self) -> None:
        if self._process is not None:
            end(self._process, signals=GRACEFUL)
            self._process = None

    def objects(self, path: str) -> list[dict[str, Any]]:
        """What a list shows, asked for inside the node's namespace."""
        done = subprocess.run(
            [*self._inside, "curl", "-sf", f"http://127.0.0.1:{PORT}{path}"],
            capture_output=True,
            check=True,
            timeout=10,
        )
        items: list[dict[str, Any]] = json.loads(done.stdout)["items"]
        return items


def kubeconfig(path: Path) -> str:
    config = {
        "current-context": "lab",
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "clusters": [{"name": "lab", "cluster": {"server": f"http://127.0.0.1:{PORT}"}}],
        "users": [{"name": "lab", "user": {"token": "anything"}}],
    }
    path.write_text(json.dumps(config))
    return os.fspath(path)


@pytest.fixture(scope="module")
def on_node(lab: LabFactory, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Lab, Kubernetes]]:
    directory = tmp_path_factory.mktemp("kubernetes")
    made = lab(agent_environment={**SETTINGS, "KUBECONFIG": kubeconfig(directory / "config")})
    server = Kubernetes(made, directory)
    yield made, server
    server.stop()


def test_pods_are_served_without_the_api_server_and_known_with_it(on_node: tuple[Lab, Kubernetes]) -> None:
    """The agent starts and serves while nobody listens; then the API server comes, goes, and comes back."""
    lab, server = on_node
    node = lab.nodes[0]
    with ExitStack() as ends:
        pods = [Pod(container_id=f"{lab.plan.name}-pod-{n}", name=f"pod-{n}", socket=node.socket) for n in range(3)]
        for pod in pods:
            ends.callback(delete_namespace, pod.container_id)
        first = pods[0].start()
        assert [one["pod_uid"] for one in get(node.socket, "/v1/allocations")] == [""]

        server.start()
        uids = {one["metadata"]["name"]: one["metadata"]["uid"] for one in server.objects("/api/v1/pods")}
        eventually(
            lambda: [one["pod_uid"] for one in get(node.socket, "/v1/allocations")],
            lambda seen: seen == [uids["pod-0"]],
            deadline_s=90.0,  # the agent's backoff has grown meanwhile
        )
        # Five pods are bound and have not asked yet: their addresses are fetched before they do.
        eventually(lambda: get(node.socket, "/v1/pool")["counts"]["free_count"], lambda free: free >= POD_COUNT - 1)
        eventually(
            lambda: next(one["metadata"].get("annotations") for one in server.objects("/api/v1/pods")),
            lambda seen: seen == {"vpc.amazonaws.com/pod-ips": first},
            deadline_s=60.0,
        )
        # m5.large carries 29 pods, and this kubelet takes 500.
        (event,) = eventually(lambda: server.objects("/apis/events.k8s.io/v1/events"), bool, deadline_s=60.0)
        assert event["reason"] == "MaxPodsTooHigh"

        server.stop()
        pods[1].start()
        pods[1].call("DEL")
        pods[2].start()
        assert {one["pod"] for one in get(node.socket, "/v1/allocations")} == {"pod-0", "pod-2"}
        assert get(node.socket, "/v1/health")["healthy"]
        for pod in (pods[0], pods[2]):
            pod.call("DEL")


def test_custom_networking_waits_for_its_eni_config_and_tells_what_ec2_refuses(lab: LabFactory, tmp_path: Path) -> None:
    """No ENI goes anywhere while nobody knows where to; then pods are in the ENIConfig's subnet, and nowhere else."""
    made = lab(
        sim_arguments=("--subnet", "10.0.0.0/24", "--subnet", str(POD_SUBNET)),
        agent_environment={
            **SETTINGS,
            "KUBECONFIG": kubeconfig(tmp_path / "config"),
            "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": "true",
            "ENOKI_ADD_DEADLINE_S": "2",
        },
    )
    node, server, vpc = made.nodes[0], Kubernetes(made, tmp_path), VpcControl(made)
    subnet = next(one["subnet_id"] for one in made.announced["subnets"] if one["cidr"] == str(POD_SUBNET))
    pod = Pod(container_id=f"{made.plan.name}-pod-0", name="pod-0", socket=node.socket)
    with ExitStack() as ends:
        ends.callback(server.stop)
        ends.callback(delete_namespace, pod.container_id)
        make_namespace(pod.container_id)
        assert "custom_networking_unknown" in ask(pod, "ADD").text
        assert [one["device"] for one in get(node.socket, "/v1/enis")] == [0]

        with vpc.fault("CreateNetworkInterface", code="UnauthorizedOperation"):
            server.start("--eni-config", "default", subnet)
            (event,) = eventually(
                lambda: [
                    one
                    for one in server.objects("/apis/events.k8s.io/v1/events")
                    if one["reason"] == "MissingIAMPermissions"
                ],
                bool,
                deadline_s=90.0,
            )
            assert event["action"] == "ec2:CreateNetworkInterface"

        made.stop_agent(0)  # or its breaker would keep the mended permission waiting for minutes
        made.start_agents([0])
        address = eventually(lambda: ask(pod, "ADD"), lambda answer: answer.code == 0, deadline_s=60.0).address
        assert ip_address(address) in POD_SUBNET
        assert [one["subnet_id"] for one in get(node.socket, "/v1/enis")][1:] == [subnet]
        assert ask(pod, "DEL").code == 0
