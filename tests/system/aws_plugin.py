"""The AWS plugin itself (amazon-vpc-cni-k8s), unmodified, as agent and CNI plugin of a lab's node.

Its programs are nobody's business but the reader's own: their paths come in by environment variables (CONTRIBUTING.md
says how they are built), and without them whatever needs them skips.

Its paths cannot be set, so it runs in a mount namespace where `/run/aws-node` is a directory of its node.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lab.lab import Lab, LabNode
from lab.pods import CniFailed, Pod, delete_namespace, make_namespace
from lab.processes import AT_ONCE, ProcessId, end, start_announcing, tail
from tests.system.eventually import eventually

PROGRAMS_VARIABLE: Final = "AWS_VPC_CNI"
"""A directory with the programs below, as `go build` names them."""
AGENT: Final = "aws-k8s-agent"
PLUGIN: Final = "routed-eni-cni-plugin"
INIT: Final = "aws-vpc-cni-init"
RUN: Final = Path("/run/aws-node")
PORT: Final = 6443
START_S: Final = 60.0
CONFIGURATION: Final[Mapping[str, Any]] = {
    "cniVersion": "0.4.0",
    "name": "aws-cni",
    "type": "aws-cni",
    "vethPrefix": "eni",
    "mtu": "9001",
    "podSGEnforcingMode": "strict",
    "pluginLogFile": "stderr",
    "pluginLogLevel": "DEBUG",
}
"""What the runtime passes of the AWS plugin's conflist, v1.15 to v1.23."""


def program(name: str) -> str:
    """Path of one of the AWS plugin's programs."""
    return os.path.join(os.environ.get(PROGRAMS_VARIABLE, "/nowhere"), name)  # noqa: TID251, PTH118


def why_not() -> str:
    """Why the AWS plugin cannot run here; empty when it can."""
    missing = [name for name in (AGENT, PLUGIN, INIT) if not os.access(program(name), os.X_OK)]
    if missing:
        return (
            f"{PROGRAMS_VARIABLE} names no directory with {', '.join(missing)}: CONTRIBUTING.md says how they are made"
        )
    if shutil.which("iptables-legacy") is None:
        return "the AWS plugin needs iptables (Debian package iptables)"
    return ""


class NodesOnly(Lab):
    """A lab whose nodes get no agent of ours until somebody calls `start_our_agents`."""

    def start_agents(self, indexes: list[int], *, timeout_s: float = 0.0) -> None:  # noqa: ARG002
        """Leave the nodes to somebody else."""
        for index in indexes:
            self.nodes[index].directory.mkdir(exist_ok=True, mode=0o755)

    def start_our_agents(self, indexes: list[int]) -> None:
        super().start_agents(indexes)


