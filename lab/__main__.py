"""`python -m lab up|down|demo`: what `make lab`, `make lab-down` and `make demo` run.

Exit codes: 0 fine, 1 a check of the demo failed or the lab could not be brought up.
"""

from __future__ import annotations

import argparse
import sys

from lab.demo import run_demo
from lab.lab import REPOSITORY, Lab, LabPlan
from lab.pods import SHIM
from lab.processes import LabError


def main() -> int:
    parser = argparse.ArgumentParser(prog="lab", description="A simulated VPC with nodes and agents on this machine.")
    parser.add_argument("command", choices=["up", "down", "demo"])
    parser.add_argument("--name", default="enoki", help="prefix of everything the lab makes (default: enoki)")
    parser.add_argument("--nodes", type=int, default=2, help="number of nodes, 1 to 9 (default: 2)")
    arguments = parser.parse_args()
    if not 1 <= arguments.nodes <= 9:
        parser.error(f"--nodes is {arguments.nodes}; allowed is 1 to 9")
    try:
        if arguments.command == "demo":
            return run_demo()
        lab = Lab(LabPlan(name=arguments.name, node_count=arguments.nodes))
        if arguments.command == "down":
            lab.down()
            print(f"lab {arguments.name}: down, nothing left")
            return 0
        lab.up()
        print(guide(lab))
    except LabError as exc:
        print(f"lab: {exc}", file=sys.stderr)
        return 1
    return 0


def guide(lab: Lab) -> str:
    """What runs, and commands to paste."""
    node = lab.nodes[0]
    pod = f"{lab.plan.name}-pod-a"
    lines = [f"lab {lab.plan.name} is up.", "", f"EC2 endpoint   {lab.announced['ec2_endpoint']}"]
    lines += [f"sim control    {lab.announced['control']}"]
    lines += [f"{each.namespace}   {each.instance_id}  {each.primary_address}  {each.socket}" for each in lab.nodes]
    lines += [
        "",
        "# Ask the agent:",
        f"curl -s --unix-socket {node.socket} http://enoki/v1/pool",
        f"curl -s --unix-socket {node.socket} http://enoki/v1/allocations",
        f"export ENOKI_SOCKET={node.socket}",
        f"{REPOSITORY}/bin/enokictl explain node",
        f"{REPOSITORY}/bin/enokictl doctor --unwell",
        f"{REPOSITORY}/bin/enokictl top",
        "",
        "# Give a network namespace an address through the shim, as a container runtime does:",
        f"ip netns add {pod}",
        f"export ENOKI_SOCKET={node.socket} CNI_CONTAINERID={pod} CNI_NETNS=/run/netns/{pod} CNI_IFNAME=eth0",
        "export CNI_PATH=/opt/cni/bin CNI_ARGS='IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=a'",
        f'echo \'{{"cniVersion":"1.0.0","name":"enoki","type":"enoki"}}\' | CNI_COMMAND=ADD {SHIM}',
        "",
        "# Packets: to the other node, and to the internet:",
        f"ip netns exec {pod} ping -c 1 {lab.nodes[-1].primary_address}",
        f"ip netns exec {pod} curl -s http://203.0.113.5/",
        "",
        "# What the kernel knows:",
        f"ip netns exec {node.namespace} ip rule",
        f"ip netns exec {node.namespace} ip route show table 20512",
        f"ip netns exec {node.namespace} nft list table inet enoki",
        "",
        "# Drive EC2 as an outsider:",
        "export AWS_ACCESS_KEY_ID=x AWS_SECRET_ACCESS_KEY=x AWS_DEFAULT_REGION=us-west-2",
        f"export AWS_ENDPOINT_URL_EC2={lab.announced['ec2_endpoint']}",
        f"{REPOSITORY}/.venv-awscli/bin/aws ec2 describe-network-interfaces --output table",
        "",
        f"`make lab-down` removes it all, namespaces called {lab.plan.name}-pod-* included.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
