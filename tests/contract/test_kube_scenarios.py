"""What the agent knows of Kubernetes and tells it, played against the simulated API server and a real one alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from agent.errors import AgentError, Cause, ClusterConflict, ClusterExpired, ClusterFailed, ClusterGone
from agent.kube import reflector
from agent.kube.api import KubeApi
from agent.kube.cluster import POD_IPS, KubeCluster
from agent.kube.outbox import REPEAT_S
from agent.kube.policy import KubePolicy
from agent.ports.cluster import Notice, NoticeKind, Site
from sim.kube.server import a_node, a_pod
from sim.kube.store import ENI_CONFIGS, EVENTS, NODES, PODS, Json
from tests.contract.kube_servers import ROLE, KubeServer, RequestFailed
from tests.contract.test_kube_cluster import an_attachment, an_eni_config
from tests.contract.test_kube_reflector import NODE, Watcher

DEADLINE_S = 60.0
"""A real one on a loaded machine restarts in half a minute."""
POLICY = KubePolicy(node_name=NODE, pod_name="enoki-x", annotate_pod_ip=True)
CUSTOM = replace(POLICY, custom_networking=True)


@asynccontextmanager
async def cluster(
    kube: KubeServer, policy: KubePolicy = POLICY, *, clock: Callable[[], float] | None = None
) -> AsyncIterator[KubeCluster]:
    made = KubeCluster(
        policy,
        version="test",
        find=lambda _: kube.access(),
        draw=lambda: 0.01,
        clock=clock or asyncio.get_running_loop().time,
    )
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


@asynccontextmanager
async def watching(kube: KubeServer) -> AsyncIterator[Watcher]:
    watcher = Watcher(deadline_s=DEADLINE_S)
    async with KubeApi(kube.access(), user_agent="test") as api:
        task = asyncio.create_task(watcher.pods.run(api))
        try:
            yield watcher
        finally:
            task.cancel()
            await asyncio.wait([task])


async def until(is_so: Callable[[], Any]) -> None:
    """Wait for something that shows in another task of this loop."""
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():
            await asyncio.sleep(0.005)


async def bind(kube: KubeServer, *names: str, node: str = NODE, namespace: str = "default", **kinds: Any) -> None:
    for name in names:
        await kube.admin.create(PODS, a_pod(name, node, **kinds), namespace)


async def events(kube: KubeServer, count: int, namespace: str = "default") -> list[Json]:
    """That many events or more, the oldest first."""
    async with asyncio.timeout(DEADLINE_S):
        while len(found := await kube.admin.list(EVENTS, namespace)) < count:
            await asyncio.sleep(0.01)
    return sorted(found, key=lambda one: str(one["eventTime"]))


# --- List and watch --------------------------------------------------------------------------------------------------


async def test_pods_of_this_node_come_and_go(kube: KubeServer) -> None:
    await bind(kube, "old")
    await bind(kube, "elsewhere", node="node-2")
    async with watching(kube) as seen:
        await seen.until_names("old")
        await bind(kube, "new")
        await seen.until_names("old", "new")
        await kube.admin.delete(PODS, "old", "default", grace_s=0)
        await seen.until_names("new")


async def test_a_pod_that_is_being_deleted_is_leaving_until_its_kubelet_has_done(kube: KubeServer) -> None:
    await bind(kube, "a")
    async with watching(kube) as seen:
        await seen.until_names("a")
        await kube.admin.delete(PODS, "a", "default")
        await seen.until(lambda: seen.pods.items["default/a"].leaving)
        await kube.admin.delete(PODS, "a", "default", grace_s=0)
        await seen.until_names()


async def test_what_changes_nothing_for_us_wakes_nobody(kube: KubeServer) -> None:
    await bind(kube, "a")
    async with watching(kube) as seen:
        await seen.until_names("a")
        before = seen.change_count
        await kube.admin.patch(PODS, "a", {"metadata": {"labels": {"beat": "1"}}}, "default")
        await bind(kube, "b")
        await seen.until_names("a", "b")

        assert seen.change_count == before + 1


async def test_a_watch_that_ends_in_time_goes_on_with_another(
    kube: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "WATCH_S", (2, 2))
    async with watching(kube) as seen:
        await seen.until(lambda: seen.pods.synced)
        watched = seen.pods._watch
        count = 0

        async def counted(api: KubeApi) -> None:
            nonlocal count
            await watched(api)
            count += 1

        monkeypatch.setattr(seen.pods, "_watch", counted)
        await until(lambda: count >= 1)
        await bind(kube, "a")
        await seen.until_names("a")
        assert seen.causes == []


async def test_a_bookmark_brings_the_version_of_what_is_not_ours(
    kube: KubeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one sends it two seconds before the watch ends, and every minute, if something has happened meanwhile."""
    monkeypatch.setattr(reflector, "WATCH_S", (5, 5))
    async with watching(kube) as seen:
        await seen.until(lambda: seen.pods.synced)
        await bind(kube, "elsewhere", node="node-2")
        version = (await kube.admin.get(PODS, "elsewhere", "default"))["metadata"]["resourceVersion"]
        async with asyncio.timeout(DEADLINE_S):
            beat = 0
            while reflector.is_older(seen.pods._newest, version):
                beat += 1  # what happens before a watch has begun is in no bookmark
                await kube.admin.patch(PODS, "elsewhere", {"metadata": {"labels": {"beat": f"{beat}"}}}, "default")
                await asyncio.sleep(0.05)
        assert seen.pods.items == {}
        assert seen.causes == []


