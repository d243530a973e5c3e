"""What an agent costs: resident memory, idle CPU, and the time a restart takes.

Method: one node of a lab (m5.16xlarge, so that 110 pods and their warm addresses fit on 3 ENIs), EC2 without latency,
and a simulated Kubernetes API server on the node's loopback, by TLS, that has the 110 pods bound to it. The agent
finds it by a kubeconfig, for which it imports YAML (1 MiB) that a pod does not need.
The agent runs without the packages that only tests install (bench/agent_as_shipped.py), from bytecode without
docstrings (deploy/image/bytecode.py), as in the image. Memory is VmRSS of the agent's
only process (proc(5)), shared libraries included, read when the pool has settled: at no pod, after 110 ADDs through the
shim, and after a restart with the 110 pods there. Idle CPU is its user and system time over 30 s without a request. A
restart is SIGTERM, the end of the process, and then from fork: until a connect to the socket succeeds, until a GET is
answered, and until the agent says READY=1 (ADD can be served); the describe that is in it is read from the agent's log.

    python -m bench.agent [--pods 110] [--restarts 7] [--no-write]

Writes the table into docs/performance.md between its markers.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import write_section
from lab.agent_api import get
from lab.lab import REPOSITORY, Lab, LabNode, LabPlan
from lab.pods import Pod, delete_namespace
from lab.processes import GRACEFUL, ProcessId, ReadySocket, end, start_announcing, start_notifying

NAME = "ekagent"
ENI_COUNT = 3
IDLE_S = 30.0
SETTLED_S = 60.0
"""How long the pool may take to settle before a reading."""
NODE_NAME = "node-0"
API_PORT = 6443
TARGET_MIB = 80.0
TARGET_SOCKET_S = 0.5
TARGET_SERVING_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """One restart, in seconds from fork. describe_s: what EC2 took of it."""

    socket_s: float
    answer_s: float
    serving_s: float
    describe_s: float


def resident_mib(pid: int) -> float:
    """VmRSS of one process (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


def cpu_s(pid: int) -> float:
    """User and system time so far: fields 14 and 15 of /proc/<pid>/stat (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wait_until_settled(node: LabNode) -> None:
    """Return when the pool plans nothing and nobody waits. Raises: TimeoutError."""
    deadline_s = time.monotonic() + SETTLED_S
    quiet_count = 0
    while quiet_count < 3:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the pool did not settle: {get(node.socket, '/v1/pool')['reason']}")
        before = get(node.socket, "/v1/pool")["counts"]
        time.sleep(0.5)
        quiet_count = quiet_count + 1 if get(node.socket, "/v1/pool")["counts"] == before else 0


def wait_until_known(node: LabNode) -> None:
    """Return when the agent has synced with the API server. Raises: TimeoutError."""
    deadline_s = time.monotonic() + SETTLED_S
    while b'"kubernetes_synced"' not in node.log.read_bytes():
        if time.monotonic() > deadline_s:
            raise TimeoutError("the agent did not reach the API server; its log says why")
        time.sleep(0.1)


def idle_percent(pid: int, seconds: float) -> float:
    began_s, used_s = time.monotonic(), cpu_s(pid)
    time.sleep(seconds)
    return 100.0 * (cpu_s(pid) - used_s) / (time.monotonic() - began_s)


def restart(lab: Lab, node: LabNode) -> tuple[Restart, ProcessId]:
    """Start the agent of a node on which none runs; the times, and the process."""
    ready = ReadySocket(node.directory / "bench-ready.sock")
    log_size = node.log.stat().st_size
    times: dict[str, float] = {}
    began_s = time.perf_counter()
    child = start_notifying(lab.agent_argv(node), environment=lab.agent_environment(node), log=node.log, ready=ready)
    knocking = threading.Thread(target=knock, args=(node.socket, began_s, times))
    knocking.start()
    try:
        if not ready.wait(child, SETTLED_S):
            raise RuntimeError("the agent did not get ready; its log says why")
        serving_s = time.perf_counter() - began_s
    finally:
        ready.close()
        knocking.join()
    lines = node.log.read_bytes()[log_size:].decode().splitlines()
    return (
        Restart(socket_s=times["socket"], answer_s=times["answer"], serving_s=serving_s, describe_s=describe_s(lines)),
        ProcessId.of(child.pid),
    )


def knock(path: Path, began_s: float, times: dict[str, float]) -> None:
    """Note when the first connect succeeds and when the first GET on that connection is answered."""
    while time.perf_counter() - began_s < SETTLED_S:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            try:
                client.connect(str(path))
            except OSError:
                time.sleep(0.002)
                continue
            times["socket"] = time.perf_counter() - began_s
            client.sendall(b"GET /v1/health HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
            client.recv(1)
            times["answer"] = time.perf_counter() - began_s
            return


def describe_s(lines: Sequence[str]) -> float:
    """Seconds that the start's describe of ENIs took, from the agent's log."""
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines if line.startswith("{")]
    return sum(
        float(one["duration_s"])
        for one in entries
        if one["event"] == "ec2_call" and one["action"] == "DescribeNetworkInterfaces"
    )


def table(memory: Sequence[tuple[str, float]], cpu: float, restarts: Sequence[Restart], pod_count: int) -> str:
    def row(what: str, times_s: Sequence[float], target_s: float) -> str:
        median_s, worst_s = statistics.median(times_s), max(times_s)
        verdict = "reached" if worst_s <= target_s else "**not reached**"
        return f"| {what} | {median_s:.2f} s | {worst_s:.2f} s | {target_s:g} s | {verdict} |"

    lines = ["| resident memory | MiB | at most | |", "|---|---|---|---|"]
    for what, mib in memory:
        verdict = "reached" if mib <= TARGET_MIB else "**not reached**"
        lines.append(f"| {what} | {mib:.1f} | {TARGET_MIB:g} | {verdict} |")
    lines += [
        "",
        f"Idle CPU at {pod_count} pods: **{cpu:.2f} %** of one core over {IDLE_S:g} s.",
        "",
        f"| restart: {ENI_COUNT} ENIs, {pod_count} pods; from fork | median | worst of {len(restarts)} | at most | |",
        "|---|---|---|---|---|",
        row("the socket takes connections", [one.socket_s for one in restarts], TARGET_SOCKET_S),
        row("the first GET is answered", [one.answer_s for one in restarts], TARGET_SERVING_S),
        row("ADD is served, less the describe", [one.serving_s - one.describe_s for one in restarts], TARGET_SERVING_S),
        "",
        f"The describe takes {statistics.median(one.describe_s for one in restarts):.2f} s here; at EC2 0.1 to 1 s.",
    ]
    return "\n".join(lines)


def certify(directory: Path) -> tuple[Path, Path]:
    """An authority that is the API server's own certificate (with its key), and a kubeconfig that trusts it alone."""
    pem, config = directory / "kubernetes.pem", directory / "kubeconfig"
    argv = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    argv += ["-days", "1", "-subj", "/CN=kubernetes", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*argv, "-keyout", pem, "-out", directory / "ca.crt"], check=True, capture_output=True)
    pem.write_bytes(pem.read_bytes() + (directory / "ca.crt").read_bytes())
    cluster = {"server": f"https://127.0.0.1:{API_PORT}", "certificate-authority": str(directory / "ca.crt")}
    document = {
        "current-context": "bench",
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
        "clusters": [{"name": "bench", "cluster": cluster}],
        "users": [{"name": "bench", "user": {"token": "anything"}}],
    }
    config.write_text(json.dumps(document))
    return pem, config


