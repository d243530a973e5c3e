"""Where the API server is, and who we are: a pod's service account, or a kubeconfig. Read by kubernetes-asyncio.

Kubernetes documentation, "Accessing the Kubernetes API from a Pod": the address is in the environment, token and
certificate are files of the service account; the kubelet replaces the token before it expires.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

from agent.errors import Cause, ClusterFailed
from agent.kube.library import ConfigException, Configuration, InClusterConfigLoader, kube_config
from agent.kube.policy import KubePolicy

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
FRESH_S = 60.0
"""How long what was read is used: client-go reads its token again as often."""
MAX_CONNECTION_COUNT = 8

Load = Callable[[Configuration], Awaitable[None]]


class Access:
    """How to reach the API server.

    configuration: of kubernetes-asyncio; its credentials are renewed before a request that finds them older than a
    minute. load: fills it in.
    """

    def __init__(self, load: Load, *, endpoint: str = "", clock: Callable[[], float] = monotonic) -> None:
        self.configuration = Configuration()
        self.configuration.connection_pool_maxsize = MAX_CONNECTION_COUNT
        # Like client-go: from Python 3.13 on OpenSSL would otherwise refuse authorities without key identifiers, which
        # older clusters have.
        self.configuration.disable_strict_ssl_verification = True
        self._load = load
        self._endpoint = endpoint.rstrip("/")
        self._clock = clock
        self._read_at_s = float("-inf")

    @property
    def server(self) -> str:
        """The API server's URL, without a trailing slash."""
        return str(self.configuration.host)

    async def renew(self) -> None:
        """Read everything again. Raises: ClusterFailed when what there is cannot be used."""
        await self._load(self.configuration)
        if self._endpoint:
            self.configuration.host = self._endpoint
        self.configuration.refresh_api_key_hook = self._keep_fresh
        self._read_at_s = self._clock()

    async def _keep_fresh(self, _: Configuration) -> None:
        if self._clock() - self._read_at_s >= FRESH_S:
            await self.renew()


def find(
    policy: KubePolicy, *, service_account: Path = SERVICE_ACCOUNT, clock: Callable[[], float] = monotonic
) -> Access | None:
    """The way to the API server; None when no settings ask for one. Reads nothing yet."""
    if not policy.is_configured:
        return None
    if policy.kubeconfig is not None:
        return Access(_from_kubeconfig(policy.kubeconfig), endpoint=policy.endpoint, clock=clock)
    loader = InClusterConfigLoader(
        token_filename=str(service_account / "token"),
        cert_filename=str(service_account / "ca.crt"),
        environ={"KUBERNETES_SERVICE_HOST": policy.service_host, "KUBERNETES_SERVICE_PORT": policy.service_port},
    )

    async def load(configuration: Configuration) -> None:
        try:
            loader.load_and_set(configuration)
        except (OSError, ValueError, ConfigException) as error:
            raise unusable(f"the service account {service_account} cannot be used: {error}") from error

    return Access(load, endpoint=policy.endpoint, clock=clock)


def _from_kubeconfig(path: Path) -> Load:
    """The current context of a kubeconfig (client-go's clientcmd/api/v1 Config), in YAML or JSON.

    Whatever kubernetes-asyncio supports: tokens and their files, client certificates, `exec` plugins, OpenID Connect,
    user and password, `proxy-url`. Certificates inside of it are in temporary files of the library until the end.
    """

    async def load(configuration: Configuration) -> None:
        reader = kube_config()
        try:
            await reader.load_kube_config(
                config_file=str(path), client_configuration=configuration, persist_config=False
            )
        except (OSError, ValueError, ConfigException, reader.yaml.YAMLError) as error:
            raise unusable(f"kubeconfig {path} cannot be used: {error}") from error
        except (LookupError, TypeError, AttributeError, AssertionError) as error:
            raise unusable(f"kubeconfig {path} has no usable current context: {error!r}") from error

    return load


def unusable(message: str) -> ClusterFailed:
    """The error of credentials or certificates that are missing or make no sense."""
    return ClusterFailed(
        Cause.KUBERNETES_UNAVAILABLE,
        message,
        remedy="mount a service account token, or set KUBECONFIG; without either the agent works without Kubernetes",
    )