async def test_a_forgotten_version_is_followed_by_a_list(kube: KubeServer) -> None:
    """The API server was away, and has no history of the time before: 410, and everything is as it is."""
    await bind(kube, "a", "b")
    async with watching(kube) as seen:
        await seen.until_names("a", "b")
        await kube.go_away()
        await bind(kube, "c")
        await kube.admin.delete(PODS, "a", "default", grace_s=0)
        await kube.forget()
        await kube.come_back()
        await seen.until_names("b", "c")

        assert Cause.KUBERNETES_EXPIRED in seen.causes
        await seen.until(lambda: seen.pods.failure is None)


async def test_what_is_known_stays_known_while_the_api_server_is_away(kube: KubeServer) -> None:
    await bind(kube, "a")
    async with watching(kube) as seen:
        await seen.until_names("a")
        await kube.go_away()
        await seen.until(lambda: seen.pods.failure is not None)
        assert set(seen.pods.items) == {"default/a"}
        assert seen.causes[-1] is Cause.KUBERNETES_UNAVAILABLE
        await bind(kube, "b")
        await kube.come_back()
        await seen.until_names("a", "b")


async def test_a_silent_watch_that_stays_open_ends_a_failure(kube: KubeServer) -> None:
    async with watching(kube) as seen:
        await seen.until(lambda: seen.pods.synced)
        await kube.go_away()
        await seen.until(lambda: seen.pods.failure is not None)
        await kube.come_back()
        await seen.until(lambda: seen.pods.failure is None)  # and nothing has happened to any pod


async def test_answers_have_their_own_errors(kube: KubeServer) -> None:
    await bind(kube, "a")
    async with KubeApi(kube.access(), user_agent="test") as api:
        with pytest.raises(ClusterConflict):
            await api.merge_patch("/api/v1/namespaces/default/pods/a", {"metadata": {"uid": "other"}})
        with pytest.raises(ClusterGone, match='pods "none" not found'):
            await api.merge_patch("/api/v1/namespaces/default/pods/none", {"metadata": {"labels": {}}})
        with pytest.raises(ClusterExpired):
            await api.watch("/api/v1/pods", {"resourceVersion": "1"}, open_s=5, take=lambda _: None)
        with pytest.raises(ClusterFailed, match="Too large resource version") as ahead:
            await api.get("/api/v1/pods", {"resourceVersion": "99999999", "resourceVersionMatch": "NotOlderThan"})
        with pytest.raises(ClusterFailed, match='cannot get resource "pods" in API group ""') as denied:
            await api.get("/api/v1/namespaces/default/pods/a")

    assert (ahead.value.cause, ahead.value.evidence["status"]) == (Cause.KUBERNETES_UNAVAILABLE, 504)
    assert ahead.value.retry_after_s == 1.0
    assert denied.value.cause is Cause.KUBERNETES_DENIED
    assert "system:serviceaccount:kube-system:enoki" in denied.value.message


# --- Credentials -----------------------------------------------------------------------------------------------------


async def test_a_rotated_token_is_read_again(kube: KubeServer) -> None:
    """As the kubelet does it: the file is replaced long before the old token ends."""
    now_s = [0.0]
    async with KubeApi(kube.access(clock=lambda: now_s[0]), user_agent="test") as api:
        await api.get("/api/v1/pods")
        await kube.revoke()
        (kube.service_account / "token").write_text(await kube.new_token())
        now_s[0] = 61.0
        await api.get("/api/v1/pods")