def compiled_as_shipped(directory: Path) -> None:
    """Bytecode of what an agent imports as the image has it (deploy/image/bytecode.py): without docstrings."""
    listing = """
import sys, bench.agent_as_shipped, agent.assembly, agent.kube.library
agent.kube.library.kube_config()
for module in list(sys.modules.values()):
    print(getattr(module, "__file__", None) or "")
"""
    environment = {"PYTHONPYCACHEPREFIX": str(directory)}
    found = subprocess.run(
        [sys.executable, "-c", listing], check=True, capture_output=True, text=True, env=environment, cwd=REPOSITORY
    )
    files = [file for file in found.stdout.splitlines() if file.startswith(str(REPOSITORY)) and file.endswith(".py")]
    compiler = REPOSITORY / "deploy" / "image" / "bytecode.py"
    subprocess.run([sys.executable, compiler, *files], check=True, env=environment)


@contextmanager
def kubernetes(lab: Lab, pod_count: int, certificate: Path) -> Iterator[None]:
    """An API server in the node's namespace. The agent finds it whenever it comes."""
    argv = ["nsenter", f"--net=/run/netns/{lab.nodes[0].namespace}", "--", sys.executable, "-m", "sim.kube"]
    argv += ["--node", NODE_NAME, "--port", str(API_PORT), "--pods", str(pod_count)]
    argv += ["--certificate", str(certificate)]
    process, _ = start_announcing(argv, log=lab.directory / "apiserver.log", timeout_s=SETTLED_S)
    try:
        yield
    finally:
        end(process, signals=GRACEFUL)


