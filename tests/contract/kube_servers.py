"""An API server for scenarios that a simulated and a real one have to play alike.

Both are reached as a pod reaches its own: by TLS, with the token and the authority of a service account that may do
what `deploy/` allows and nothing else. The administrator writes over HTTP too, so that what becomes of a write is the
server's.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Protocol

import aiohttp

from agent.kube.access import Access, find
from agent.kube.policy import KubePolicy
from sim.kube.server import ApiServer
from sim.kube.store import ENI_CONFIGS, EVENTS, NODES, PODS, Json, Kind
from sim.kube.users import Permission, User
from tests.certificates import Authority, an_authority
from tests.contract import kube_role
from tests.control_plane import ADMIN_TOKEN, PORT, ControlPlane, install_crd

AGENT = "system:serviceaccount:kube-system:enoki"
ROLE = kube_role.permissions(kube_role.base_role()) | kube_role.permissions(kube_role.annotating_rules())
MERGE_PATCH = "application/merge-patch+json"


class RequestFailed(Exception):
    """The API server said no to the administrator."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class Administrator:
    """Who may do everything."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def create(self, kind: Kind, document: Json, namespace: str = "") -> Json:
        named = {"apiVersion": kind.api_version, "kind": kind.kind, **document}
        return await self._ask("POST", _path(kind, namespace), named)

    async def get(self, kind: Kind, name: str, namespace: str = "") -> Json:
        return await self._ask("GET", _path(kind, namespace, name))

    async def list(self, kind: Kind, namespace: str = "") -> list[Json]:
        found: list[Json] = (await self._ask("GET", _path(kind, namespace)))["items"]
        return found

    async def patch(self, kind: Kind, name: str, patch: Json, namespace: str = "", *, subresource: str = "") -> Json:
        return await self._ask("PATCH", _path(kind, namespace, name, subresource), patch, content_type=MERGE_PATCH)

    async def delete(self, kind: Kind, name: str, namespace: str = "", *, grace_s: int | None = None) -> Json:
        """grace_s: None: the object's own; 0: as its kubelet does at the end."""
        query = "" if grace_s is None else f"?gracePeriodSeconds={grace_s}"
        return await self._ask("DELETE", _path(kind, namespace, name) + query)

    async def _ask(
        self, method: str, path: str, document: Json | None = None, *, content_type: str = "application/json"
    ) -> Json:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": content_type}
        while True:
            async with self._session.request(method, self._url + path, json=document, headers=headers) as answer:
                said: Json = await answer.json()
                if answer.status < 300:
                    return said
                if answer.status != 429:
                    raise RequestFailed(answer.status, said["message"])
            # After a start the storage of a custom resource is not ready at once, and says when to come again.
            await asyncio.sleep(float(answer.headers["Retry-After"]))


class KubeServer(Protocol):
    """One of the two.

    admin: reaches it also while the agent does not. service_account: the directory that the kubelet would mount.
    """

    admin: Administrator
    service_account: Path

    def access(self, *, clock: Callable[[], float] = monotonic) -> Access:
        """The agent's."""
        ...

    async def go_away(self) -> None:
        """The agent's connections end, and new ones are refused."""
        ...

    async def come_back(self) -> None: ...

    async def cut(self) -> None:
        """The agent's connections end, and new ones are taken."""
        ...

    async def forget(self) -> None:
        """What has happened until now can no longer be watched for."""
        ...

    async def permit(self, permissions: Iterable[Permission]) -> None:
        """Let the agent do this and nothing else."""
        ...

    async def remove_crd(self) -> None:
        """ENIConfigs are no longer known, and those that were are gone."""
        ...

    async def install_crd(self) -> None: ...

    async def new_token(self) -> str:
        """Another token of the agent's service account. The ones before stay good until `revoke`."""
        ...

    async def revoke(self) -> None:
        """Tokens made until now are good no more."""
        ...

    async def replace_authority(self) -> bytes:
        """Have the server's certificate signed by another authority from now on: that one's certificate, in PEM."""
        ...