async def test_a_refused_token_is_read_again_at_once(kube: KubeServer) -> None:
    async with KubeApi(kube.access(clock=lambda: 0.0), user_agent="test") as api:
        good = (kube.service_account / "token").read_text()
        (kube.service_account / "token").write_text("nonsense")
        await api._access.renew()
        with pytest.raises(ClusterFailed) as refused:
            await api.get("/api/v1/pods")
        assert refused.value.cause is Cause.KUBERNETES_DENIED
        (kube.service_account / "token").write_text(good)
        with pytest.raises(ClusterFailed):
            await api.get("/api/v1/pods")
        await api.get("/api/v1/pods")


async def test_a_replaced_authority_is_believed_when_its_file_is_there(kube: KubeServer) -> None:
    async with KubeApi(kube.access(), user_agent="test") as api:
        await api.get("/api/v1/pods")
        pem = await kube.replace_authority()
        for _ in range(2):
            with pytest.raises(ClusterFailed) as refused:
                await api.get("/api/v1/pods")
        (kube.service_account / "ca.crt").write_bytes(pem)
        await api.get("/api/v1/pods")

    assert "certificate" in refused.value.remedy


# --- The node and its pods -------------------------------------------------------------------------------------------


async def test_bound_pods_are_announced_while_they_need_an_address(kube: KubeServer) -> None:
    await kube.admin.create(NODES, a_node(NODE, max_pods=29))
    await bind(kube, "a", "b", "c")
    await bind(kube, "proxy", namespace="kube-system", host_network=True)
    async with cluster(kube) as made:
        await until(lambda: {name for _, name in made.announced()} == {"a", "b", "c"})
        await kube.admin.patch(PODS, "b", {"status": {"phase": "Succeeded"}}, "default", subresource="status")
        await kube.admin.delete(PODS, "c", "default")
        await until(lambda: {name for _, name in made.announced()} == {"a"})

        facts = made.pod("default", "a")
        assert facts is not None
        assert facts.uid == (await kube.admin.get(PODS, "a", "default"))["metadata"]["uid"]
        assert made.max_pods == 29
        # It was finished, and goes without its kubelet; the other waits for its own.
        await kube.admin.delete(PODS, "b", "default")
        await until(lambda: made.view().pod_count == 3)


async def test_a_cordon_is_seen_with_and_without_the_taint_that_follows(kube: KubeServer) -> None:
    """`kubectl cordon` writes the field; the node lifecycle controller adds the taint."""
    taint = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
    await kube.admin.create(NODES, a_node(NODE))
    async with cluster(kube) as made:
        await until(lambda: made.view().synced and made.max_pods is not None)
        assert made.schedulable
        for spec in ({"unschedulable": True}, {"unschedulable": None, "taints": [taint]}):
            await kube.admin.patch(NODES, NODE, {"spec": spec})
            await until(lambda: not made.schedulable)
            await kube.admin.patch(NODES, NODE, {"spec": {"unschedulable": None, "taints": None}})
            await until(lambda: made.schedulable)


async def test_a_permission_that_was_taken_away_is_named_and_what_was_known_stays(kube: KubeServer) -> None:
    await bind(kube, "a")
    async with cluster(kube) as made:
        await until(made.announced)
        await kube.permit(ROLE - {("", "pods", "list"), ("", "pods", "watch")})
        async with asyncio.timeout(DEADLINE_S):
            while made.view().failure is None:  # until RBAC has heard of it
                await kube.cut()
                await asyncio.sleep(0.1)
        await until(lambda: (one := made.view().failure) is not None and one.cause is Cause.KUBERNETES_DENIED)
        failure = made.view().failure
        assert failure is not None
        assert 'cannot watch resource "pods" in API group ""' in failure.message
        assert "ClusterRole" in failure.remedy
        assert {name for _, name in made.announced()} == {"a"}

        await kube.permit(ROLE)
        await bind(kube, "b")
        await until(lambda: {name for _, name in made.announced()} == {"a", "b"})
        await until(lambda: made.view().failure is None)


# --- Custom networking -----------------------------------------------------------------------------------------------


