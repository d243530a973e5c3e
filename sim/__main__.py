"""`python -m sim up` and `python -m sim down`: the command line of the simulated VPC."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from ipaddress import IPv4Network
from pathlib import Path

from sim.fabric_name import Refused
from sim.program import Options, down, up

EXIT_REFUSED = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 refused (one sentence on stderr says why)."""
    chosen = _parser().parse_args(arguments)
    try:
        if chosen.verb == "down":
            down(chosen.name)
        else:
            up(_options(chosen))
    except Refused as refused:
        sys.stderr.write(f"{refused}\n")
        return EXIT_REFUSED
    return 0


def _options(chosen: argparse.Namespace) -> Options:
    return Options(
        name=chosen.name,
        node_count=chosen.nodes,
        instance_type=chosen.instance_type,
        ec2_port=chosen.ec2_port,
        control_port=chosen.control_port,
        vpc_cidr=chosen.vpc_cidr,
        subnets=tuple(chosen.subnet or (IPv4Network("10.0.0.0/24"),)),
        realistic=chosen.latency == "real",
        state_file=chosen.state_file,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m sim", description="A simulated VPC made of network namespaces.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("up", help="run one until SIGTERM; prints one line of JSON when ready")
    clean = verbs.add_parser("down", help="remove what a killed run of that name left")
    for verb in (run, clean):
        verb.add_argument("--name", default="enoki", help="prefix of the namespaces (default: %(default)s)")
    run.add_argument("--nodes", type=int, default=2, metavar="N", help="instances to launch (default: %(default)s)")
    run.add_argument("--instance-type", default="m5.large", help="of the nodes (default: %(default)s)")
    run.add_argument("--ec2-port", type=int, default=0, help="on 127.0.0.1; 0 is a free one (default)")
    run.add_argument("--control-port", type=int, default=0, help="on 127.0.0.1; 0 is a free one (default)")
    run.add_argument(
        "--vpc-cidr", type=IPv4Network, default=IPv4Network("10.0.0.0/16"), help="of the VPC (default: %(default)s)"
    )
    run.add_argument(
        "--subnet",
        type=IPv4Network,
        action="append",
        metavar="CIDR",
        help="a subnet, may be given again; nodes are in the first (default: 10.0.0.0/24)",
    )
    run.add_argument(
        "--latency",
        choices=("real", "none"),
        default="real",
        help="EC2's times, lag and request limits, or none of them (default: %(default)s)",
    )
    run.add_argument("--state-file", type=Path, help="where to write the same JSON while ready")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
