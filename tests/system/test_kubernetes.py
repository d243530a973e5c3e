"""A whole agent beside an API server: it knows the pods, tells what happens, and serves pods without it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import pytest

from lab.agent_api import get
from lab.lab import REPOSITORY, Lab
from lab.pods import Pod, delete_namespace, make_namespace
from lab.processes import GRACEFUL, ProcessId, end, start_announcing
from sim.kube.server import a_node, a_pod
from sim.kube.store import ENI_CONFIGS
from tests import control_plane
from tests.control_plane import ControlPlane
from tests.system.conftest import LabFactory
from tests.system.eventually import eventually
from tests.system.plugin_process import ask
from tests.system.vpc_control import VpcControl

NODE = "node-0"
POD_SUBNET = ip_network("10.0.16.0/24")
POD_COUNT = 6
MAX_PODS = 500
ANNOTATING = REPOSITORY / "deploy" / "kustomize" / "overlays" / "annotate-pod-ip"
SETTINGS = {
    "MY_NODE_NAME": NODE,
    "ANNOTATE_POD_IP": "true",
    "WARM_IP_TARGET": "1",
    "MINIMUM_IP_TARGET": "1",
    "IP_COOLDOWN_PERIOD": "1",
}


class Kubernetes(Protocol):
    """An API server that this node reaches."""

    def configure(self, kubeconfig: Path) -> None:
        """Write the agent's."""
        ...

    def start(self, *, eni_configs: Mapping[str, str] = MappingProxyType({})) -> None:
        """The node, its pods, and ENIConfigs (name to subnet) are there. May follow a `stop`."""
        ...

    def stop(self) -> None: ...

    def objects(self, path: str) -> list[dict[str, Any]]:
        """What a list shows."""
        ...

    def read(self, command: str) -> str:
        """What kubectl says to somebody; empty where there is none."""
        ...