async def test_the_site_follows_node_and_eni_config(kube: KubeServer) -> None:
    await kube.admin.create(NODES, a_node(NODE))
    await kube.admin.create(ENI_CONFIGS, an_eni_config("default", "subnet-1", "sg-1"))
    await kube.admin.create(ENI_CONFIGS, an_eni_config("by-annotation", "subnet-2"))
    await kube.admin.create(ENI_CONFIGS, an_eni_config("by-label", "subnet-3"))
    await kube.admin.create(ENI_CONFIGS, an_eni_config("external", "subnet-4"))
    async with cluster(kube, CUSTOM) as made:
        assert isinstance(made.site(), AgentError)  # nothing has been seen: no ENI may go to the wrong subnet

        async def until_subnet(subnet: str) -> None:
            await until(lambda: isinstance(site := made.site(), Site) and site.subnet_id == subnet)

        await until_subnet("subnet-1")
        for metadata, subnet in (
            ({"labels": {"k8s.amazonaws.com/eniConfig": "by-label"}}, "subnet-3"),
            ({"annotations": {"k8s.amazonaws.com/eniConfig": "by-annotation"}}, "subnet-2"),
            ({"labels": {"vpc.amazonaws.com/externalEniConfig": "external"}}, "subnet-4"),
        ):
            await kube.admin.patch(NODES, NODE, {"metadata": metadata})
            await until_subnet(subnet)
        await kube.admin.patch(ENI_CONFIGS, "external", {"spec": {"subnet": "subnet-5"}})
        await until_subnet("subnet-5")
        told = await events(kube, 4)

    assert {(one["reason"], one["type"]) for one in told} == {("EniConfigChanged", "Normal")}
    assert "subnet-5" in told[-1]["note"]
    assert {one["regarding"]["kind"] for one in told} == {"Node"}


async def test_a_missing_eni_config_is_told_and_so_is_its_coming(kube: KubeServer) -> None:
    await kube.admin.create(NODES, a_node(NODE))
    async with cluster(kube, CUSTOM) as made:
        await events(kube, 1)
        assert isinstance(made.site(), AgentError)
        await kube.admin.create(ENI_CONFIGS, an_eni_config("default", "subnet-1"))
        told = await events(kube, 2)

    assert [(one["reason"], one["type"]) for one in told] == [
        ("EniConfigMissing", "Warning"),
        ("EniConfigMissingOver", "Normal"),
    ]


async def test_a_definition_that_is_not_installed_is_named_and_waited_for(kube: KubeServer) -> None:
    await kube.admin.create(NODES, a_node(NODE))
    await kube.remove_crd()
    try:
        async with cluster(kube, CUSTOM) as made:
            await until(lambda: (one := made.view().failure) is not None and one.cause is Cause.KUBERNETES_GONE)
            failure = made.view().failure
            assert failure is not None
            assert "deploy/crds" in failure.remedy
            assert isinstance(made.site(), AgentError)
            assert made.max_pods == 110  # the rest is known all the same
            await kube.install_crd()
            await kube.admin.create(ENI_CONFIGS, an_eni_config("default", "subnet-1"))
            await until(lambda: isinstance(made.site(), Site))
            await until(lambda: made.view().failure is None)
    finally:
        await kube.install_crd()


async def test_the_schema_refuses_an_eni_config_without_a_subnet(kube: KubeServer) -> None:
    with pytest.raises(RequestFailed, match=r"spec\.subnet"):
        await kube.admin.create(ENI_CONFIGS, {**an_eni_config("default", "x"), "spec": {"securityGroups": ["sg-1"]}})


# --- Events ----------------------------------------------------------------------------------------------------------


async def until_told(made: KubeCluster) -> None:
    """The server's answers have arrived: what is reported from now on is news."""
    await until(lambda: all(one.name for one in made._outbox._states.values()))


async def test_a_state_is_one_event_whose_count_goes_up(kube: KubeServer) -> None:
    now_s = [0.0]
    notice = Notice(kind=NoticeKind.SUBNET_EXHAUSTED, subject="subnet-1", message="subnet-1 is full")
    async with cluster(kube, clock=lambda: now_s[0]) as made:
        for number in range(1000):
            made.report(replace(notice, evidence={"free": number}))
        (first,) = await events(kube, 1)
        await until_told(made)
        now_s[0] = REPEAT_S
        made.report(notice)
        async with asyncio.timeout(DEADLINE_S):
            while not (again := (await events(kube, 1))[0]).get("series"):
                await asyncio.sleep(0.01)
        made.report(replace(notice, over=True))
        told = await events(kube, 2)

    assert (first["reason"], first["type"], first["reportingController"]) == ("SubnetExhausted", "Warning", "enoki")
    assert first["reportingInstance"] == NODE
    assert again["series"]["count"] == 1001
    assert again["metadata"]["uid"] == first["metadata"]["uid"]
    assert [one["reason"] for one in told] == ["SubnetExhausted", "SubnetExhaustedOver"]


