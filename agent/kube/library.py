"""kubernetes-asyncio without its models: access to an API server, and one request.

`import kubernetes_asyncio` imports every model and every API class, 38 MiB and a second of CPU, for objects of which
this room reads a handful of fields. Its configuration (service account, kubeconfig with its plugins), its TLS and its
request need none of them. The packages' `__init__`s are therefore not run (docs/decisions/0058); what the rest of the
library expects of them is put there, as they would.
"""

from __future__ import annotations

import sys
from types import ModuleType

from agent.runtime.packages import without_init

without_init("kubernetes_asyncio")
without_init("kubernetes_asyncio.client")
without_init("kubernetes_asyncio.config")

from kubernetes_asyncio.client.configuration import Configuration  # noqa: E402
from kubernetes_asyncio.client.rest import RESTClientObject  # noqa: E402

_client = sys.modules["kubernetes_asyncio.client"]
_client.Configuration = Configuration  # type: ignore[attr-defined]

from kubernetes_asyncio.config.config_exception import ConfigException  # noqa: E402
from kubernetes_asyncio.config.incluster_config import InClusterConfigLoader  # noqa: E402

__all__ = ["ConfigException", "Configuration", "InClusterConfigLoader", "RESTClientObject", "kube_config"]


def kube_config() -> ModuleType:
    """The module that reads kubeconfigs. It needs YAML and more, which a pod with a service account does without."""
    without_init("kubernetes_asyncio.client.models")
    from kubernetes_asyncio.client.api_client import ApiClient  # noqa: PLC0415

    _client.ApiClient = ApiClient  # type: ignore[attr-defined]
    from kubernetes_asyncio.config import kube_config as found  # noqa: PLC0415

    made: ModuleType = found
    return made
