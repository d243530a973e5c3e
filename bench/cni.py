"""Whole-process ADD and DEL, fork to exit: the shim, as in a checkout and as hosts get it, beside ptp with host-local.

Method: one run, one node namespace of a lab, a warm pool, a fresh network namespace per round for each of the two,
100 rounds, the order of the two swapped every round. A time is the wall clock from posix_spawn to the end of waitpid;
making and removing the namespaces is not timed. The bare start of the interpreter is measured beside them, because it
is the floor of a shim in Python.

    python -m bench.cni [--rounds 100] [--no-write]

Writes the table into docs/performance.md between its markers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.report import write_section
from lab.lab import REPOSITORY, Lab, LabPlan
from lab.pods import SHIM, delete_namespace, make_namespace

PTP = "/usr/lib/cni/ptp"
NAME = "ekbench"
WARM = {"WARM_IP_TARGET": "60", "MINIMUM_IP_TARGET": "80", "IP_COOLDOWN_PERIOD": "1"}


@dataclass(slots=True, kw_only=True)
class Series:
    """Times in milliseconds of one program and verb."""

    times_ms: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        return statistics.median(self.times_ms)

    @property
    def p99_ms(self) -> float:
        return statistics.quantiles(self.times_ms, n=100, method="inclusive")[98]


def timed_ms(argv: list[str], environment: Mapping[str, str], stdin: Path, stdout: Path) -> float:
    """Run a program once and return its wall-clock milliseconds, fork to exit.

    Raises: RuntimeError with its output when it fails: a failed call must not count as a fast one.
    """
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.fspath(stdin), os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.fspath(stdout), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    ]
    started = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions)
    _, status = os.waitpid(pid, 0)
    elapsed_ms = (time.perf_counter() - started) * 1000
    if status != 0:
        raise RuntimeError(f"{argv[0]} {environment.get('CNI_COMMAND')}: status {status}: {stdout.read_text()}")
    return elapsed_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A CNI plugin under test: its program, its network configuration and what else it needs in its environment."""

    name: str
    program: str
    config: Path
    extra: Mapping[str, str]

    def call(self, verb: str, netns: str, scratch: Path) -> float:
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": netns,
            "CNI_NETNS": f"/run/netns/{netns}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/usr/lib/cni",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={netns}",
            **self.extra,
        }
        return timed_ms([self.program], environment, self.config, scratch / "stdout")


def measure(contenders: Sequence[Contender], rounds: int, scratch: Path) -> dict[tuple[str, str], Series]:
    """Alternate the contenders for `rounds` rounds of ADD and DEL, each in a namespace of its own."""
    series = {(each.name, verb): Series() for each in contenders for verb in ("ADD", "DEL")}
    series["python3 -I -S", "start"] = Series()
    nothing = Path("/dev/null")
    for number in range(rounds):
        order = list(contenders) if number % 2 else list(reversed(contenders))
        namespaces = {each.name: f"{NAME}-pod-{index}-{number}" for index, each in enumerate(order)}
        for namespace in namespaces.values():
            make_namespace(namespace)
        try:
            for verb in ("ADD", "DEL"):
                for each in order:
                    series[each.name, verb].times_ms.append(each.call(verb, namespaces[each.name], scratch))
        finally:
            for namespace in namespaces.values():
                delete_namespace(namespace)
        bare = ["/usr/bin/python3", "-I", "-S", "-c", "pass"]
        series["python3 -I -S", "start"].times_ms.append(timed_ms(bare, {}, nothing, scratch / "stdout"))
    return series


def table(series: Mapping[tuple[str, str], Series], rounds: int) -> str:
    lines = ["| program | verb | median ms | p99 ms |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {verb} | {one.median_ms:.2f} | {one.p99_ms:.2f} |" for (name, verb), one in sorted(series.items())
    ]
    static = series["enoki, static", "ADD"].median_ms / series["enoki", "ADD"].median_ms
    ratio = {v: series["enoki", v].median_ms / series["ptp + host-local", v].median_ms for v in ("ADD", "DEL")}
    lines += [
        "",
        f"Ratio of medians, enoki to ptp + host-local, {rounds} rounds:",
        f"**ADD {ratio['ADD']:.2f}** (to reach: 1.3), **DEL {ratio['DEL']:.2f}** (to reach: 0.4).",
        f"The static executable to the one of a checkout: ADD {static:.2f}.",
    ]
    return "\n".join(lines)


def static_shim(scratch: Path) -> str:
    """Link the executable that hosts get; its path."""
    output = str(scratch / "enoki-static")
    argv = ["/usr/bin/python3", "-I", str(REPOSITORY / "deploy" / "shim" / "build.py"), output]
    subprocess.run(argv, check=True, timeout=60)
    return output


def inside(arguments: argparse.Namespace) -> int:
    """The measuring part; runs in the node's namespace, where ptp makes its host ends."""
    scratch = Path(arguments.scratch)
    ours, theirs = scratch / "enoki.json", scratch / "ptp.json"
    ours.write_text(json.dumps({"cniVersion": "1.0.0", "name": "enoki", "type": "enoki"}))
    ipam = {"type": "host-local", "subnet": "10.99.0.0/16", "dataDir": str(scratch / "host-local")}
    theirs.write_text(json.dumps({"cniVersion": "1.0.0", "name": "peer", "type": "ptp", "ipMasq": False, "ipam": ipam}))
    contenders = [
        Contender(name="enoki", program=str(SHIM), config=ours, extra={"ENOKI_SOCKET": arguments.socket}),
        Contender(
            name="enoki, static", program=static_shim(scratch), config=ours, extra={"ENOKI_SOCKET": arguments.socket}
        ),
        Contender(name="ptp + host-local", program=PTP, config=theirs, extra={}),
    ]
    measure(contenders, 5, scratch)  # page cache and lazy imports of the agent
    text = table(measure(contenders, arguments.rounds, scratch), arguments.rounds)
    print(text)
    if not arguments.no_write:
        write_section("cni", text)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.cni", description="ADD and DEL beside ptp + host-local.")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--no-write", action="store_true", help="print only, leave docs/performance.md alone")
    parser.add_argument("--socket", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.socket:
        return inside(arguments)
    lab = Lab(LabPlan(name=NAME, node_count=1, instance_type="m5.4xlarge", latency="none", agent_environment=WARM))
    lab.down()
    try:
        lab.up()
        node = lab.nodes[0]
        argv = ["nsenter", f"--net=/run/netns/{node.namespace}", "--", sys.executable, "-m", "bench.cni"]
        argv += [*sys.argv[1:], "--socket", str(node.socket), "--scratch", str(node.directory)]
        return subprocess.run(argv, cwd=REPOSITORY, check=False, timeout=600).returncode
    finally:
        lab.down()


if __name__ == "__main__":
    sys.exit(main())