async def test_events_that_are_not_permitted_are_named_and_told_later(kube: KubeServer) -> None:
    await kube.permit(ROLE - {("events.k8s.io", "events", "create")})
    async with cluster(kube) as made:
        await until(lambda: made.view().synced)
        while (failure := made.view().failure) is None:  # until RBAC has heard of it, they are taken
            made.report(Notice(kind=NoticeKind.DRIFT_REPAIRED, subject=str(len(made._outbox)), message="repaired"))
            await asyncio.sleep(0.1)
        assert failure.cause is Cause.KUBERNETES_DENIED
        assert 'cannot create resource "events" in API group "events.k8s.io"' in failure.message
        await kube.permit(ROLE)
        await until(lambda: made.view().failure is None)
        await events(kube, 1)


@pytest.mark.parametrize("kind", list(NoticeKind))
async def test_every_kind_of_event_is_taken(kube: KubeServer, kind: NoticeKind) -> None:
    """The longest of everything, of which some is cut."""
    async with cluster(kube, replace(POLICY, node_name="n" * 253)) as made:
        made.report(Notice(kind=kind, subject="s" * 300, message="m" * 2000, evidence={"e": "ü" * 600}))
        (told,) = await events(kube, 1)

    assert told["reason"] == str(kind)


async def test_an_event_that_was_deleted_is_told_anew(kube: KubeServer) -> None:
    now_s = [0.0]
    notice = Notice(kind=NoticeKind.SUBNET_EXHAUSTED, subject="subnet-1", message="subnet-1 is full")
    async with cluster(kube, clock=lambda: now_s[0]) as made:
        made.report(notice)
        (first,) = await events(kube, 1)
        await until_told(made)
        await kube.admin.delete(EVENTS, first["metadata"]["name"], "default")
        now_s[0] = REPEAT_S
        made.report(notice)
        (second,) = await events(kube, 1)

    assert second["metadata"]["uid"] != first["metadata"]["uid"]


async def test_a_missing_permission_is_about_the_agents_own_pod(kube: KubeServer) -> None:
    await bind(kube, "enoki-x", namespace="kube-system", host_network=True)
    async with cluster(kube) as made:
        await until(lambda: made.view().synced)
        made.report(Notice(kind=NoticeKind.IAM_DENIED, subject="CreateNetworkInterface", message="denied"))
        (told,) = await events(kube, 1, "kube-system")

    assert (told["regarding"]["kind"], told["regarding"]["name"]) == ("Pod", "enoki-x")
    assert (told["reason"], told["action"]) == ("MissingIAMPermissions", "ec2:CreateNetworkInterface")


# --- The annotation --------------------------------------------------------------------------------------------------


async def annotation(kube: KubeServer, name: str) -> str | None:
    found: str | None = (await kube.admin.get(PODS, name, "default"))["metadata"].get("annotations", {}).get(POD_IPS)
    return found


async def test_the_annotation_is_written_and_emptied_at_the_end(kube: KubeServer) -> None:
    await bind(kube, "a")
    async with cluster(kube) as made:
        await until(lambda: made.pod("default", "a"))
        await made.settle([an_attachment("a", "10.0.0.7")])
        assert await annotation(kube, "a") == "10.0.0.7"

        await kube.admin.delete(PODS, "a", "default")
        await until(lambda: not made.announced())
        await made.settle([])
        assert await annotation(kube, "a") == ""


async def test_an_annotation_that_is_not_permitted_says_so_and_spares_the_rest(kube: KubeServer) -> None:
    await bind(kube, "a")
    await kube.permit(ROLE - {("", "pods", "patch")})
    async with cluster(kube) as made:
        await until(lambda: made.pod("default", "a"))
        with pytest.raises(ClusterFailed, match='cannot patch resource "pods"') as denied:
            await made.settle([an_attachment("a", "10.0.0.7")])
        assert denied.value.cause is Cause.KUBERNETES_DENIED
        assert made.announced()


async def test_a_new_pod_of_the_same_name_is_another_pod(kube: KubeServer) -> None:
    await bind(kube, "web-0")
    async with cluster(kube) as made:
        await until(lambda: made.pod("default", "web-0"))
        known, attached = made._api, an_attachment("web-0", "10.0.0.7")
        wanted = made._wanted_annotations([attached])
        await kube.admin.delete(PODS, "web-0", "default", grace_s=0)
        await bind(kube, "web-0")
        assert known is not None
        with pytest.raises(ClusterConflict):
            await made._annotate(known, *wanted[0])

    assert await annotation(kube, "web-0") is None