def measure(lab: Lab, pod_count: int, restart_count: int) -> str:
    node = lab.nodes[0]
    wait_until_known(node)
    wait_until_settled(node)
    memory = [("no pod", resident_mib(lab.agent_pid(0)))]
    pods = [Pod(container_id=f"{NAME}-pod-{n}", name=f"pod-{n}", socket=node.socket) for n in range(pod_count)]
    try:
        for pod in pods:
            pod.start()
        wait_until_settled(node)
        memory.append((f"{pod_count} pods, after their ADDs", resident_mib(lab.agent_pid(0))))
        if (eni_count := len(get(node.socket, "/v1/enis"))) != ENI_COUNT:
            raise RuntimeError(f"the node has {eni_count} ENIs, not {ENI_COUNT}")
        cpu = idle_percent(lab.agent_pid(0), IDLE_S)
        lab.stop_agent(0)
        restarts = []
        for number in range(restart_count):
            measured, process = restart(lab, node)
            restarts.append(measured)
            if number == restart_count - 1:
                wait_until_settled(node)
                memory.append((f"{pod_count} pods, after a restart", resident_mib(process.pid)))
            end(process, signals=GRACEFUL)
        return table(memory, cpu, restarts, pod_count)
    finally:
        for pod in pods:
            delete_namespace(pod.container_id)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.agent", description="Memory, idle CPU and restart of one agent.")
    parser.add_argument("--pods", type=int, default=110)
    parser.add_argument("--restarts", type=int, default=7)
    parser.add_argument("--no-write", action="store_true", help="print only, leave docs/performance.md alone")
    arguments = parser.parse_args()
    settings = {"WARM_IP_TARGET": "20", "MINIMUM_IP_TARGET": "20", "MY_NODE_NAME": NODE_NAME}
    lab = Lab(
        LabPlan(
            name=NAME,
            node_count=1,
            instance_type="m5.16xlarge",
            latency="none",
            agent_module="bench.agent_as_shipped",
            agent_environment=settings,
        )
    )
    lab.down()
    with tempfile.TemporaryDirectory(prefix=NAME) as scratch:
        certificate, config = certify(Path(scratch))
        settings["KUBECONFIG"] = str(config)
        settings["PYTHONPYCACHEPREFIX"] = f"{scratch}/bytecode"
        compiled_as_shipped(Path(scratch, "bytecode"))
        try:
            lab.up()
            with kubernetes(lab, arguments.pods, certificate):
                text = measure(lab, arguments.pods, arguments.restarts)
        finally:
            lab.down()
    print(text)
    if not arguments.no_write:
        write_section("agent", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
