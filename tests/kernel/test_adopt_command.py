"""`python -m agent adopt` as docs/migrating-from-aws-node.md tells people to type it, on a node of the simulator."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from agent.adoption import survey
from bench import aws_layout
from tests.kernel.aws_node import checkpoint_text
from tests.kernel.datapath_node import Netns
from tests.kernel.sim_program import Node, running_sim

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "migrating-from-aws-node.md"
POD = IPv4Address("10.0.0.50")
VETH = aws_layout.veth_name("default", "web")


def commands_of_the_page() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def as_aws_node_leaves_it(node: Node, container: Netns, checkpoint: Path) -> None:
    netns = Netns(name=node.namespace)
    address = IPv4Address(node.primary_address)
    script = aws_layout.node_script(aws_layout.Backend.NFT_CONNMARK, "ens5", address, [IPv4Network("10.0.0.0/16")])
    netns.run("sh", "-ec", script)
    link = f"link add {VETH} address 02:cc:00:00:00:01 type veth peer name eth0 netns {container.name}\n"
    link += f"link set {VETH} up\n"
    netns.run("sh", "-ec", f"ip -batch - <<'END'\n{link}{aws_layout.pod_batch(VETH, POD, None)}END\n")
    inside = aws_layout.pod_inside_batch("eth0", POD, "02:cc:00:00:00:01")
    container.run("sh", "-ec", f"ip -batch - <<'END'\n{inside}END\n")
    checkpoint.write_text(checkpoint_text({"web": POD}))


def test_the_page_s_commands_do_what_it_says(tmp_path: Path) -> None:
    checkpoint, aws_socket = tmp_path / "ipam.json", tmp_path / "ipamd.sock"
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(ROOT),
        "ENOKI_SOCKET": str(tmp_path / "agent.sock"),
        "ENOKI_NAMES_DIRECTORY": str(tmp_path / "iproute2"),
        "CLUSTER_NAME": "test",
    }

    def type_on(node: Node, line: str) -> subprocess.CompletedProcess[str]:
        line = line.replace(" adopt ", f" adopt --checkpoint {checkpoint} --aws-node-socket {aws_socket} ")
        return subprocess.run(
            ["ip", "netns", "exec", node.namespace, "sh", "-c", line],
            env=environment, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    expected: dict[str, Callable[[str], bool]] = {
        "python -m agent adopt --dry-run": lambda said: f"link set dev {VETH} group 20000" in said,
        "python -m agent adopt --apply": lambda _: not checkpoint.exists(),
        "ip rule show": lambda said: "512:" in said and f"to {POD}" not in said,
        "ip route show table 20512": lambda said: f"{POD} dev {VETH}" in said,
        "ip -d link show type veth": lambda said: "alias enoki" in said and "default/web" in said,
        "nft list table inet enoki": lambda said: "enoki schema" in said,
        "python -m agent adopt --rollback": lambda _: checkpoint.read_text() == checkpoint_text({"web": POD}),
    }
    lines = commands_of_the_page()
    assert lines == list(expected)
    with running_sim("--nodes", "1", "--latency", "none") as sim, Netns.made("pod") as container:
        node = sim.nodes[0]
        as_aws_node_leaves_it(node, container, checkpoint)
        rules = node.run("ip", "-N", "rule")
        for line in lines:
            done = type_on(node, line)
            assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
            assert expected[line](done.stdout), f"{line}: {done.stdout}{done.stderr}"
        assert node.run("ip", "-N", "rule") == rules

        with socket.socket(socket.AF_UNIX) as aws_node:
            aws_node.bind(str(aws_socket))
            aws_node.listen()
            refused = type_on(node, "python -m agent adopt --apply")
        assert refused.returncode == 1
        assert "refused: aws-node still runs" in refused.stdout
        assert type_on(node, "python -m agent adopt --now").returncode == 2


def test_an_agent_of_theirs_that_serves_on_a_port_is_seen(tmp_path: Path) -> None:
    """Version 1.20.4 serves its CNI plugin on 127.0.0.1:50051, newer ones on a Unix socket."""
    with Netns.made("node") as node:
        node.run("ip", "link", "set", "lo", "up")
        with node.entered():
            assert not survey.look(tmp_path / "ipamd.sock").aws_node_running
            with socket.create_server(survey.AWS_NODE_ADDRESS):
                assert survey.look(tmp_path / "ipamd.sock").aws_node_running
