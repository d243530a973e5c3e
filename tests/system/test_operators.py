"""What operators ask of a real agent on a real node, through enokictl and the plain sockets."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from lab import agent_api
from lab.lab import REPOSITORY, Lab, LabNode
from lab.pods import Pod, delete_namespace, make_namespace
from tests.system import three_truths as truths
from tests.system.agent_process import agent
from tests.system.conftest import LabFactory
from tests.system.eventually import DEADLINE_S, eventually
from tests.system.plugin_process import Asking, ask
from tests.system.vpc_control import VpcControl
from tests.unit.test_observability import metric_names

ADDRESSES = 3
"""Of a t3.small's only ENI; a fourth pod waits in vain (see test_lifecycle.py)."""
READERS_GROUP = 4242
NOBODY = 65534


@pytest.fixture(scope="module")
def readers_directory(requires_root: None) -> Iterator[Path]:
    """One that everybody may enter; pytest's are for root alone."""
    with TemporaryDirectory(prefix="enoki-readers-", dir="/run") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def vpc(lab: LabFactory, readers_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab(
        instance_type="t3.small",
        agent_environment={
            "MAX_ENI": "1",
            "IP_COOLDOWN_PERIOD": "1",
            "ENOKI_ADD_DEADLINE_S": "5",
            "ENOKI_EVENT_LOG_DIRECTORY": str(tmp_path_factory.mktemp("events")),
            "ENOKI_READERS_SOCKET": str(readers_directory / "read.sock"),
            "ENOKI_READERS_GROUP_ID": str(READERS_GROUP),
            "DISABLE_INTROSPECTION": "false",
            "DISABLE_METRICS": "false",
            "AWS_VPC_K8S_CNI_LOG_FILE": str(tmp_path_factory.mktemp("log") / "agent.log"),
        },
    )


@pytest.fixture
def pods(vpc: Lab, node: LabNode) -> Iterator[list[Pod]]:
    made = [
        Pod(container_id=f"{vpc.plan.name}-op-{number}", name=f"web-{number}", socket=node.socket)
        for number in range(ADDRESSES + 1)
    ]
    for pod in made:
        make_namespace(pod.container_id)
    yield made
    for pod in made:
        ask(pod, "DEL")
        delete_namespace(pod.container_id)
    eventually(lambda: truths.counts(node), lambda counts: counts["free_count"] == ADDRESSES)


def _environment(node: LabNode) -> dict[str, str]:
    return {"ENOKI_SOCKET": str(node.socket), "PATH": "/usr/bin:/bin"}


def enokictl(node: LabNode, *argv: str) -> tuple[int, Any]:
    """Exit code and decoded answer."""
    done = subprocess.run(
        [sys.executable, "-m", "ctl", *argv, "-o", "json"],
        env=_environment(node),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.stdout or done.returncode > 2, done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def as_user(node: LabNode, path: Path, request: str, *, uid: int, gid: int) -> str:
    """The first line of the answer to a raw request, sent by another user; the error when the socket is shut."""
    program = f"""
import os, socket, sys
os.setgroups([]); os.setgid({gid}); os.setuid({uid})
client = socket.socket(socket.AF_UNIX)
try:
    client.connect({str(path)!r})
except OSError as exc:
    sys.exit(type(exc).__name__)
client.sendall({request!r}.encode())
print(client.recv(65536).partition(b"\\r\\n")[0].decode())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    return (done.stdout or done.stderr).strip()


def test_a_pod_that_is_well(node: LabNode, pods: list[Pod]) -> None:
    address = ask(pods[0], "ADD").address
    code, answer = enokictl(node, "explain", "default/web-0")
    assert (code, answer["state"]) == (0, "ok")
    assert [step["step"] for step in answer["steps"]] == ["agent", "request", "address", "kernel"]
    assert address in answer["steps"][2]["message"]
    assert enokictl(node, "status")[0] == 0
    assert [one["addresses"] for one in enokictl(node, "pods")[1]] == [[address]]
    assert enokictl(node, "explain", "node")[1]["state"] == "ok"
    assert enokictl(node, "explain", "default/nobody")[0] == 4


def test_a_route_somebody_deleted_is_repaired_and_told(node: LabNode, pods: list[Pod]) -> None:
    address = ask(pods[0], "ADD").address
    truths.run_in(truths.netns(node), "ip", "route", "del", address, "table", truths.POD_TABLE)
    eventually(lambda: truths.pod_routes(node), lambda routes: address in routes)
    told = eventually(
        lambda: [one for one in enokictl(node, "explain", "node")[1]["events"] if one["kind"] == "repair"], bool
    )
    assert address in told[-1]["fields"]["object"] + told[-1]["fields"]["reason"]
    assert enokictl(node, "explain", "default/web-0")[1]["state"] == "ok"


def test_a_full_node_names_its_cause_in_five_places(node: LabNode, pods: list[Pod]) -> None:
    for pod in pods[:ADDRESSES]:
        assert ask(pod, "ADD").code == 0
    waiting = Asking(pods[ADDRESSES], "ADD")
    eventually(lambda: truths.waiter_count(node), lambda count: count == 1)
    # Not by enokictl: on a loaded machine the ADD might give up before a further program has started.
    answer = agent_api.get(node.socket, "/v1/explain/pods/default/web-3")
    assert (answer["state"], answer["steps"][2]["state"]) == ("waiting", "waiting")

    reply = waiting.answer()
    assert reply.text.startswith("instance_limit: ")
    code, answer = enokictl(node, "explain", "default/web-3")
    assert (code, answer["state"], answer["steps"][2]["cause"]) == (1, "failing", "instance_limit")
    assert answer["steps"][2]["evidence"]["capacity"] == ADDRESSES
    assert answer["steps"][2]["remedy"]
    (event,) = [one for one in answer["events"] if one["kind"] == "cni_failed"]
    assert event["fields"]["cause"] == "instance_limit"
    (line,) = truths.log_events(node, "cni_failed")
    assert (line["cause"], line["request_id"]) == ("instance_limit", event["request_id"])
    metrics = _metrics(node)
    assert metrics['enoki_cni_failures_total{cause="instance_limit",verb="ADD"}'] == 1
    assert metrics["awscni_no_available_ip_addresses"] == 1


def test_one_pods_story_from_the_log(node: LabNode, pods: list[Pod]) -> None:
    assert [ask(pod, "ADD").code for pod in pods[:2]] == [0, 0]
    _, answer = enokictl(node, "logs", "--pod", "default/web-0")
    attached = [line for line in answer["lines"] if line["event"] == "attached"]
    assert attached
    assert {line["pod"].partition(" ")[0] for line in attached} == {"default/web-0"}
    _, narrowed = enokictl(node, "logs", "--request-id", attached[-1]["request_id"])
    assert attached[-1] in narrowed["lines"]


def test_history_survives_the_agent(vpc: Lab, node: LabNode, pods: list[Pod]) -> None:
    address = ask(pods[0], "ADD").address
    assert ask(pods[0], "DEL").code == 0
    vpc.stop_agent(0)
    vpc.start_agents([0])
    _, answer = enokictl(node, "history", address)
    mine = [one for one in answer["tenures"] if one["container_id"] == pods[0].container_id]
    assert mine
    assert all(one["until"] and one["known_end"] for one in mine)


def test_a_path_is_traced_to_its_eni(node: LabNode, pods: list[Pod]) -> None:
    first, second = ask(pods[0], "ADD").address, ask(pods[1], "ADD").address
    eni = agent_api.get(node.socket, "/v1/enis")[0]
    _, outside = enokictl(node, "trace", "default/web-0", "203.0.113.5")
    assert (outside["reaches"], outside["translated_to"]) == ("outside", eni["primary_address"])
    assert (outside["rule_pref"], outside["table_id"], outside["eni_id"]) == (1024, 254, eni["eni_id"])
    _, beside = enokictl(node, "trace", "default/web-0", second)
    assert (beside["reaches"], beside["rule_pref"], beside["translated_to"]) == ("pod", 512, None)
    assert beside["source"] == first


def test_events_are_told_as_they_happen(node: LabNode, pods: list[Pod]) -> None:
    known = subprocess.run(
        [sys.executable, "-m", "ctl", "events", "-o", "json"],
        env=_environment(node),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=True,
    )
    newest_id = json.loads(known.stdout.splitlines()[-1])["id"]
    child = subprocess.Popen(
        [sys.executable, "-m", "ctl", "events", "--follow", "--after", str(newest_id), "-o", "json"],
        env=_environment(node),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        address = ask(pods[0], "ADD").address
        told = (json.loads(line) for line in child.stdout)
        seen = next(one for one in told if one["fields"].get("after") == "held")
        assert (seen["kind"], seen["fields"]["address"], seen["fields"]["pod"]) == ("address", address, "web-0")
        assert seen["request_id"]
    finally:
        child.kill()
        child.communicate(timeout=DEADLINE_S)


def test_only_root_changes_anything(node: LabNode, pods: list[Pod]) -> None:
    readers = Path(agent_setting(node, "ENOKI_READERS_SOCKET"))
    read = "GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    write = "PUT /v1/log-level HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\n" + '{"level":"debug"}'
    assert as_user(node, node.socket, read, uid=NOBODY, gid=READERS_GROUP) == "PermissionError"
    assert as_user(node, readers, read, uid=NOBODY, gid=NOBODY) == "PermissionError"
    assert as_user(node, readers, read, uid=NOBODY, gid=READERS_GROUP) == "HTTP/1.1 200 OK"
    assert as_user(node, readers, write, uid=NOBODY, gid=READERS_GROUP) == "HTTP/1.1 403 Forbidden"
    assert as_user(node, readers, write, uid=0, gid=0) == "HTTP/1.1 403 Forbidden"
    assert enokictl(node, "log-level")[1] == {"level": "info"}
    assert enokictl(node, "log-level", "debug")[1] == {"level": "debug"}
    assert enokictl(node, "log-level", "info")[1] == {"level": "info"}


def test_what_the_plugin_could_not_say_reaches_the_log(node: LabNode, pods: list[Pod]) -> None:
    assert ask(pods[0], "ADD", CNI_CONTAINERID="", ENOKI_TIMEOUT_S="0").code == 4
    failures = eventually(lambda: truths.log_events(node, "shim_failed"), bool)
    assert failures[-1]["command"] == "ADD"
    assert "ENOKI_TIMEOUT_S" in failures[-1]["message"]


def test_the_log_file_has_what_stderr_has(node: LabNode) -> None:
    file = Path(agent_setting(node, "AWS_VPC_K8S_CNI_LOG_FILE"))
    assert [json.loads(line)["event"] for line in file.read_text().splitlines()]


def test_aws_nodes_habits(node: LabNode, pods: list[Pod]) -> None:
    address = ask(pods[0], "ADD").address
    enis = json.loads(_curl(node, "http://127.0.0.1:61679/v1/enis"))
    (eni,) = enis["0"]["ENIs"].values()
    assert (enis["0"]["AssignedIPs"], eni["IsPrimary"], eni["RouteTableID"]) == (1, True, 254)
    held = eni["AvailableIPv4Cidrs"][f"{address}/32"]["IPAddresses"][address]
    assert held["IPAMMetadata"] == {"k8sPodNamespace": "default", "k8sPodName": "web-0", "interfacesCount": 1}
    pods_by_name = json.loads(_curl(node, "http://127.0.0.1:61679/v1/pods"))
    assert pods_by_name == {f"web-0_default_{pods[0].container_id}": {"IP": address, "DeviceNumber": 0}}
    assert set(json.loads(_curl(node, "http://127.0.0.1:61679/")).popitem()[1]) >= {"/v1/enis", "/v1/pods"}
    assert json.loads(_curl(node, "http://127.0.0.1:61679/v1/ipamd-env-settings"))["WARM_ENI_TARGET"] == 1
    assert "awscni_assigned_ip_addresses 1.0" in _curl(node, "http://127.0.0.1:61678/metrics")


def test_a_dry_run_and_the_settings(node: LabNode) -> None:
    _, plan = enokictl(node, "plan")
    assert (plan["actions"], plan["short_count"]) == ([], 0)
    assert plan["reason"]
    _, config = enokictl(node, "config", "--changed")
    assert {"name": "MAX_ENI", "value": 1, "provenance": "environment"}.items() <= next(
        one for one in config["settings"] if one["name"] == "MAX_ENI"
    ).items()
    _, budget = enokictl(node, "budget")
    assert any(one["action"] == "DescribeNetworkInterfaces" for one in budget["actions"])


def test_rules_and_dashboard_ask_for_metrics_that_exist(node: LabNode) -> None:
    text = _curl(node, "http://127.0.0.1:61678/metrics")
    families = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    asked = {re.sub(r"_bucket$", "", name) for name in metric_names()}
    assert asked
    assert asked <= families


def agent_setting(node: LabNode, name: str) -> str:
    return str(next(one["value"] for one in enokictl(node, "config")[1]["settings"] if one["name"] == name))


def _metrics(node: LabNode) -> dict[str, float]:
    text = _curl(node, "http://127.0.0.1:61678/metrics")
    rows = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in rows}


def _curl(node: LabNode, url: str) -> str:
    program = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=10).read().decode())"
    return truths.run_in(truths.netns(node), sys.executable, "-c", program)


def test_a_start_that_hangs_says_why(vpc: Lab, node: LabNode) -> None:
    vpc.stop_agent(0)  # the last test: its agent does not come back
    fault: dict[str, Any] = {"kind": "error", "code": "UnauthorizedOperation", "http_status": 403}
    with VpcControl(vpc).fault("DescribeNetworkInterfaces", **fault), agent(vpc, node):
        answer = eventually(
            lambda: enokictl(node, "explain", "node")[1],
            lambda seen: isinstance(seen, dict) and seen["state"] == "failing",
        )
        assert answer["steps"][0]["because"][0]["cause"] == "iam_denied"
