"""What the agent asks of an API server and what it makes of faults; what it knows and tells: test_kube_scenarios.py."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Cause, ClusterFailed
from agent.ipam.model import Attachment, AttachmentKey, EniId, Holder
from agent.kube import access
from agent.kube.absent import NoCluster
from agent.kube.access import Access
from agent.kube.api import KubeApi
from agent.kube.cluster import POD_IPS, KubeCluster
from agent.kube.policy import KubePolicy
from agent.ports.cluster import Cluster, Notice, NoticeKind
from sim.kube.faults import Fault, Rule
from sim.kube.server import ApiServer, a_node, a_pod
from sim.kube.store import EVENTS, NODES, PODS
from sim.kube.users import User
from tests.contract.kube_access import access_by_kubeconfig, access_to

DEADLINE_S = 10.0
NODE = "node-1"
POLICY = KubePolicy(node_name=NODE, pod_name="enoki-x")
CUSTOM = replace(POLICY, custom_networking=True, annotate_pod_ip=True)


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    made = ApiServer()
    await made.start()
    await made.store.create(NODES, "", a_node(NODE, max_pods=29))
    yield made
    await made.stop()


@asynccontextmanager
async def cluster(server: ApiServer, policy: KubePolicy = POLICY) -> AsyncIterator[KubeCluster]:
    made = KubeCluster(
        policy,
        version="test",
        find=lambda _: access_to(server.url),
        draw=lambda: 0.01,
    )
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def until(is_so: Callable[[], Any]) -> None:
    """Wait for something that shows in another task of this loop."""
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():
            await asyncio.sleep(0.002)


def an_attachment(pod: str, address: str) -> Attachment:
    holder = Holder(key=AttachmentKey(container_id=f"c-{pod}", ifname="eth0"), namespace="default", pod=pod)
    return Attachment(holder=holder, addresses=(IPv4Address(address),), eni_id=EniId("eni-1"), since_s=0.0)


async def test_both_clusters_are_clusters(server: ApiServer) -> None:
    async with cluster(server) as made:
        clusters: list[Cluster] = [made, NoCluster()]

    assert all(not one.announced() and one.schedulable for one in clusters)


async def test_a_failure_and_its_end_are_told(server: ApiServer) -> None:
    seen: list[Cause | None] = []
    async with cluster(server) as made:
        made.subscribe(lambda: seen.append(None if (now := made.view().failure) is None else now.cause))
        await until(lambda: made.view().synced)
        server.faults.add(Rule(fault=Fault.FORBIDDEN, plural="pods"))
        server.cut_watches()
        await until(lambda: Cause.KUBERNETES_DENIED in seen)
        await until(lambda: seen[-1] is None)


# --- Custom networking -----------------------------------------------------------------------------------------------


def an_eni_config(name: str, subnet: str, *groups: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": {"subnet": subnet, "securityGroups": list(groups)}}


def events(server: ApiServer) -> list[dict[str, Any]]:
    return server.store.objects(EVENTS)


async def test_without_custom_networking_nobody_asks_for_eni_configs(server: ApiServer) -> None:
    async with cluster(server) as made:
        await until(lambda: made.view().synced)
        assert made.site() is None

    assert ("list", "eniconfigs") not in server.requests


# --- Events ----------------------------------------------------------------------------------------------------------


def a_notice(kind: NoticeKind = NoticeKind.SUBNET_EXHAUSTED, **kwargs: Any) -> Notice:
    return Notice(kind=kind, message="subnet-1 is full", **kwargs)


async def test_a_thousand_reports_are_one_event(server: ApiServer) -> None:
    async with cluster(server) as made:
        for number in range(1000):
            made.report(a_notice(subject="subnet-1", evidence={"free": number}))
        await until(lambda: events(server))
        made.report(a_notice(subject="subnet-1", over=True))
        await until(lambda: len(events(server)) == 2)

    first, second = events(server)
    assert (first["reason"], first["type"]) == ("SubnetExhausted", "Warning")
    assert (second["reason"], second["type"]) == ("SubnetExhaustedOver", "Normal")
    assert first["reportingInstance"] == NODE
    assert server.requests["create", "events"] == 2


@pytest.mark.parametrize("fault", [Fault.THROTTLE, Fault.UNAVAILABLE, Fault.FORBIDDEN, Fault.DISCONNECT])
async def test_an_event_gets_through_after_a_fault(server: ApiServer, fault: Fault) -> None:
    server.faults.add(Rule(fault=fault, verb="create", plural="events", retry_after_s=0), count=2)
    async with cluster(server) as made:
        made.report(a_notice())
        await until(lambda: events(server))

    assert len(events(server)) == 1


# --- The annotation --------------------------------------------------------------------------------------------------


def annotation(server: ApiServer, name: str) -> str | None:
    found: str | None = server.store.get(PODS, "default", name)["metadata"].get("annotations", {}).get(POD_IPS)
    return found


async def test_the_annotation_is_written_once_and_emptied_at_the_end(server: ApiServer) -> None:
    await server.store.create(PODS, "default", a_pod("a", NODE))
    held = [an_attachment("a", "10.0.0.7")]
    async with cluster(server, CUSTOM) as made:
        await until(lambda: made.pod("default", "a"))
        await made.settle(held)
        await made.settle(held)
        assert annotation(server, "a") == "10.0.0.7"
        assert server.requests["patch", "pods"] == 1

        await server.store.patch(PODS, "default", "a", {"status": {"phase": "Succeeded"}})
        await until(lambda: not made.announced())
        await made.settle([])
        assert annotation(server, "a") == ""


async def test_an_annotation_of_the_plugin_before_us_stays(server: ApiServer) -> None:
    await server.store.create(PODS, "default", a_pod("theirs", NODE, phase="Running"))
    await server.store.patch(PODS, "default", "theirs", {"metadata": {"annotations": {POD_IPS: "10.0.0.9"}}})
    async with cluster(server, CUSTOM) as made:
        await until(lambda: made.pod("default", "theirs"))
        await made.settle([])

    assert annotation(server, "theirs") == "10.0.0.9"


async def test_one_pod_that_cannot_be_annotated_does_not_keep_the_others(server: ApiServer) -> None:
    for name in ("a", "b", "c"):
        await server.store.create(PODS, "default", a_pod(name, NODE))
    held = [an_attachment(name, f"10.0.0.{number}") for number, name in enumerate("abc", start=1)]
    async with cluster(server, CUSTOM) as made:
        await until(lambda: made.view().pod_count == 3)
        server.faults.add(Rule(fault=Fault.FORBIDDEN, verb="patch"))
        with pytest.raises(ClusterFailed):
            await made.settle(held)
        assert sorted(filter(None, (annotation(server, name) for name in "abc"))) == ["10.0.0.2", "10.0.0.3"]
        await made.settle(held)

    assert annotation(server, "a") == "10.0.0.1"


# --- Access ----------------------------------------------------------------------------------------------------------


def test_no_node_name_or_no_service_is_no_kubernetes() -> None:
    assert access.find(KubePolicy()) is None
    assert access.find(POLICY) is None


async def test_in_a_pod_the_service_account_is_used(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    policy = replace(POLICY, service_host="fd00::1", service_port="443")
    found = access.find(policy, service_account=tmp_path)
    assert found is not None
    with pytest.raises(ClusterFailed, match="service account"):
        await found.renew()

    (tmp_path / "ca.crt").write_text("no certificate")
    await found.renew()

    assert found.server == "https://[fd00::1]:443"
    assert (await found.configuration.auth_settings())["BearerToken"]["value"] == "Bearer secret"
    with pytest.raises(ClusterFailed, match="certificates"):
        await KubeApi(found, user_agent="test").__aenter__()
    other = access.find(replace(policy, endpoint="https://elsewhere:6443/"), service_account=tmp_path)
    assert other is not None
    await other.renew()
    assert other.server == "https://elsewhere:6443"


async def test_a_kubeconfig_is_enough(server: ApiServer, tmp_path: Path) -> None:
    server.users = {"secret": User()}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "dev",
        "contexts": [{"name": "dev", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server.url}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    path = tmp_path / "config"
    path.write_text(json.dumps(config))
    made = KubeCluster(replace(POLICY, kubeconfig=path), version="test", draw=lambda: 0.01)
    task = asyncio.create_task(made.run())
    try:
        await until(lambda: made.max_pods == 29)
    finally:
        task.cancel()
        await asyncio.wait([task])


KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: dev
contexts: [{{name: dev, context: {{cluster: c, user: u}}}}]
clusters: [{{name: c, cluster: {{server: "https://127.0.0.1:6443", {cluster}}}}}]
users: [{{name: u, user: {{{user}}}}}]
"""


