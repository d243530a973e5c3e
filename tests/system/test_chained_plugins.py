"""The CNI project's own plugins after ours in one chain: our result is what they are given as `prevResult`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import echo
from lab.lab import Lab, LabNode
from lab.pods import Pod, delete_namespace
from tests.system import three_truths as truths
from tests.system.conftest import LabFactory

PLUGINS = Path("/usr/lib/cni")
"""Where Debian's containernetworking-plugins has them."""

pytestmark = pytest.mark.skipif(
    not (PLUGINS / "portmap").exists(), reason="needs Debian's containernetworking-plugins (portmap)"
)

HOST_PORT = 8081


@pytest.fixture(scope="module")
def vpc(lab: LabFactory) -> Lab:
    return lab(instance_type="t3.small", agent_environment={"MAX_ENI": "1"})


@pytest.fixture
def pod(vpc: Lab, node: LabNode) -> Iterator[Pod]:
    made = Pod(container_id=f"{vpc.plan.name}-pod-0", name="web-0", socket=node.socket)
    yield made
    delete_namespace(made.container_id)


def _chained(node: LabNode, pod: Pod, command: str, previous: dict[str, Any]) -> dict[str, Any]:
    """Run portmap as libcni does for the second plugin of a list."""
    config = {
        "cniVersion": "1.0.0",
        "name": "enoki",
        "type": "portmap",
        "snat": True,
        "runtimeConfig": {
            "portMappings": [{"hostPort": HOST_PORT, "containerPort": echo.PORT, "protocol": "tcp"}],
        },
        "prevResult": previous,
    }
    done = subprocess.run(
        ["nsenter", f"--net={truths.netns(node)}", "--", str(PLUGINS / "portmap")],
        input=json.dumps(config),
        env=pod.environment(command) | {"CNI_PATH": str(PLUGINS), "PATH": os.defpath + ":/usr/sbin:/sbin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
    return answer


def test_portmap_maps_a_port_of_our_pod(node: LabNode, pod: Pod) -> None:
    pod.start()
    result = pod.call("ADD")
    assert _chained(node, pod, "ADD", result)["ips"] == result["ips"]
    with (
        echo.Running(pod.netns, "serve", str(echo.PORT)),
        echo.Running(str(truths.netns(node)), "hold", "127.0.0.1", str(HOST_PORT)) as client,
    ):
        assert client.ask("hello") == "hello"
    # What the chain added is no difference to our CHECK.
    pod.call("CHECK")
    _chained(node, pod, "DEL", result)
    pod.stop()
    assert truths.pod_routes(node) == {}
