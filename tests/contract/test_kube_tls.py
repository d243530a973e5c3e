"""The API server by TLS, as a cluster has it: an authority of its own, perhaps replaced, and client certificates."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.errors import ClusterFailed
from agent.kube import access
from agent.kube.api import KubeApi
from agent.kube.policy import KubePolicy
from sim.kube.server import ApiServer
from tests.certificates import Authority, an_authority
from tests.contract.kube_access import access_by_kubeconfig


@asynccontextmanager
async def serving(authority: Authority, directory: Path, *, clients_of: Authority | None = None) -> AsyncIterator[int]:
    """A TLS front of a simulated API server; its port. clients_of: who must have signed the client's certificate."""
    certificate, key = authority.issue("kube-apiserver")
    both = directory / "server.pem"
    both.write_bytes(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    if clients_of is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=clients_of.pem.decode())
    server = ApiServer(tls=context)
    await server.start()
    try:
        yield int(server.url.rpartition(":")[2])
    finally:
        await server.stop()


def service_account(directory: Path, authority: Authority) -> Path:
    (directory / "token").write_text("token")
    (directory / "ca.crt").write_bytes(authority.pem)
    return directory


def in_cluster(directory: Path, port: int) -> access.Access:
    policy = KubePolicy(node_name="n", service_host="127.0.0.1", service_port=str(port))
    found = access.find(policy, service_account=directory)
    assert found is not None
    return found


async def test_the_service_accounts_authority_is_enough_and_no_other_is(tmp_path: Path) -> None:
    authority = an_authority("kubernetes")
    async with serving(authority, tmp_path) as port:
        good = in_cluster(service_account(tmp_path, authority), port)
        async with KubeApi(good, user_agent="test") as api:
            assert (await api.get("/api/v1/pods"))["items"] == []

        (tmp_path / "ca.crt").write_bytes(an_authority("mallory").pem)
        async with KubeApi(in_cluster(tmp_path, port), user_agent="test") as api:
            with pytest.raises(ClusterFailed) as refused:
                await api.get("/api/v1/pods")

    assert "certificate" in refused.value.remedy


async def test_a_replaced_authority_is_read_without_a_restart(tmp_path: Path) -> None:
    old, new = an_authority("old"), an_authority("new")
    service_account(tmp_path, old)
    async with serving(new, tmp_path) as port, KubeApi(in_cluster(tmp_path, port), user_agent="test") as api:
        with pytest.raises(ClusterFailed):
            await api.get("/api/v1/pods")
        (tmp_path / "ca.crt").write_bytes(new.pem)
        assert (await api.get("/api/v1/pods"))["items"] == []


async def test_a_kubeconfigs_client_certificate(tmp_path: Path) -> None:
    authority, clients = an_authority("kubernetes"), an_authority("clients")
    certificate, key = clients.issue("system:node:n")

    def encoded(content: bytes) -> str:
        return base64.b64encode(content).decode()

    async with serving(authority, tmp_path, clients_of=clients) as port:
        config: dict[str, Any] = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
            "clusters": [
                {
                    "name": "c",
                    "cluster": {
                        "server": f"https://127.0.0.1:{port}",
                        "certificate-authority-data": encoded(authority.pem),
                    },
                }
            ],
            "users": [
                {
                    "name": "c",
                    "user": {"client-certificate-data": encoded(certificate), "client-key-data": encoded(key)},
                }
            ],
        }
        path = tmp_path / "config"
        path.write_text(json.dumps(config))
        async with KubeApi(access_by_kubeconfig(path), user_agent="test") as api:
            assert (await api.get("/api/v1/pods"))["items"] == []

        config["users"][0]["user"] = {}
        path.write_text(json.dumps(config))
        async with KubeApi(access_by_kubeconfig(path), user_agent="test") as api:
            with pytest.raises(ClusterFailed):
                await api.get("/api/v1/pods")
