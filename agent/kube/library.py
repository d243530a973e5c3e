"""kubernetes-asyncio without its models: access to an API server, and one request.

`import kubernetes_asyncio` imports every model and every API class, 38 MiB and a second of CPU, for objects of which
this room reads a handful of fields. Its configuration (service account, kubeconfig with its plugins), its TLS and its
request need none of them. The packages' `__init__`s are therefore not run (docs/decisions/0058); what the rest of the
library expects of them is put there, as they would.
"""

from __future__ import annotations

import sys

from agent.runtime.packages import without_init

without_init("kubernetes_asyncio")
without_init("kubernetes_asyncio.client")
without_init("kubernetes_asyncio.client.models")
without_init("kubernetes_asyncio.config")

from kubernetes_asyncio.client.api_client import ApiClient  # noqa: E402
from kubernetes_asyncio.client.configuration import Configuration  # noqa: E402

_client = sys.modules["kubernetes_asyncio.client"]
_client.ApiClient = ApiClient  # type: ignore[attr-defined]
_client.Configuration = Configuration  # type: ignore[attr-defined]

from kubernetes_asyncio.config.config_exception import ConfigException  # noqa: E402
from kubernetes_asyncio.config.incluster_config import InClusterConfigLoader  # noqa: E402

__all__ = ["ApiClient", "ConfigException", "Configuration", "InClusterConfigLoader"]