class Simulated:
    """`sim/kube` as a KubeServer. Made by `simulated`."""

    def __init__(self, server: ApiServer, admin: Administrator, service_account: Path) -> None:
        self.admin = admin
        self.service_account = service_account
        self._server = server
        self._token_count = 0

    def access(self, *, clock: Callable[[], float] = monotonic) -> Access:
        return _access(self._server.url, self.service_account, clock)

    async def go_away(self) -> None:
        await self._server.stop()

    async def come_back(self) -> None:
        await self._server.start()

    async def cut(self) -> None:
        await self._server.stop()
        await self._server.start()

    async def forget(self) -> None:
        self._server.store.compact()

    async def permit(self, permissions: Iterable[Permission]) -> None:
        may = frozenset(permissions)
        self._server.users = {
            token: user if user.may is None else User(name=AGENT, may=may) for token, user in self._server.users.items()
        }

    async def remove_crd(self) -> None:
        for one in self._server.store.objects(ENI_CONFIGS):
            await self._server.store.delete(ENI_CONFIGS, "", one["metadata"]["name"])
        self._server.unserved.add(ENI_CONFIGS)
        self._server.cut_watches()

    async def install_crd(self) -> None:
        self._server.unserved.clear()

    async def new_token(self) -> str:
        self._token_count += 1
        token = f"token-{self._token_count}"
        self._server.users[token] = User(name=AGENT, may=ROLE)
        return token

    async def revoke(self) -> None:
        self._server.users = {ADMIN_TOKEN: User()}

    async def replace_authority(self) -> bytes:
        authority = an_authority("replaced")
        await self._server.stop()
        self._server.tls = _served_by(authority, self.service_account.parent)
        await self._server.start()
        return authority.pem


@asynccontextmanager
async def simulated(directory: Path) -> AsyncIterator[Simulated]:
    """A server that bookmarks often; `go_away` takes the administrator's way too."""
    authority = an_authority("kubernetes")
    server = ApiServer(tls=_served_by(authority, directory), users={ADMIN_TOKEN: User()}, bookmark_s=0.05)
    inside = ApiServer(users=server.users)
    inside.store = server.store
    await inside.start()
    await server.start()
    try:
        async with aiohttp.ClientSession() as session:
            made = Simulated(server, Administrator(session, inside.url), directory / "service-account")
            await _project(made, authority)
            yield made
    finally:
        await server.stop()
        await inside.stop()