async def test_a_kubeconfig_in_yaml_with_a_token_file(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("from-file")
    path = tmp_path / "config"
    path.write_text(
        KUBECONFIG.format(cluster="insecure-skip-tls-verify: true, tls-server-name: k", user="tokenFile: t")
    )
    found = access_by_kubeconfig(path)

    await found.renew()

    configuration = found.configuration
    assert (await configuration.auth_settings())["BearerToken"]["value"] == "Bearer from-file"
    assert (configuration.tls_server_name, configuration.verify_ssl) == ("k", False)


async def test_a_kubeconfigs_plugin_is_run_again_when_its_token_ends(server: ApiServer, tmp_path: Path) -> None:
    """As `aws eks get-token` does it (client-go credential plugins, v1)."""
    plugin, said, path = tmp_path / "plugin", tmp_path / "said", tmp_path / "config"
    plugin.write_text(f"#!/bin/sh\ncat {said}\n")
    plugin.chmod(0o755)
    user = "exec: {apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, command: " + str(plugin) + "}"
    path.write_text(KUBECONFIG.format(cluster="", user=user).replace("https://127.0.0.1:6443", server.url))

    def says(token: str) -> None:
        status = {"token": token, "expirationTimestamp": "2020-01-01T00:00:00Z"}
        answer = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}
        said.write_text(json.dumps(answer))
        server.users = {token: User()}

    says("first")
    async with KubeApi(access_by_kubeconfig(path), user_agent="test") as api:
        await api.get("/api/v1/pods")
        says("second")
        with pytest.raises(ClusterFailed):
            await api.get("/api/v1/pods")
        await api.get("/api/v1/pods")
        said.write_text("nonsense")
        server.users = {"third": User()}
        with pytest.raises(ClusterFailed, match="kubeconfig"):
            await api.get("/api/v1/pods")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("current-context: dev", "no usable current context|cannot be used"),
        ("[1, 2]", "no usable current context"),
        ("a: [", "cannot be used"),
        (KUBECONFIG.format(cluster="", user="exec: {command: aws}"), "apiVersion"),
        (KUBECONFIG.format(cluster="", user="exec: {command: /none, apiVersion: v1}"), "/none"),
        (KUBECONFIG.format(cluster="", user="token: x").replace("cluster: c,", "cluster: other,"), "other"),
    ],
)
async def test_a_useless_kubeconfig_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "config"
    path.write_text(text)

    with pytest.raises(ClusterFailed, match=says):
        await access_by_kubeconfig(path).renew()


async def test_a_missing_kubeconfig_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    with pytest.raises(ClusterFailed):
        await access_by_kubeconfig(tmp_path / "none").renew()


async def test_bad_certificates_in_a_kubeconfig_are_an_error_and_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "config"
    nonsense = base64.b64encode(b"no certificate").decode()
    path.write_text(KUBECONFIG.format(cluster=f"certificate-authority-data: {nonsense}", user="token: x"))

    with pytest.raises(ClusterFailed, match="certificates"):
        await KubeApi(access_by_kubeconfig(path), user_agent="test").__aenter__()


async def test_an_unusable_service_account_is_tried_again_until_it_is_there(server: ApiServer) -> None:
    tries: list[int] = []

    def find(_: KubePolicy) -> Access:
        tries.append(1)
        if len(tries) < 3:
            raise ClusterFailed(Cause.KUBERNETES_UNAVAILABLE, "not mounted yet")
        return access_to(server.url)

    made = KubeCluster(POLICY, version="test", find=find, draw=lambda: 0.01)
    task = asyncio.create_task(made.run())
    try:
        await until(lambda: made.view().failure is not None)
        await until(lambda: made.view().synced)
    finally:
        task.cancel()
        await asyncio.wait([task])

    assert made.view().failure is None