@dataclass(slots=True, kw_only=True)
class AwsPlugin:
    """The AWS plugin on one node.

    settings: beside those of its DaemonSet. iptables: `legacy` or `nft`.
    """

    lab: NodesOnly
    node: LabNode
    settings: Mapping[str, str] = field(default_factory=dict)
    iptables: str = "nft"
    _agent: subprocess.Popen[bytes] | None = None
    _apiserver: ProcessId | None = None

    @property
    def directory(self) -> Path:
        """What is `/run/aws-node` to it."""
        return self.node.directory / "aws-node"

    @property
    def log(self) -> Path:
        return self.node.directory / "aws-k8s-agent.log"

    @property
    def node_name(self) -> str:
        return self.node.namespace

    def start_apiserver(self, *arguments: str) -> None:
        """An API server that knows the node, on its loopback."""
        argv = ["nsenter", f"--net=/run/netns/{self.node.namespace}", "--", sys.executable, "-m", "sim.kube"]
        argv += ["--port", str(PORT), "--node", self.node_name, *arguments]
        self._apiserver, _ = start_announcing(argv, log=self.node.directory / "apiserver.log", timeout_s=START_S)

    def start(self) -> None:
        """Run its init program and start its agent; returns when that serves the plugin."""
        self.directory.mkdir(exist_ok=True)
        self._tools()
        (self.directory / "ipamd.sock").unlink(missing_ok=True)
        # The init program copies what is in its working directory to another one: nothing, here.
        nothing, binaries = self.node.directory / "nothing", self.node.directory / "bin"
        for each in (nothing, binaries):
            each.mkdir(exist_ok=True)
        subprocess.run(
            self._inside(program(INIT)),
            env={**self._environment(), "HOST_CNI_BIN_PATH": os.fspath(binaries)},
            cwd=nothing,
            check=True,
            capture_output=True,
            timeout=START_S,
        )
        with self.log.open("ab") as sink:
            self._agent = subprocess.Popen(
                self._inside(program(AGENT)),
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        agent = self._agent
        eventually(
            lambda: (self._serves(), agent.poll()),
            lambda seen: seen[0] or seen[1] is not None,
            deadline_s=START_S,
        )
        assert agent.poll() is None, f"aws-k8s-agent ended:\n{tail(self.log)}"

    def stop(self) -> None:
        """Kill it, as the container runtime does in the end."""
        if self._agent is not None:
            end(ProcessId.of(self._agent.pid), signals=AT_ONCE)
            self._agent.wait()
            self._agent = None

    def close(self) -> None:
        self.stop()
        if self._apiserver is not None:
            end(self._apiserver, signals=AT_ONCE)
            self._apiserver = None

    def cni(self, pod: Pod, command: str) -> dict[str, Any]:
        """Call its CNI plugin for a pod.

        Raises: CniFailed.
        """
        done = subprocess.run(
            self._inside(program(PLUGIN)),
            env=pod.environment(command),
            input=json.dumps(CONFIGURATION).encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        reply: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        if done.returncode != 0:
            raise CniFailed(reply or {"code": None, "msg": done.stderr.decode(errors="replace")})
        return reply

    def add(self, pod: Pod) -> str:
        """Make the pod's namespace and ADD; its address without prefix length."""
        make_namespace(pod.container_id)
        pod.run("ip", "link", "set", "lo", "up")
        return str(self.cni(pod, "ADD")["ips"][0]["address"]).split("/")[0]

    def delete(self, pod: Pod) -> None:
        """DEL, and the namespace goes."""
        self.cni(pod, "DEL")
        delete_namespace(pod.container_id)

    def introspect(self, path: str) -> Any:
        """What its agent answers on its port for people."""
        return json.loads(self.run("curl", "-sf", f"http://127.0.0.1:61679{path}"))

    def run(self, *argv: str) -> str:
        """Output of a command in the node's network namespace."""
        return subprocess.run(
            ["nsenter", f"--net=/run/netns/{self.node.namespace}", "--", *argv],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        ).stdout

    def _inside(self, program: str) -> list[str]:
        script = f'mount --bind "$1" {RUN} && shift && exec "$@"'
        return [
            *("nsenter", f"--net=/run/netns/{self.node.namespace}", "--"),
            *("unshare", "--mount", "--propagation", "slave", "--"),
            *("sh", "-c", script, "sh", os.fspath(self.directory), program),
        ]

    def _serves(self) -> bool:
        """On its Unix socket, or before there was one on a port."""
        return (self.directory / "ipamd.sock").exists() or ":50051 " in self.run("ss", "-Hltn")

    def _tools(self) -> None:
        """iptables as it was chosen, whatever the machine's own default is."""
        tools = self.node.directory / "tools"
        tools.mkdir(exist_ok=True)
        for name in ("iptables", "ip6tables", "iptables-save", "iptables-restore"):
            link = tools / name
            link.unlink(missing_ok=True)
            plain, _, action = name.partition("-")
            target = shutil.which(f"{plain}-{self.iptables}{'-' + action if action else ''}")
            assert target is not None, name
            link.symlink_to(target)

    def _environment(self) -> dict[str, str]:
        """As the DaemonSet of v1.23.2 sets it, where that says something else than nothing."""
        kubeconfig = self.node.directory / "kubeconfig"
        kubeconfig.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "lab",
                    "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
                    "clusters": [{"name": "lab", "cluster": {"server": f"http://127.0.0.1:{PORT}"}}],
                    "users": [{"name": "lab", "user": {"token": "anything"}}],
                }
            )
        )
        return {
            "PATH": f"{self.node.directory / 'tools'}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/nonexistent",
            "KUBECONFIG": os.fspath(kubeconfig),
            "AWS_ENDPOINT_URL_EC2": self.lab.announced["ec2_endpoint_in_vpc"],
            "AWS_EC2_ENDPOINT": self.lab.announced["ec2_endpoint_in_vpc"],  # v1.15
            "MY_NODE_NAME": self.node_name,
            "MY_POD_NAME": "aws-node-lab",
            "CLUSTER_NAME": "lab",
            "ADDITIONAL_ENI_TAGS": "{}",
            "AWS_VPC_CNI_NODE_PORT_SUPPORT": "true",
            "AWS_VPC_ENI_MTU": "9001",
            "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": "false",
            "AWS_VPC_K8S_CNI_EXTERNALSNAT": "false",
            "AWS_VPC_K8S_CNI_LOGLEVEL": "DEBUG",
            "AWS_VPC_K8S_CNI_LOG_FILE": "stdout",
            "AWS_VPC_K8S_CNI_RANDOMIZESNAT": "prng",
            "AWS_VPC_K8S_CNI_VETHPREFIX": "eni",
            "ENABLE_IPv4": "true",
            "ENABLE_IPv6": "false",
            "ENABLE_PREFIX_DELEGATION": "false",
            "ENABLE_SUBNET_DISCOVERY": "true",
            "VPC_CNI_VERSION": "v1.23.2",
            "WARM_ENI_TARGET": "1",
            "WARM_PREFIX_TARGET": "1",
            **self.settings,
        }


@contextmanager
def aws_plugins(lab: NodesOnly, settings: Mapping[str, str], *, iptables: str = "nft") -> Iterator[list[AwsPlugin]]:
    """The AWS plugin on every node of a lab, serving; gone at the end."""
    made_here = not RUN.exists()
    RUN.mkdir(exist_ok=True)
    with ExitStack() as ends:
        if made_here:
            ends.callback(RUN.rmdir)
        plugins = [AwsPlugin(lab=lab, node=node, settings=settings, iptables=iptables) for node in lab.nodes]
        for plugin in plugins:
            ends.callback(plugin.close)
            plugin.start_apiserver()
            plugin.start()
        yield plugins
