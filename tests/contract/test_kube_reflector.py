"""List and watch against an API server over HTTP, on good days and on bad ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path

import pytest

from agent.errors import Cause, ClusterFailed
from agent.kube import objects, reflector
from agent.kube.access import find
from agent.kube.api import KubeApi
from agent.kube.objects import Pod
from agent.kube.policy import KubePolicy
from agent.kube.reflector import Reflector
from sim.kube.faults import Fault, Rule
from sim.kube.server import ApiServer, a_pod
from sim.kube.store import PODS, Store
from sim.kube.users import User
from tests.certificates import an_authority
from tests.contract.kube_access import access_to

DEADLINE_S = 10.0
NODE = "node-1"


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    made = ApiServer(bookmark_s=0.05)
    await made.start()
    yield made
    await made.stop()


@asynccontextmanager
async def client(server: ApiServer, *, request_s: float = 2.0) -> AsyncIterator[KubeApi]:
    async with KubeApi(access_to(server.url), user_agent="test", request_s=request_s) as api:
        yield api


class Watcher:
    """A reflector of the node's pods, and a way to wait for what it shows."""

    def __init__(self, *, deadline_s: float = DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._changed = asyncio.Event()
        self.change_count = 0
        self.causes: list[Cause] = []
        """Of its failures, one after another."""
        self.pods = Reflector[Pod](
            "pods",
            path="/api/v1/pods",
            query={"fieldSelector": f"spec.nodeName={NODE}"},
            parse=objects.pod,
            changed=self._note,
            draw=lambda: 0.01,  # waits are 1/100 of their longest
        )

    def _note(self) -> None:
        self.change_count += 1
        failure = self.pods.failure
        if failure is not None and failure.cause not in self.causes[-1:]:
            self.causes.append(failure.cause)
        self._changed.set()

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(self._deadline_s):
            while not is_so():
                self._changed.clear()
                await self._changed.wait()

    async def until_names(self, *names: str) -> None:
        await self.until(lambda: sorted(self.pods.items) == sorted(f"default/{name}" for name in names))


@asynccontextmanager
async def watching(server: ApiServer, **options: float) -> AsyncIterator[Watcher]:
    watcher = Watcher()
    async with client(server, **options) as api:
        task = asyncio.create_task(watcher.pods.run(api))
        try:
            yield watcher
        finally:
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()


async def bind(server: ApiServer, *names: str, node: str = NODE) -> None:
    for name in names:
        await server.store.create(PODS, "default", a_pod(name, node))


async def test_pods_of_this_node_come_and_go(server: ApiServer) -> None:
    await bind(server, "old")
    await bind(server, "elsewhere", node="node-2")
    async with watching(server) as seen:
        await seen.until_names("old")
        await bind(server, "new")
        await seen.until_names("old", "new")
        await server.store.delete(PODS, "default", "old")
        await seen.until_names("new")

    assert server.requests["list", "pods"] == 1
    assert server.requests["watch", "pods"] == 1


async def test_the_requests_are_cheap_for_the_api_server(server: ApiServer) -> None:
    async with watching(server) as seen:
        await seen.until(lambda: seen.pods.synced)
        await bind(server, "a")
        await seen.until_names("a")

    listing, watch = (query for _, _, query in server.queries[:2])
    assert listing == {"fieldSelector": "spec.nodeName=node-1", "resourceVersion": "0"}
    assert watch["allowWatchBookmarks"] == "true"
    assert 300 <= int(watch["timeoutSeconds"]) <= 600
    assert watch["resourceVersion"].isdigit()


async def test_a_bookmark_saves_a_list(server: ApiServer) -> None:
    """Quiet for us, busy elsewhere: after a compaction the watch goes on from the bookmark."""
    async with watching(server) as seen:
        await seen.until(lambda: seen.pods.synced)
        await bind(server, "elsewhere", node="node-2")
        async with asyncio.timeout(DEADLINE_S):
            while seen.pods._newest != str(server.store.version):
                await server.store.patch(PODS, "default", "elsewhere", {"metadata": {"labels": {"a": "b"}}})
                await asyncio.sleep(0.1)  # two bookmarks long
        server.store.compact()
        server.cut_watches()
        await bind(server, "mine")
        await seen.until_names("mine")

    assert server.requests["list", "pods"] == 1


@pytest.mark.parametrize("in_stream", [False, True])
async def test_410_is_followed_by_a_list(server: ApiServer, *, in_stream: bool) -> None:
    await bind(server, "a")
    if in_stream:
        server.faults.add(Rule(fault=Fault.GONE_IN_STREAM, verb="watch"))
    async with watching(server) as seen:
        await seen.until_names("a")
        if not in_stream:
            await server.stop()
            await bind(server, "b")
            server.store.compact()
            await server.start()
        else:
            await bind(server, "b")
        await seen.until_names("a", "b")

    assert server.requests["list", "pods"] == 2


_ANYWHERE = [Fault.UNAVAILABLE, Fault.DISCONNECT, Fault.FORBIDDEN, Fault.GARBAGE, Fault.MISSHAPEN]


@pytest.mark.parametrize(("verb", "fault"), [*product(["list", "watch"], _ANYWHERE), ("watch", Fault.END_AT_ONCE)])
async def test_it_converges_after_any_fault(server: ApiServer, verb: str, fault: Fault) -> None:
    server.faults.add(Rule(fault=fault, verb=verb), count=3)
    await bind(server, "a")
    async with watching(server) as seen:
        await seen.until_names("a")
        await bind(server, "b")
        await seen.until_names("a", "b")
        assert seen.pods.failure is None


async def test_retry_after_is_obeyed(server: ApiServer) -> None:
    server.faults.add(Rule(fault=Fault.THROTTLE, verb="list", retry_after_s=1))
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with watching(server) as seen:
        await seen.until(lambda: seen.pods.synced)

    assert loop.time() - began_s >= 1.0


async def test_a_server_that_hangs_meets_a_deadline(server: ApiServer) -> None:
    server.faults.add(Rule(fault=Fault.HANG), count=2)
    await bind(server, "a")
    async with watching(server, request_s=0.2) as seen:
        await seen.until_names("a")


async def test_a_stale_list_is_not_believed(server: ApiServer) -> None:
    """A replica that lags answers the list after a 410: nothing that is known is unlearned."""
    await bind(server, "a", "b")
    shown: list[set[str]] = []
    async with watching(server) as seen:
        await seen.until_names("a", "b")
        server.faults.add(Rule(fault=Fault.STALE, verb="list"), count=3)
        server.store.compact()
        await bind(server, "c")
        server.faults.add(Rule(fault=Fault.GONE_IN_STREAM, verb="watch"))
        server.cut_watches()
        async with asyncio.timeout(DEADLINE_S):
            while server.requests["list", "pods"] < 5:
                shown.append(set(seen.pods.items))
                await asyncio.sleep(0.005)
        await seen.until_names("a", "b", "c")

    assert all({"default/a", "default/b"} <= one for one in shown)


async def test_a_cluster_that_was_restored_is_believed_in_the_end(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bind(server, "a", "b")
    async with watching(server) as seen:
        await seen.until_names("a", "b")
        monkeypatch.setattr(reflector, "STALE_PATIENCE_S", 0.0)
        await server.stop()
        server.faults.add(Rule(fault=Fault.GONE_IN_STREAM, verb="watch"))
        server.faults.add(Rule(fault=Fault.STALE, verb="list"))
        await server.start()
        await seen.until(lambda: not seen.pods.items)


async def test_a_restored_api_server_that_refuses_our_version_is_believed_in_the_end(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bind(server, "a")
    async with watching(server) as seen:
        await seen.until_names("a")
        monkeypatch.setattr(reflector, "STALE_PATIENCE_S", 0.0)
        await server.stop()
        server.store = Store()  # of a backup: its versions are lower, and a list as new as ours is refused with 504
        server.store.version = server.store.oldest = 10
        await bind(server, "restored")
        server.faults.add(Rule(fault=Fault.GONE_IN_STREAM, verb="watch"))
        await server.start()
        await seen.until_names("restored")


async def test_an_object_nobody_can_read_does_not_stop_the_others(server: ApiServer) -> None:
    broken = {"metadata": {"name": "broken"}, "spec": {"nodeName": NODE}, "status": {"conditions": 7, "podIP": "x"}}
    await server.store.create(PODS, "default", broken)
    await bind(server, "a")
    async with watching(server) as seen:
        await seen.until_names("a")


# --- One request -----------------------------------------------------------------------------------------------------


async def test_the_token_is_read_again_when_it_is_replaced(server: ApiServer, tmp_path: Path) -> None:
    file, now_s = tmp_path / "token", [0.0]
    file.write_text("old")
    (tmp_path / "ca.crt").write_bytes(an_authority("kubernetes").pem)
    server.users = {"old": User()}
    policy = KubePolicy(node_name=NODE, service_host="127.0.0.1", service_port="443", endpoint=server.url)
    access = find(policy, service_account=tmp_path, clock=lambda: now_s[0])
    assert access is not None
    async with KubeApi(access, user_agent="test") as api:
        await api.get("/api/v1/pods")
        file.write_text("new")
        server.users = {"new": User()}
        with pytest.raises(ClusterFailed) as refused:
            await api.get("/api/v1/pods")
        assert refused.value.cause is Cause.KUBERNETES_DENIED
        await api.get("/api/v1/pods")  # a 401 has it read at once
        file.write_text("newer")
        server.users = {"newer": User()}
        now_s[0] = 61.0
        await api.get("/api/v1/pods")
        file.write_text("a\nb")  # nothing that fits into a header
        now_s[0] = 122.0
        with pytest.raises(ClusterFailed, match="credentials"):
            await api.get("/api/v1/pods")
        file.unlink()
        now_s[0] = 183.0
        with pytest.raises(ClusterFailed, match="service account"):
            await api.get("/api/v1/pods")


async def test_nobody_there_is_an_error_that_says_where(server: ApiServer) -> None:
    await server.stop()
    async with client(server) as api:
        with pytest.raises(ClusterFailed, match=server.url) as failed:
            await api.get("/api/v1/pods")

    assert failed.value.cause is Cause.KUBERNETES_UNAVAILABLE


def test_jitter_is_full_and_bounded() -> None:
    assert [reflector.pause_s(n, 1.0) for n in (1, 2, 3, 6, 99)] == [2.0, 4.0, 8.0, 60.0, 60.0]
    assert reflector.pause_s(5, 0.0) == 0.0
