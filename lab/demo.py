"""`make demo`: two nodes, three pods on each, and a table of what real packets did.

The nodes are t3.small: three ENIs with three pod addresses each (EC2 documentation, "IP addresses per network
interface per instance type"). A short-lived pod on each node takes the first address of the primary ENI, so that the
three pods that stay are spread over two ENIs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from lab import agent_api, echo
from lab.lab import Lab, LabNode, LabPlan
from lab.pods import Pod

COOLDOWN_S = 5
INTERNET = "203.0.113.5"
IMDS = "169.254.169.254"
PODS_PER_NODE = 3


@dataclass(slots=True, kw_only=True)
class Stage:
    """What the checks look at: the pods by node, their addresses, and the pods that only pass through."""

    lab: Lab
    pods: list[list[Pod]] = field(default_factory=list)
    passing: list[Pod] = field(default_factory=list)
    address: dict[str, str] = field(default_factory=dict)

    def eni_of(self, pod: Pod) -> str:
        found = agent_api.get(pod.socket, f"/v1/allocations?namespace={pod.pod_namespace}&pod={pod.name}")
        return str(found[0]["eni_id"])

    def pair(self, *, same_eni: bool) -> tuple[Pod, Pod]:
        pods = self.pods[0]
        enis = {pod.name: self.eni_of(pod) for pod in pods}
        for a in pods:
            for b in pods:
                if a is not b and (enis[a.name] == enis[b.name]) is same_eni:
                    return a, b
        raise AssertionError(f"no two pods of node 0 are on {'one ENI' if same_eni else 'different ENIs'}: {enis}")


def run_demo(name: str = "enoki-demo") -> int:
    """The whole demo; 0 when every check passed. Takes itself down, also when it fails; leaves a running lab alone."""
    console = Console()
    console.print("[bold]Enoki demo[/]: a simulated VPC, two nodes, real packets. Takes about a minute.")
    started = time.monotonic()
    # A cooldown shorter than the default 30 s, so that nobody waits half a minute to see it end.
    plan = LabPlan(name=name, node_count=2, agent_environment={"IP_COOLDOWN_PERIOD": str(COOLDOWN_S)})
    lab = Lab(plan)
    lab.down()
    try:
        with _step(console, "simulated VPC, two nodes, two agents"):
            lab.up()
        stage = Stage(lab=lab)
        with _step(console, f"{PODS_PER_NODE} pods per node through the shim"):
            _start_pods(stage)
        results = _check_all(console, stage)
    finally:
        with _step(console, "taking everything down"):
            lab.down()
    console.print(_table(results))
    failed = sum(1 for _, passed, _ in results if not passed)
    verdict = f"[bold red]{failed} failed[/]" if failed else f"[bold green]all {len(results)} checks passed[/]"
    console.print(f"{verdict} in {time.monotonic() - started:.0f} s")
    return 1 if failed else 0


@contextmanager
def _step(console: Console, title: str) -> Iterator[None]:
    started = time.monotonic()
    with console.status(f"{title} ..."):
        yield
    console.print(f"  {title}: {time.monotonic() - started:.1f} s")


def _start_pods(stage: Stage) -> None:
    for node in stage.lab.nodes:
        pods = [_pod(stage.lab, node, f"web-{node.index}-{number}") for number in range(PODS_PER_NODE)]
        passing = _pod(stage.lab, node, f"job-{node.index}")
        for pod in [passing, *pods]:
            stage.address[pod.name] = pod.start()
        stage.pods.append(pods)
        stage.passing.append(passing)


def _pod(lab: Lab, node: LabNode, name: str) -> Pod:
    return Pod(container_id=f"{lab.plan.name}-pod-{name}", name=name, socket=node.socket)


def _check_all(console: Console, stage: Stage) -> list[tuple[str, bool, str]]:
    checks: list[tuple[str, Callable[[Stage], str]]] = [
        ("same node, same ENI", _same_eni),
        ("same node, different ENIs", _different_enis),
        ("other node, source unchanged", _other_node),
        ("internet, as the node's primary address", _internet),
        ("node to pod", _node_to_pod),
        ("pod to instance metadata", _metadata),
        ("kill -9 of an agent: pods stay connected, addresses unique", _kill_agent),
        ("DEL returns the address after its cooldown", _cooldown),
        ("no packet left by an ENI that EC2 would not allow", _source_checks),
    ]
    results = []
    for title, check in checks:
        try:
            evidence, passed = check(stage), True
        except (AssertionError, OSError, ValueError, KeyError, IndexError) as exc:
            evidence, passed = f"{type(exc).__name__}: {exc}", False
        mark = "[green]ok[/]" if passed else "[red]FAILED[/]"
        console.print(f"  {mark} {title}")
        results.append((title, passed, evidence))
    return results


def _table(results: list[tuple[str, bool, str]]) -> Table:
    table = Table(title="What the packets did", title_justify="left", show_lines=False)
    table.add_column("check")
    table.add_column("")
    table.add_column("seen", overflow="fold")
    for title, passed, evidence in results:
        table.add_row(title, "[green]ok[/]" if passed else "[red]FAILED[/]", evidence)
    return table


def _expect(*, seen: str, wanted: str, what: str) -> None:
    if seen != wanted:
        raise AssertionError(f"{what}: saw {seen or 'nothing'}, expected {wanted}")


def _source_seen(netns: str, server: Pod, address: str) -> str:
    """Whom `server` sees when a connection from `netns` reaches it."""
    with (
        echo.Running(server.netns, "serve", str(echo.PORT)),
        echo.Running(netns, "hold", address, str(echo.PORT)) as client,
    ):
        _expect(seen=client.ask("hello"), wanted="hello", what="echo")
        return client.greeting


def _between(stage: Stage, client: Pod, server: Pod) -> str:
    seen = _source_seen(client.netns, server, stage.address[server.name])
    _expect(seen=seen, wanted=stage.address[client.name], what=f"source seen by {server.name}")
    return f"{client.name} {seen} → {server.name} {stage.address[server.name]}"


def _same_eni(stage: Stage) -> str:
    a, b = stage.pair(same_eni=True)
    return f"{_between(stage, a, b)}, both on {stage.eni_of(a)}"


def _different_enis(stage: Stage) -> str:
    a, b = stage.pair(same_eni=False)
    return f"{_between(stage, a, b)}, {stage.eni_of(a)} and {stage.eni_of(b)}"


def _other_node(stage: Stage) -> str:
    a, b = stage.pair(same_eni=False)
    there = stage.pods[1][0]
    return "; ".join(_between(stage, pod, there) for pod in (a, b))


def _internet(stage: Stage) -> str:
    primary = stage.lab.nodes[0].primary_address
    seen = []
    for pod in stage.pair(same_eni=False):
        reply = pod.run("curl", "-sS", "--max-time", "5", f"http://{INTERNET}/").stdout.strip()
        _expect(seen=reply.split(":")[0], wanted=primary, what=f"source seen by {INTERNET}")
        seen.append(f"{stage.address[pod.name]} seen as {reply}")
    return "; ".join(seen)


def _node_to_pod(stage: Stage) -> str:
    node = stage.lab.nodes[0]
    seen = []
    for pod in stage.pair(same_eni=False):
        source = _source_seen(f"/run/netns/{node.namespace}", pod, stage.address[pod.name])
        _expect(seen=source, wanted=node.primary_address, what=f"source seen by {pod.name}")
        seen.append(f"{source} → {stage.address[pod.name]}")
    return "; ".join(seen)


def _metadata(stage: Stage) -> str:
    node = stage.lab.nodes[0]
    script = (
        f"token=$(curl -sS --max-time 5 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' http://{IMDS}/latest/api/token)"
        f' && curl -sS --max-time 5 -H "X-aws-ec2-metadata-token: $token" http://{IMDS}/latest/meta-data/instance-id'
    )
    for pod in stage.pair(same_eni=False):
        _expect(seen=pod.run("sh", "-c", script).stdout.strip(), wanted=node.instance_id, what="instance-id")
    return f"instance-id {node.instance_id} from two pods"


def _kill_agent(stage: Stage) -> str:
    """Every pod of node 0 holds a connection to a pod of the other node across the kill, the gap and the restart."""
    server = stage.pods[1][0]
    before = _allocations(stage, 0)
    with ExitStack() as open_connections:
        open_connections.enter_context(echo.Running(server.netns, "serve", str(echo.PORT)))
        clients = [
            open_connections.enter_context(echo.Running(pod.netns, "hold", stage.address[server.name], str(echo.PORT)))
            for pod in stage.pods[0]
        ]
        stage.lab.kill_agent(0)
        for client in clients:
            _expect(seen=client.ask("agent down"), wanted="agent down", what="echo while the agent is dead")
        stage.lab.start_agents([0])
        for client in clients:
            _expect(seen=client.ask("agent back"), wanted="agent back", what="echo after the restart")
    if _allocations(stage, 0) != before:
        raise AssertionError(f"allocations changed: {before} became {_allocations(stage, 0)}")
    newcomer = _pod(stage.lab, stage.lab.nodes[0], "web-0-late")
    stage.address[newcomer.name] = newcomer.start()
    addresses = list(stage.address.values())
    if len(set(addresses)) != len(addresses):
        raise AssertionError(f"an address was given twice: {sorted(addresses)}")
    return f"{len(clients)} connections held, {len(addresses)} addresses, all different"


def _allocations(stage: Stage, index: int) -> set[tuple[str, str]]:
    found = agent_api.get(stage.lab.nodes[index].socket, "/v1/allocations")
    return {(item["container_id"], item["addresses"][0]) for item in found}


def _cooldown(stage: Stage) -> str:
    job = stage.passing[0]
    address = stage.address[job.name]
    job.stop()
    _expect(seen=_address_state(job, address), wanted="cooling", what=f"state of {address} right after DEL")
    started = time.monotonic()
    while _address_state(job, address) == "cooling" and time.monotonic() - started < COOLDOWN_S + 5:
        time.sleep(0.2)
    _expect(seen=_address_state(job, address), wanted="free", what=f"state of {address} after {COOLDOWN_S} s")
    return f"{address} cooling, free after {time.monotonic() - started:.1f} s"


def _address_state(pod: Pod, address: str) -> str:
    pool = agent_api.get(pod.socket, "/v1/pool")
    for eni in pool["enis"]:
        for item in eni["addresses"]:
            if item["address"] == address:
                return str(item["state"])
    return "not in the pool"


def _source_checks(stage: Stage) -> str:
    drops = stage.lab.source_check_drops()
    if any(drops.values()):
        raise AssertionError(f"dropped packets by ENI: {drops}")
    return f"0 drops on {len(drops)} ENIs"