def _served_by(authority: Authority, directory: Path) -> ssl.SSLContext:
    certificate, key = authority.issue("kube-apiserver")
    both = directory / "server.pem"
    both.write_bytes(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return context


class Real:
    """A kube-apiserver as a KubeServer, behind a relay that may be cut. Made by `real`."""

    def __init__(
        self, plane: ControlPlane, relay: Relay, admin: Administrator, service_account: Path, trust: ssl.SSLContext
    ) -> None:
        """trust: what `admin` checks the server's certificate with."""
        self.admin = admin
        self._trust = trust
        self.service_account = service_account
        self._plane = plane
        self._relay = relay

    def access(self, *, clock: Callable[[], float] = monotonic) -> Access:
        return _access(self._relay.url, self.service_account, clock)

    async def go_away(self) -> None:
        await self._relay.close()

    async def come_back(self) -> None:
        await self._relay.open()

    async def cut(self) -> None:
        await self._relay.close()
        await self._relay.open()

    async def forget(self) -> None:
        """Its history is in its memory: a new one has none."""
        await asyncio.to_thread(self._plane.kill)
        await asyncio.to_thread(self._plane.start)

    async def permit(self, permissions: Iterable[Permission]) -> None:
        rules = [
            {"apiGroups": [group], "resources": [resource], "verbs": [verb]} for group, resource, verb in permissions
        ]
        await self.admin.patch(CLUSTER_ROLES, "enoki", {"rules": rules})

    async def remove_crd(self) -> None:
        await asyncio.to_thread(self._plane.kubectl, "delete", "crd", "eniconfigs.crd.k8s.amazonaws.com")

    async def install_crd(self) -> None:
        await asyncio.to_thread(install_crd, self._plane)

    async def new_token(self) -> str:
        """Bound to a secret, so that it can be revoked."""
        with contextlib.suppress(RequestFailed):
            await self.admin.create(SECRETS, {"metadata": {"name": "binding"}}, "kube-system")
        arguments = ("--bound-object-kind", "Secret", "--bound-object-name", "binding")
        return await asyncio.to_thread(self._plane.token, "kube-system", "enoki", *arguments)

    async def revoke(self) -> None:
        await self.admin.delete(SECRETS, "binding", "kube-system")

    async def replace_authority(self) -> bytes:
        self._plane.authority = an_authority("replaced")
        await asyncio.to_thread(self._plane.stop)
        await asyncio.to_thread(self._plane.start)
        pem = self._plane.authority.pem
        self._trust.load_verify_locations(cadata=pem.decode())
        return pem


CLUSTER_ROLES = Kind(
    prefix="/apis/rbac.authorization.k8s.io/v1", plural="clusterroles", kind="ClusterRole", namespaced=False
)
SECRETS = Kind(prefix="/api/v1", plural="secrets", kind="Secret", namespaced=True)


@asynccontextmanager
async def real(plane: ControlPlane, directory: Path) -> AsyncIterator[Real]:
    """A test's view of a control plane that has been prepared; everything the test made is gone afterwards."""
    relay = Relay(plane)
    await relay.open()
    trust = plane.trust()
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as session:
            made = Real(plane, relay, Administrator(session, plane.url), directory / "service-account", trust)
            await made.permit(ROLE)
            await _project(made, plane.authority)
            try:
                yield made
            finally:
                await _clean(made.admin)
    finally:
        await relay.close()


class Relay:
    """Bytes to and from a control plane, until it is closed. It keeps its port."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"https://{self._plane.address}:{self._port}"

    async def open(self) -> None:
        host = str(self._plane.address)
        self._server = await asyncio.start_server(self._connected, host, self._port, reuse_address=True)
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await server.wait_closed()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._carry(reader, writer)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            self._connections.discard(task)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(str(self._plane.address), PORT)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, far_writer))
                group.create_task(_pump(far_reader, writer))
        except* OSError:
            pass
        finally:
            far_writer.transport.abort()
            writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(64 * 1024):
        writer.write(chunk)
        await writer.drain()
    raise ConnectionResetError("the other side has closed")


def _path(kind: Kind, namespace: str, name: str = "", subresource: str = "") -> str:
    parts = [kind.prefix, *(["namespaces", namespace] if namespace else []), kind.plural, name, subresource]
    return "/".join(part for part in parts if part)


def _access(url: str, service_account: Path, clock: Callable[[], float]) -> Access:
    host, port = url.removeprefix("https://").split(":")
    policy = KubePolicy(node_name="n", service_host=host, service_port=port)
    found = find(policy, service_account=service_account, clock=clock)
    assert found is not None
    return found


async def _project(server: KubeServer, authority: Authority) -> None:
    server.service_account.mkdir()
    (server.service_account / "ca.crt").write_bytes(authority.pem)
    (server.service_account / "token").write_text(await server.new_token())


async def _clean(admin: Administrator) -> None:
    for kind in (PODS, EVENTS):
        for namespace in ("default", "kube-system"):
            for one in await admin.list(kind, namespace):
                await admin.delete(kind, one["metadata"]["name"], namespace, grace_s=0)
    for kind in (NODES, ENI_CONFIGS):
        for one in await admin.list(kind):
            await admin.delete(kind, one["metadata"]["name"])
