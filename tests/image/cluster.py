"""A cluster of one node: a control plane on the lab's internet, and on the node the real kubelet beside a containerd.

Beyond a bundle of envtest it takes `kubelet`, `kube-controller-manager` and `kube-scheduler` in the same directory.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Self

import yaml

from lab.lab import Lab, LabNode
from lab.processes import AT_ONCE, end, start_service, tail
from tests import control_plane
from tests.control_plane import ControlPlane
from tests.image.host import IMAGE
from tests.system.containerd import Containerd, unmount_below

PROGRAMS = ("kubelet", "kube-controller-manager", "kube-scheduler")
NODE = "node-0"
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPlan:
    """What a cluster is to be.

    host: a path of the host to where this machine has it. max_pods: what the kubelet takes. environment: added to the
    agent's container, for what the simulated VPC needs.
    """

    lab: Lab
    node: LabNode
    directory: Path
    containerd: Containerd
    host: Callable[[str], Path]
    max_pods: int
    environment: Mapping[str, str]


class Cluster:
    """Use as a context manager; entered, the node is registered and nothing runs on it."""

    def __init__(self, plan: ClusterPlan) -> None:
        announced = plan.lab.announced
        self._plan = plan
        self._internet = ("nsenter", f"--net=/run/netns/{announced['namespaces']['internet']}", "--")
        self.plane = ControlPlane(
            directory=plan.directory / "control-plane",
            address=IPv4Address(announced["internet"]["address"]),
            inside=self._internet,
        )
        self._ends = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as ends:
            ends.enter_context(self.plane)
            control_plane.prepare(self.plane)
            self._start_controllers(ends)
            # What it has mounted for pods stays when it ends, and so does a mount of its directory on itself.
            ends.callback(unmount_below, self._plan.directory)
            self._start_kubelet(ends)
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.close()

    def ready(self) -> bool:
        """Whether the node is, by what its kubelet says."""
        found = self.plane.kubectl("get", "nodes", "-o", "json").stdout
        return any(
            one["type"] == "Ready" and one["status"] == "True"
            for node in json.loads(found)["items"]
            for one in node["status"].get("conditions", ())
        )

    def install(self, directory: Path) -> None:
        """Apply a directory of kustomize, with the image, the host's paths and the environment of this place."""
        objects = list(yaml.safe_load_all(self.plane.kubectl("kustomize", str(directory)).stdout))
        (daemon_set,) = (one for one in objects if one["kind"] == "DaemonSet")
        spec = daemon_set["spec"]["template"]["spec"]
        for container in (*spec["initContainers"], *spec["containers"]):
            container["image"] = IMAGE
        for volume in spec["volumes"]:
            volume["hostPath"]["path"] = str(self._plan.host(volume["hostPath"]["path"]))
        # No kube-proxy: the service `kubernetes` leads nowhere. CLUSTER_ENDPOINT is the setting for such a cluster.
        environment = {**self._plan.environment, "CLUSTER_ENDPOINT": self.plane.url}
        spec["containers"][0]["env"] += [{"name": name, "value": value} for name, value in environment.items()]
        self.apply(*objects)

    def apply(self, *documents: Mapping[str, Any]) -> None:
        stdin = "\n---\n".join(json.dumps(one) for one in documents)
        self.plane.kubectl("apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", "-", stdin=stdin)

    def log(self, name: str) -> str:
        """The end of what one of `PROGRAMS` wrote."""
        return tail(self._plan.directory / f"{name}.log")

    def _start_controllers(self, ends: ExitStack) -> None:
        common = (f"--kubeconfig={self.plane.kubeconfig}", "--leader-elect=false")
        directory = self.plane.directory
        keys = (
            f"--root-ca-file={directory / 'ca.crt'}",
            f"--service-account-private-key-file={directory / 'service-accounts.key'}",
        )
        self._start(ends, self._internet, "kube-controller-manager", [*common, *keys])
        self._start(ends, self._internet, "kube-scheduler", common)

    def _start_kubelet(self, ends: ExitStack) -> None:
        node, directory = self._plan.node, self._plan.directory
        configuration = directory / "kubelet.json"
        configuration.write_text(json.dumps(self._kubelet_configuration()))
        arguments = [f"--config={configuration}", f"--kubeconfig={self.plane.kubeconfig}"]
        arguments += [f"--root-dir={directory / 'kubelet'}", f"--cert-dir={directory / 'kubelet-pki'}"]
        arguments += [f"--hostname-override={NODE}", f"--node-ip={node.primary_address}"]
        self._start(ends, ("nsenter", f"--net=/run/netns/{node.namespace}", "--"), "kubelet", arguments)

    def _kubelet_configuration(self) -> dict[str, Any]:
        """kubelet.config.k8s.io/v1beta1, for a machine that is itself a container: no cgroups but below our own."""
        plan = self._plan
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "containerRuntimeEndpoint": f"unix://{plan.containerd.socket}",
            "providerID": f"aws:///us-west-2a/{plan.node.instance_id}",
            "maxPods": plan.max_pods,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{plan.containerd.plan.name}",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": int(Path("/proc/self/oom_score_adj").read_text()),
            "makeIPTablesUtilChains": False,
            "localStorageCapacityIsolation": False,
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "resolvConf": "",
            "nodeStatusUpdateFrequency": "2s",
            "podLogsDir": str(plan.directory / "pod-logs"),
        }

    def _start(self, ends: ExitStack, inside: Sequence[str], name: str, arguments: Sequence[str]) -> None:
        argv = [*inside, str(control_plane.program(name)), *arguments]
        environment = {"PATH": _PATH, "HOME": str(self._plan.directory)}
        log = self._plan.directory / f"{name}.log"
        ends.callback(end, start_service(argv, environment=environment, log=log), signals=AT_ONCE)
