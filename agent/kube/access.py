"""Where the API server is, and who we are: a pod's service account, or a kubeconfig.

Kubernetes documentation, "Accessing the Kubernetes API from a Pod": the address is in the environment, token and
certificate are files of the service account; the kubelet replaces the token before it expires, so it is read again
every minute, as client-go does.
"""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from agent.errors import Cause, ClusterFailed
from agent.kube.policy import KubePolicy

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_FRESH_S = 60.0


class TokenFile:
    """A bearer token in a file that somebody replaces from time to time."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = monotonic) -> None:
        self._path = path
        self._clock = clock
        self._token = ""
        self._read_at_s = float("-inf")

    def __call__(self) -> str:
        """The token. An unreadable file does not take away the one we have. Raises: ClusterFailed without any."""
        if self._clock() - self._read_at_s >= TOKEN_FRESH_S:
            try:
                self._token = self._path.read_text(encoding="ascii").strip()
                self._read_at_s = self._clock()
            except (OSError, ValueError) as error:
                if not self._token:
                    raise _unusable(f"the service account's token {self._path} cannot be read: {error}") from error
        return self._token

    def forget(self) -> None:
        """Read the file again at the next use: the API server did not take the token."""
        self._read_at_s = float("-inf")


class FixedToken:
    """A token that stays the same; empty: none."""

    def __init__(self, token: str = "") -> None:
        self._token = token

    def __call__(self) -> str:
        return self._token

    def forget(self) -> None:
        """There is no other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to reach the API server.

    server: URL without a trailing slash. tls: made anew for each session, so that a replaced certificate is seen;
    None for http. server_name: what its certificate must name, when that is not the host in the URL.
    """

    server: str
    token: TokenFile | FixedToken
    tls: Callable[[], ssl.SSLContext] | None = None
    server_name: str | None = None


def find(policy: KubePolicy, *, service_account: Path = SERVICE_ACCOUNT) -> Access | None:
    """The way to the API server; None when no settings ask for one.

    Raises: ClusterFailed when what there is cannot be used: a file is missing or makes no sense.
    """
    if not policy.is_configured:
        return None
    if policy.kubeconfig is not None:
        return from_kubeconfig(policy.kubeconfig, endpoint=policy.endpoint)
    host = f"[{policy.service_host}]" if ":" in policy.service_host else policy.service_host
    authority = service_account / "ca.crt"
    return Access(
        server=(policy.endpoint or f"https://{host}:{policy.service_port}").rstrip("/"),
        token=TokenFile(service_account / "token"),
        tls=lambda: _tls(cafile=authority),
    )


def from_kubeconfig(path: Path, *, endpoint: str = "") -> Access:
    """The current context of a kubeconfig (client-go's clientcmd/api/v1 Config), in YAML or JSON.

    Supported: `token`, `tokenFile`, client certificates, `certificate-authority`, `insecure-skip-tls-verify`,
    `tls-server-name`. Not supported: `exec`, `auth-provider`, user and password, proxies.
    Raises: ClusterFailed.
    """
    try:
        config = _load(path)
        context = _named(config, "contexts", config["current-context"])["context"]
        cluster = _named(config, "clusters", context["cluster"])["cluster"]
        user = _named(config, "users", context["user"]).get("user") or {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(f"kubeconfig {path} has no usable current context: {error!r}") from error
    for unsupported in ("exec", "auth-provider", "username"):
        if unsupported in user:
            raise _unusable(f"kubeconfig {path}: `{unsupported}` is not supported; use a token or a client certificate")
    server = (endpoint or str(cluster["server"])).rstrip("/")
    token_file = user.get("tokenFile")
    token = TokenFile(path.parent / token_file) if token_file else FixedToken(user.get("token") or "")
    return Access(
        server=server,
        token=token,
        tls=(lambda: _kubeconfig_tls(path, cluster, user)) if server.startswith("https:") else None,
        server_name=cluster.get("tls-server-name"),
    )


def _load(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("{"):
        found = json.loads(text)
    else:
        import yaml  # noqa: PLC0415 - only a developer's kubeconfig is YAML

        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
    if not isinstance(found, dict):
        raise TypeError("not an object")
    return found


def _named(config: Mapping[str, Any], kind: str, name: str) -> Mapping[str, Any]:
    for one in config.get(kind) or ():
        if one["name"] == name:
            return dict(one)
    raise KeyError(f"{kind}: {name}")


def _kubeconfig_tls(path: Path, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> ssl.SSLContext:
    try:
        authority = _material(path, cluster, "certificate-authority")
        context = _tls(cadata=authority.decode() if authority else None)
        if cluster.get("insecure-skip-tls-verify"):
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        certificate, key = _material(path, user, "client-certificate"), _material(path, user, "client-key")
        if certificate and key:
            with _as_file(certificate + b"\n" + key) as both:
                context.load_cert_chain(both)
    except (OSError, ValueError) as error:
        raise _unusable(f"kubeconfig {path}: its certificates cannot be used: {error}") from error
    return context


def _material(path: Path, entry: Mapping[str, Any], name: str) -> bytes:
    """PEM out of `<name>-data` (base64) or the file `<name>`, which is relative to the kubeconfig. Empty: neither."""
    if data := entry.get(f"{name}-data"):
        return base64.b64decode(data, validate=True)
    if file := entry.get(name):
        return (path.parent / str(file)).read_bytes()
    return b""


@contextmanager
def _as_file(content: bytes) -> Iterator[Path]:
    # `SSLContext.load_cert_chain` reads files only.
    with tempfile.NamedTemporaryFile(prefix="enoki-") as file:  # mode 0600
        file.write(content)
        file.flush()
        yield Path(file.name)


def _tls(*, cafile: Path | None = None, cadata: str | None = None) -> ssl.SSLContext:
    """Verifies the server; with an authority of its own, by that one only. Raises: ClusterFailed."""
    try:
        return ssl.create_default_context(cafile=cafile, cadata=cadata or None)
    except (OSError, ValueError) as error:
        raise _unusable(f"the API server's certificate authority {cafile or ''} cannot be used: {error}") from error


def _unusable(message: str) -> ClusterFailed:
    return ClusterFailed(
        Cause.KUBERNETES_UNAVAILABLE,
        message,
        remedy="mount a service account token, or set KUBECONFIG; without either the agent works without Kubernetes",
    )
