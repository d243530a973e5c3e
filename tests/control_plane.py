"""A real control plane: etcd and kube-apiserver, started as processes when somebody says where the programs are.

They are found as controller-runtime's envtest finds them (pkg/internal/testing/process): TEST_ASSET_KUBE_APISERVER,
TEST_ASSET_ETCD and TEST_ASSET_KUBECTL name a program each, KUBEBUILDER_ASSETS the directory of all. Everything is on
one address of its own and in one directory; nothing is shared between two control planes.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from lab.lab import REPOSITORY
from lab.processes import AT_ONCE, ProcessId, end, start_service, tail
from tests.certificates import Authority, an_authority

START_DEADLINE_S = 120.0
"""A loaded machine takes half a minute for what a quiet one does in four seconds."""
PORT = 6443
ADMIN_TOKEN = "of-the-administrator"
_PATIENT = ((signal.SIGTERM, 2.0), (signal.SIGKILL, 5.0))
"""An API server would wait a minute for its watches to end by themselves."""
_DEPLOY = REPOSITORY / "deploy"
_APPLY = ("apply", "--server-side", "--force-conflicts", "--validate=strict")
_POLL_S = 0.05
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class ControlPlaneFailed(Exception):
    """It did not get ready; the message ends with the log."""


def program(name: str) -> Path | None:
    """A program of Kubernetes, if somebody said where it is."""
    environment = os.environ  # noqa: TID251  # envtest's own variables
    if named := environment.get(f"TEST_ASSET_{name.upper().replace('-', '_')}"):
        return Path(named)
    if assets := environment.get("KUBEBUILDER_ASSETS"):
        found = Path(assets) / name
        return found if found.exists() else None
    return None


def missing(*further: str) -> str:
    """What is missing for a control plane, and of further programs, in a sentence; empty when nothing is."""
    wanted = ("etcd", "kube-apiserver", "kubectl", *further)
    lacking = [name for name in wanted if (found := program(name)) is None or not os.access(found, os.X_OK)]
    if not lacking:
        return ""
    return f"needs a real API server; not found: {', '.join(lacking)}; see CONTRIBUTING.md, KUBEBUILDER_ASSETS"


@dataclass(slots=True, kw_only=True)
class ControlPlane:
    """One etcd and one kube-apiserver.

    address: where both listen. inside: the words before a command that enter another network namespace.
    authority: who signs the API server's certificate. Use as a context manager.
    """

    directory: Path
    address: IPv4Address
    inside: Sequence[str] = ()
    authority: Authority = field(default_factory=lambda: an_authority("kubernetes"))
    _etcd: ProcessId | None = None
    _apiserver: ProcessId | None = None

    @property
    def url(self) -> str:
        return f"https://{self.address}:{PORT}"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.directory / "admin.kubeconfig"

    @property
    def log(self) -> Path:
        return self.directory / "kube-apiserver.log"

    def __enter__(self) -> ControlPlane:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write_pair("service-accounts")
        (self.directory / "tokens.csv").write_text(f"{ADMIN_TOKEN},admin,admin,system:masters\n")
        self._write_kubeconfig()
        try:
            self._start_etcd()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self._etcd is not None:
            end(self._etcd, signals=AT_ONCE)
            self._etcd = None

    def start(self) -> None:
        """The API server; returns when it is ready. Its certificate is a new one, signed by `authority`."""
        (self.directory / "ca.crt").write_bytes(self.authority.pem)
        self._write_pair("kube-apiserver")
        self._apiserver = self._start("kube-apiserver", self._arguments(), self.log)
        self._wait(self._apiserver, f"{self.url}/readyz", self.log)

    def stop(self) -> None:
        """End the API server; what etcd has stays."""
        if self._apiserver is not None:
            end(self._apiserver, signals=_PATIENT)
            self._apiserver = None

    def kill(self) -> None:
        """The same without a goodbye."""
        if self._apiserver is not None:
            end(self._apiserver, signals=AT_ONCE)
            self._apiserver = None

    def kubectl(self, *arguments: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """As the administrator. Raises: AssertionError with what it said when it fails."""
        argv = [*self.inside, str(program("kubectl")), "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(
            argv,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={"PATH": _PATH, "HOME": str(self.directory)},
        )
        assert not check or done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done

    def get(self, *arguments: str) -> Any:
        """`kubectl get -o json`."""
        return json.loads(self.kubectl("get", "-o", "json", *arguments).stdout)

    def token(self, namespace: str, service_account: str, *arguments: str) -> str:
        """A token as the kubelet projects it. arguments: further ones of `kubectl create token`."""
        return self.kubectl("create", "token", service_account, "-n", namespace, *arguments).stdout.strip()

    def _arguments(self) -> list[str]:
        options: Mapping[str, object] = {
            "etcd-servers": f"http://{self.address}:2379",
            "bind-address": self.address,
            "advertise-address": self.address,
            "secure-port": PORT,
            "tls-cert-file": self.directory / "kube-apiserver.crt",
            "tls-private-key-file": self.directory / "kube-apiserver.key",
            "token-auth-file": self.directory / "tokens.csv",
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "endpoint-reconciler-type": "none",  # there is nobody to find it by its service
            "service-cluster-ip-range": "10.96.0.0/16",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": self.directory / "service-accounts.crt",
            "service-account-signing-key-file": self.directory / "service-accounts.key",
            "shutdown-delay-duration": "0s",
        }
        return [f"--{name}={value}" for name, value in options.items()]

    def _start_etcd(self) -> None:
        log, client, peer = self.directory / "etcd.log", f"http://{self.address}:2379", f"http://{self.address}:2380"
        options: Mapping[str, object] = {
            "data-dir": self.directory / "etcd",
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "unsafe-no-fsync": "true",  # nobody needs the data after a crash of the machine
        }
        self._etcd = self._start("etcd", [f"--{name}={value}" for name, value in options.items()], log)
        self._wait(self._etcd, f"{client}/health", log)

    def _start(self, name: str, arguments: Sequence[str], log: Path) -> ProcessId:
        argv = [*self.inside, str(program(name)), *arguments]
        environment = {"PATH": _PATH, "HOME": str(self.directory)}
        return start_service(argv, environment=environment, log=log)

    def _wait(self, process: ProcessId, url: str, log: Path) -> None:
        ends_s = time.monotonic() + START_DEADLINE_S
        while not self._answers(url):
            if not process.alive or time.monotonic() > ends_s:
                raise ControlPlaneFailed(f"{url} does not answer:\n{tail(log)}")
            time.sleep(_POLL_S)

    def _answers(self, url: str) -> bool:
        if self.inside:
            argv = [*self.inside, "curl", "-sf", "--cacert", str(self.directory / "ca.crt"), "--max-time", "2"]
            argv += ["-H", f"Authorization: Bearer {ADMIN_TOKEN}", url]
            return subprocess.run(argv, capture_output=True, check=False, timeout=10).returncode == 0
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=2, context=self.trust()) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def trust(self) -> ssl.SSLContext:
        """What a client of this API server checks its certificate with."""
        return ssl.create_default_context(cadata=self.authority.pem.decode())

    def _write_pair(self, name: str) -> None:
        certificate, key = self.authority.issue(name, self.address)
        (self.directory / f"{name}.crt").write_bytes(certificate)
        (self.directory / f"{name}.key").write_bytes(key)

    def _write_kubeconfig(self) -> None:
        config = kubeconfig(self.url, authority=self.directory / "ca.crt", user={"token": ADMIN_TOKEN})
        self.kubeconfig.write_text(json.dumps(config))


def kubeconfig(url: str, *, authority: Path | None, user: Mapping[str, str]) -> dict[str, Any]:
    """A client configuration (clientcmd/api/v1 Config) with one context."""
    trust = {} if authority is None else {"certificate-authority": str(authority)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": url, **trust}}],
        "users": [{"name": "u", "user": dict(user)}],
    }


def prepare(plane: ControlPlane) -> None:
    """What a cluster has before an agent comes: the manifests but for the DaemonSet, and an account for pods.

    May be done again. Raises: AssertionError when the API server refuses any of it.
    """
    base = _DEPLOY / "kustomize" / "base"
    plane.kubectl(*_APPLY, "-n", "kube-system", "-f", str(base / "serviceaccount.yaml"))
    plane.kubectl(*_APPLY, "-f", str(base / "rbac.yaml"))
    install_crd(plane)
    for namespace in ("default", "kube-system"):  # the controller manager's work
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        plane.kubectl(*_APPLY, "-n", namespace, "-f", "-", stdin=json.dumps(account))


def install_crd(plane: ControlPlane) -> None:
    """May be done again. Returns when ENIConfigs are served."""
    plane.kubectl(*_APPLY, "-f", str(_DEPLOY / "crds" / "eniconfig.yaml"))
    plane.kubectl("wait", "--for=condition=Established", "crd/eniconfigs.crd.k8s.amazonaws.com", "--timeout=60s")
    ends_s = time.monotonic() + START_DEADLINE_S
    while plane.kubectl("get", "eniconfigs", check=False).returncode and time.monotonic() < ends_s:
        time.sleep(_POLL_S)  # established is what the object says, a moment before its path is there
