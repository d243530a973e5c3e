"""The warm pool beside the AWS plugin's, replayed: EC2 calls, waits, and what each holds.

Method: the agent's own planner, pool loop, ledger, recovery, ADD/DEL transaction and EC2 adapter run in virtual time
against the simulator's pure model; only the wire and the kernel are in memory. The peer is a model of the pool rules of
amazon-vpc-cni-k8s v1.23.1 (`bench.aws_pool_model`). Both get the same traces, seeds, latencies and kubelet. Nothing
depends on the machine: two runs print the same figures.

    python -m bench.pool [--no-write]

Writes the tables into docs/performance.md between their markers.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from bench.pool_scenarios import replay, scenarios
from bench.pool_tables import report
from bench.pool_targets import check
from bench.report import write_section


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.pool", description="The warm pool beside the AWS plugin's, replayed.")
    parser.add_argument("--no-write", action="store_true", help="print only, leave docs/performance.md alone")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # refusals are part of the scenarios
    began_s = time.monotonic()
    outcomes = [replay(scenario) for scenario in scenarios()]
    text = report(outcomes, check(outcomes))
    print(text)
    print(f"\n{sum(len(one.ours) for one in outcomes)} replays of each side, {time.monotonic() - began_s:.1f} s")
    if not arguments.no_write:
        write_section("pool", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
