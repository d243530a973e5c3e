"""The API server by TLS, as a cluster has it: an authority of its own, perhaps replaced, and client certificates."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.errors import ClusterFailed
from agent.kube import access
from agent.kube.api import KubeApi
from agent.kube.policy import KubePolicy
from sim.kube.server import ApiServer


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A certificate authority that signs for 127.0.0.1."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str) -> tuple[bytes, bytes]:
        """A certificate and its key, in PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = (
            _builder(name, self.certificate.subject, key)
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM), key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def an_authority(name: str) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    certificate = (
        _builder(name, subject, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate=certificate, key=key)


def _builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(tz=UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(hours=1))
    )


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
        async with KubeApi(access.from_kubeconfig(path), user_agent="test") as api:
            assert (await api.get("/api/v1/pods"))["items"] == []

        config["users"][0]["user"] = {}
        path.write_text(json.dumps(config))
        async with KubeApi(access.from_kubeconfig(path), user_agent="test") as api:
            with pytest.raises(ClusterFailed):
                await api.get("/api/v1/pods")
