"""What client-go asks of an API server before and beside what our agent asks: discovery, streamed lists, selectors."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from sim.kube.server import ApiServer, a_node, a_pod
from sim.kube.store import CNI_NODES, KINDS, NODES, PODS

TIMEOUT_S = 10.0


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    made = ApiServer(bookmark_s=60.0)
    await made.store.create(NODES, "", a_node("node-1"))
    for name, node in (("a", "node-1"), ("b", "node-1"), ("c", "node-2")):
        await made.store.create(PODS, "default", a_pod(name, node))
    await made.start()
    yield made
    await made.stop()


async def get(server: ApiServer, path: str, **query: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S) as client:
        return await client.get(path, params=query)


async def events(server: ApiServer, path: str, count: int, **query: str) -> list[dict[str, Any]]:
    """The first so many events of a watch."""
    seen: list[dict[str, Any]] = []
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S) as client,
        client.stream("GET", path, params={"watch": "true", **query}) as answer,
    ):
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            seen.append(json.loads(line))
            if len(seen) == count:
                break
    return seen


async def test_every_resource_is_found_by_discovery_alone(server: ApiServer) -> None:
    """A REST mapper walks from `/api` and `/apis` to group versions and their resources."""
    assert (await get(server, "/version")).json()["major"] == "1"
    versions = (await get(server, "/api")).json()["versions"]
    groups = (await get(server, "/apis")).json()["groups"]
    prefixes = [f"/api/{version}" for version in versions]
    prefixes += [f"/apis/{version['groupVersion']}" for group in groups for version in group["versions"]]
    found = {
        (prefix, one["name"], one["kind"], one["namespaced"])
        for prefix in prefixes
        for one in (await get(server, prefix)).json()["resources"]
    }
    assert found == {(kind.prefix, kind.plural, kind.kind, kind.namespaced) for kind in KINDS}
    assert (await get(server, "/apis/crd.k8s.amazonaws.com")).json()["preferredVersion"]["version"] == "v1alpha1"
    for nothing in ("/apis/apps", "/apis/apps/v1", "/api/v2"):
        assert (await get(server, nothing)).status_code == 404


async def test_a_watch_streams_the_list_first_when_it_is_asked_to(server: ApiServer) -> None:
    """KEP-3157: what there is as ADDED, then a bookmark that says so, then what happens."""
    query = {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan", "allowWatchBookmarks": "true"}
    seen = await events(server, "/api/v1/pods", 3, fieldSelector="spec.nodeName=node-1", **query)
    assert [one["type"] for one in seen] == ["ADDED", "ADDED", "BOOKMARK"]
    assert {one["object"]["metadata"]["name"] for one in seen[:2]} == {"a", "b"}
    end = seen[2]["object"]["metadata"]
    assert end["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert end["resourceVersion"] == str(server.store.version)


@pytest.mark.parametrize(
    "query",
    [{"sendInitialEvents": "true"}, {"resourceVersionMatch": "NotOlderThan", "resourceVersion": "0"}],
    ids=["no match", "no initial events"],
)
async def test_streamed_lists_and_their_match_belong_together(server: ApiServer, query: dict[str, str]) -> None:
    answer = await get(server, "/api/v1/pods", watch="true", **query)
    assert (answer.status_code, answer.json()["reason"]) == (422, "Invalid")


@pytest.mark.parametrize(
    ("wanted", "names"),
    [("app=a", "a"), ("app==a", "a"), ("app!=a", "bc"), ("app", "abc"), ("!app", ""), ("app=a,app=b", "")],
)
async def test_labels_select(server: ApiServer, wanted: str, names: str) -> None:
    items = (await get(server, "/api/v1/pods", labelSelector=wanted)).json()["items"]
    assert sorted(one["metadata"]["name"] for one in items) == sorted(names)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("metadata.name=a", "a"),
        ("spec.nodeName==node-1", "ab"),
        ("spec.nodeName!=node-1", "c"),
        ("spec.nodeName=node-1,status.phase!=Succeeded,status.phase!=Failed", "ab"),  # kubectl describe node
        ("status.phase=Running", ""),
    ],
)
async def test_fields_select(server: ApiServer, wanted: str, names: str) -> None:
    items = (await get(server, "/api/v1/pods", fieldSelector=wanted)).json()["items"]
    assert sorted(one["metadata"]["name"] for one in items) == sorted(names)


async def test_a_selector_that_is_not_simulated_is_refused_not_ignored(server: ApiServer) -> None:
    for query in ({"labelSelector": "app in (a, b)"}, {"fieldSelector": "spec.hostIP=10.0.0.1"}):
        for watch in ("", "true"):
            answer = await get(server, "/api/v1/pods", watch=watch, **query)
            assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")


async def test_built_in_kinds_take_strategic_merge_patches_and_custom_ones_do_not(server: ApiServer) -> None:
    """As client-go's event sink sends them, and as `kubectl label` does."""
    await server.store.create(CNI_NODES, "", {"metadata": {"name": "node-1"}, "spec": {}})
    body = json.dumps({"metadata": {"labels": {"x": "y"}}})
    headers = {"Content-Type": "application/strategic-merge-patch+json"}
    async with httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S) as client:
        node = await client.patch("/api/v1/nodes/node-1", content=body, headers=headers)
        assert node.json()["metadata"]["labels"]["x"] == "y"
        custom = "/apis/vpcresources.k8s.aws/v1alpha1/cninodes/node-1"
        assert (await client.patch(custom, content=body, headers=headers)).status_code == 415