class Simulated:
    """On the loopback of the node's namespace."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        self._inside = ["nsenter", f"--net=/run/netns/{lab.nodes[0].namespace}", "--"]
        self._log = directory / "apiserver.log"
        self._process: ProcessId | None = None

    def configure(self, kubeconfig: Path) -> None:
        url = f"http://127.0.0.1:{control_plane.PORT}"
        document = control_plane.kubeconfig(url, authority=None, user={"token": "anything"})
        kubeconfig.write_text(json.dumps(document))

    def start(self, *, eni_configs: Mapping[str, str] = MappingProxyType({})) -> None:
        argv = [*self._inside, sys.executable, "-m"]
        argv += ["sim.kube", "--port", str(control_plane.PORT), "--node", NODE]
        argv += ["--pods", str(POD_COUNT), "--max-pods", str(MAX_PODS)]
        for name, subnet in eni_configs.items():
            argv += ["--eni-config", name, subnet]
        self._process, _ = start_announcing(argv, log=self._log, timeout_s=15.0)

    def stop(self) -> None:
        if self._process is not None:
            end(self._process, signals=GRACEFUL)
            self._process = None

    def objects(self, path: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [*self._inside, "curl", "-sf", f"http://127.0.0.1:{control_plane.PORT}{path}"],
            capture_output=True,
            check=True,
            timeout=10,
        )
        items: list[dict[str, Any]] = json.loads(done.stdout)["items"]
        return items

    def read(self, command: str) -> str:
        del command
        return ""


class Real:
    """On the internet, where a cluster's public endpoint is; the agent is the service account of the manifests."""

    def __init__(self, lab: Lab, directory: Path) -> None:
        announced = lab.announced
        self.plane = ControlPlane(
            directory=directory / "control-plane",
            address=IPv4Address(announced["internet"]["address"]),
            inside=("nsenter", f"--net=/run/netns/{announced['namespaces']['internet']}", "--"),
        )
        self._is_entered = False

    def configure(self, kubeconfig: Path) -> None:
        directory = self.plane.directory
        user = {"tokenFile": str(directory / "agent.token")}
        document = control_plane.kubeconfig(self.plane.url, authority=directory / "ca.crt", user=user)
        kubeconfig.write_text(json.dumps(document))

    def start(self, *, eni_configs: Mapping[str, str] = MappingProxyType({})) -> None:
        if self._is_entered:
            self.plane.start()
            return
        self.plane.__enter__()
        self._is_entered = True
        control_plane.prepare(self.plane)
        self.plane.kubectl("apply", "--server-side", "-k", str(ANNOTATING))
        token = self.plane.token("kube-system", "enoki")
        documents = [a_node(NODE, max_pods=MAX_PODS) | {"apiVersion": "v1", "kind": "Node"}]
        for number in range(POD_COUNT):
            pod = a_pod(f"pod-{number}", NODE) | {"apiVersion": "v1", "kind": "Pod"}
            documents.append(pod)
        for name, subnet in eni_configs.items():
            head = {"apiVersion": ENI_CONFIGS.api_version, "kind": ENI_CONFIGS.kind}
            documents.append(head | {"metadata": {"name": name}, "spec": {"subnet": subnet}})
        self.plane.kubectl("create", "-f", "-", stdin="\n---\n".join(json.dumps(one) for one in documents))
        (self.plane.directory / "agent.token").write_text(token)

    def stop(self) -> None:
        self.plane.stop()

    def close(self) -> None:
        if self._is_entered:
            self.plane.__exit__()
        shutil.rmtree(self.plane.directory, ignore_errors=True)

    def objects(self, path: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = json.loads(self.plane.kubectl("get", "--raw", path).stdout)["items"]
        return items

    def read(self, command: str) -> str:
        return self.plane.kubectl(*command.split()).stdout


class KubernetesFactory(Protocol):
    def __call__(self, lab: Lab, directory: Path) -> Kubernetes: ...


@pytest.fixture(params=["simulated", "real"])
def kubernetes(request: pytest.FixtureRequest) -> Iterator[KubernetesFactory]:
    """Makes one of the two for a lab; ended at the end of the test."""
    if request.param == "real" and (lacking := control_plane.missing()):
        pytest.skip(lacking)
    with ExitStack() as ends:

        def make(lab: Lab, directory: Path) -> Kubernetes:
            if request.param == "simulated":
                simulated = Simulated(lab, directory)
                ends.callback(simulated.stop)
                return simulated
            real = Real(lab, directory)
            ends.callback(real.close)
            return real

        yield make


def test_pods_are_served_without_the_api_server_and_known_with_it(
    lab: LabFactory, kubernetes: KubernetesFactory, tmp_path: Path
) -> None:
    """The agent starts and serves while nobody listens; then the API server comes, goes, and comes back."""
    kubeconfig = tmp_path / "config"
    made = lab(agent_environment={**SETTINGS, "KUBECONFIG": str(kubeconfig)})
    node, server = made.nodes[0], kubernetes(made, tmp_path)
    server.configure(kubeconfig)
    with ExitStack() as ends:
        pods = [Pod(container_id=f"{made.plan.name}-pod-{n}", name=f"pod-{n}", socket=node.socket) for n in range(3)]
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
        if said := server.read("get events --no-headers"):
            assert said.split()[1:4] == ["Warning", "MaxPodsTooHigh", f"node/{NODE}"]
            assert "Warning  MaxPodsTooHigh" in server.read(f"describe node {NODE}")

        server.stop()
        pods[1].start()
        pods[1].call("DEL")
        pods[2].start()
        assert {one["pod"] for one in get(node.socket, "/v1/allocations")} == {"pod-0", "pod-2"}
        assert get(node.socket, "/v1/health")["healthy"]
        for pod in (pods[0], pods[2]):
            pod.call("DEL")


def test_custom_networking_waits_for_its_eni_config_and_tells_what_ec2_refuses(
    lab: LabFactory, kubernetes: KubernetesFactory, tmp_path: Path
) -> None:
    """No ENI goes anywhere while nobody knows where to; then pods are in the ENIConfig's subnet, and nowhere else."""
    made = lab(
        sim_arguments=("--subnet", "10.0.0.0/24", "--subnet", str(POD_SUBNET)),
        agent_environment={
            **SETTINGS,
            "KUBECONFIG": str(tmp_path / "config"),
            "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": "true",
            "ENOKI_ADD_DEADLINE_S": "2",
        },
    )
    node, server, vpc = made.nodes[0], kubernetes(made, tmp_path), VpcControl(made)
    server.configure(tmp_path / "config")
    subnet = next(one["subnet_id"] for one in made.announced["subnets"] if one["cidr"] == str(POD_SUBNET))
    pod = Pod(container_id=f"{made.plan.name}-pod-0", name="pod-0", socket=node.socket)
    with ExitStack() as ends:
        ends.callback(delete_namespace, pod.container_id)
        make_namespace(pod.container_id)
        assert "custom_networking_unknown" in ask(pod, "ADD").text
        assert [one["device"] for one in get(node.socket, "/v1/enis")] == [0]

        with vpc.fault("CreateNetworkInterface", code="UnauthorizedOperation"):
            server.start(eni_configs={"default": subnet})
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
