"""A host as the init container and the agent leave it, and a containerd that reads what is there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agent.installation.conflist import FILE_NAME
from lab import agent_api
from lab.lab import REPOSITORY, Lab, LabNode
from lab.pods import Pod
from tests import static_shim
from tests.system import containerd as runtime
from tests.system import three_truths as truths
from tests.system.agent_process import agent
from tests.system.conftest import LabFactory
from tests.system.containerd import Containerd, ContainerdPlan
from tests.system.eventually import DEADLINE_S, eventually, eventually_equal
from tests.system.plugin_process import ask
from tests.system.vpc_control import VpcControl

UNAVAILABLE: dict[str, Any] = {"kind": "error", "code": "Unavailable", "http_status": 503}
HOST = "HOST_CNI_CONFDIR_PATH"


@pytest.fixture(scope="module")
def vpc(lab: LabFactory) -> Lab:
    """One node, its own agent stopped: every test starts what it needs."""
    vpc = lab(instance_type="t3.small", agent_environment={"MAX_ENI": "1", "IP_COOLDOWN_PERIOD": "1"})
    vpc.stop_agent(0)
    return vpc


@pytest.fixture
def conf_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "net.d"
    directory.mkdir()
    return directory


@pytest.fixture
def published(conf_directory: Path) -> Path:
    return conf_directory / FILE_NAME


@pytest.fixture
def requires_containerd() -> None:
    if lacking := ", ".join(filter(None, [runtime.missing(), static_shim.missing()])):
        pytest.skip(f"needs a containerd and what links the plugin; not found: {lacking}")


def test_it_appears_with_the_first_stage_that_can_serve_and_survives_a_restart(
    vpc: Lab, node: LabNode, published: Path
) -> None:
    with (
        VpcControl(vpc).fault("DescribeNetworkInterfaces", **UNAVAILABLE),
        agent(vpc, node, **{HOST: str(published.parent)}),
    ):
        eventually(lambda: _stages(node).get("addresses"), lambda state: state == "failed")
        assert not published.exists()
        assert probe(node, "/v1/health").returncode == 0
        assert probe(node, "/v1/startup").returncode == 1
        assert [ask(_nobody(node), command).code for command in ("DEL", "STATUS")] == [0, 50]
    with agent(vpc, node, **{HOST: str(published.parent)}) as first:
        first.wait_until_ready()
        eventually(published.exists, bool)
        assert probe(node, "/v1/startup").returncode == 0
        inode = published.stat().st_ino
    with agent(vpc, node, **{HOST: str(published.parent)}) as second:
        assert published.exists(), "an upgrade does not make the node NotReady"
        second.wait_until_ready()
        assert published.stat().st_ino == inode


def test_it_goes_when_no_pod_can_be_served(vpc: Lab, node: LabNode, published: Path) -> None:
    """A file that a reboot left is gone before the start is done; a node that EC2 gives nothing does not look ready."""
    published.write_text("{}")
    os.utime(published, (0, 0))
    control = VpcControl(vpc)
    truths.Ec2(vpc).take_pod_addresses(node)
    with (
        control.fault("AssignPrivateIpAddresses", **UNAVAILABLE),
        agent(vpc, node, **{HOST: str(published.parent)}) as running,
    ):
        running.wait_until_ready()
        eventually(lambda: ask(_nobody(node), "STATUS").code, lambda code: code == 50)
        eventually_equal(published.exists, False)
    with agent(vpc, node, **{HOST: str(published.parent)}) as running:
        running.wait_until_ready()
        eventually(published.exists, bool)


def test_containerd_is_ready_when_the_agent_is(
    vpc: Lab, node: LabNode, conf_directory: Path, published: Path, tmp_path: Path, requires_containerd: None
) -> None:
    """With the init container's work and the agent's; a predecessor's file is there too."""
    (conf_directory / "10-aws.conflist").write_text(
        '{"cniVersion":"0.4.0","name":"aws-cni","plugins":[{"type":"aws-cni"}]}'
    )
    host_bin = tmp_path / "bin"
    host_bin.mkdir()
    built = static_shim.build_in(tmp_path)
    install(built, host_bin)
    with agent(vpc, node, **{HOST: str(conf_directory)}) as running:
        running.wait_until_ready()
        eventually(published.exists, bool)
        plan = ContainerdPlan(
            name=f"{vpc.plan.name}-inst",
            netns=Path("/run/netns") / node.namespace,
            network=conf_directory,
            plugins={"enoki": host_bin / "enoki"},
            environment={"ENOKI_SOCKET": str(node.socket)},
        )
        with Containerd(plan) as containerd:
            pod = containerd.run_pod("first")
            (held,) = agent_api.get(node.socket, "/v1/allocations")
            assert [held["addresses"][0], held["container_id"]] == [str(pod.addresses[0]), pod.sandbox_id]
            containerd.remove_pod(pod.sandbox_id)
            assert agent_api.get(node.socket, "/v1/allocations") == []


def install(source: Path, directory: Path) -> None:
    """What the init container runs; the image has the executable at the place that the module names."""
    code = (
        "import sys; from pathlib import Path; from agent.installation.__main__ import install;"
        "install(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    argv = [sys.executable, "-c", code, str(source), str(directory)]
    subprocess.run(argv, cwd=REPOSITORY, check=True, timeout=DEADLINE_S)


def probe(node: LabNode, route: str) -> subprocess.CompletedProcess[bytes]:
    """The kubelet's probe, as the manifest has it."""
    return subprocess.run(
        [sys.executable, "-m", "agent.probe", route],
        cwd=REPOSITORY,
        env={"ENOKI_SOCKET": str(node.socket)},
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )


def _nobody(node: LabNode) -> Pod:
    return Pod(
        container_id="nobody",
        name="nobody",
        socket=node.socket,
        network={"cniVersion": "1.1.0", "name": "enoki", "type": "enoki"},
    )


def _stages(node: LabNode) -> dict[str, str]:
    try:
        _, view = agent_api.ask(node.socket, "/v1/startup")
    except OSError:
        return {}
    return {stage["name"]: stage["state"] for stage in view["stages"]}
