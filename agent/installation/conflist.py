"""The network configuration list that makes a container runtime call our plugin. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable

FILE_NAME = "05-enoki.conflist"
"""containerd takes the first file of its directory in the order of their names. This one comes before what other
plugins install (10-aws.conflist, 10-calico.conflist, 10-containerd-net.conflist), so that a file that a predecessor
left behind does not matter, and after Multus' 00-multus.conf, which is meant to come first and calls us."""

NETWORK_NAME = "enoki"
"""Never to be changed: libcni finds what it cached of a pod (the result that DEL and CHECK get) under this name."""

PLUGIN = "enoki"
"""The name of the executable."""

CAPABILITIES = {"portMappings": True, "bandwidth": True}
"""What the runtime is asked to put into `runtimeConfig` (CNI conventions, "Dynamic Plugin specific Fields"): host
ports, and the annotations kubernetes.io/ingress-bandwidth and egress-bandwidth. No further plugin is chained."""

_ENDINGS = (".conf", ".conflist", ".json")
"""What libcni's ConfFiles looks for."""


def network_configuration(cni_version: str) -> bytes:
    """The file's content.

    cni_version: what every call is made in. 1.0.0 rather than 1.1.0 because a runtime asks STATUS from 1.1.0 on, and
        the seconds of a rolling upgrade would make the node NotReady.
    """
    plugin = {"type": PLUGIN, "capabilities": CAPABILITIES}
    return json.dumps({"cniVersion": cni_version, "name": NETWORK_NAME, "plugins": [plugin]}, indent=2).encode() + b"\n"


def ahead_of_ours(names: Iterable[str]) -> list[str]:
    """File names of a configuration directory that a runtime would take before ours."""
    return sorted(name for name in names if name < FILE_NAME and name.endswith(_ENDINGS))
