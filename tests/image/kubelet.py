"""Runs a pod's containers from its manifest, as the kubelet does: the manifest's own words, turned into CRI requests.

Field numbers are those of `pkg/apis/runtime/v1/api.proto` in kubernetes/cri-api, quoted beside each use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.system.cri import (
    CHANGE_DEADLINE_S,
    QUERY_DEADLINE_S,
    Cri,
    SandboxConfig,
    embedded,
    flag,
    message,
    number,
    number_of,
    text,
    text_of,
)

NODE_NETWORK = 2
"""`enum NamespaceMode`, NODE."""
EXITED = 2
"""`enum ContainerState`."""
_PROPAGATION = {"None": 0, "HostToContainer": 1, "Bidirectional": 2}
"""`enum MountPropagation`."""
_MASKED = ("acpi", "kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "scsi")
_READ_ONLY = ("bus", "fs", "irq", "sys", "sysrq-trigger")
"""Below /proc, what the kubelet passes for `procMount: Default` (pkg/securitycontext, `defaultMaskedPaths` and
`defaultReadonlyPaths`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a pod runs.

    image: what stands for the manifest's image. host: a path of the host to where this machine has it.
    environment: added to every container's, for what the simulated VPC needs.
    """

    cri: Cri
    image: str
    host: Callable[[str], Path]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """What a command inside a container left."""

    exit_code: int
    stdout: str
    stderr: str


class ManifestPod:
    """A pod of a DaemonSet with `hostNetwork`, whose containers are run one by one."""

    def __init__(self, place: Place, spec: Mapping[str, Any], sandbox: SandboxConfig) -> None:
        assert spec["hostNetwork"] is True, "the sandbox below takes the node's network"
        self._place = place
        self._spec = spec
        self._config = sandbox.encoded(network=NODE_NETWORK)
        self._log_directory = sandbox.log_directory
        # RunPodSandboxRequest: config = 1; answer: pod_sandbox_id = 1
        answer = place.cri.call("RunPodSandbox", embedded(1, self._config), CHANGE_DEADLINE_S)
        self.sandbox_id = text_of(answer, 1)

    def start(self, container: Mapping[str, Any]) -> str:
        """Create and start a container of the manifest; its id."""
        request = (
            text(1, self.sandbox_id) + embedded(2, self._container_config(container)) + embedded(3, self._config)
        )  # CreateContainerRequest: pod_sandbox_id = 1, config = 2, sandbox_config = 3; answer: container_id = 1
        container_id = text_of(self._place.cri.call("CreateContainer", request, CHANGE_DEADLINE_S), 1)
        self._place.cri.call("StartContainer", text(1, container_id), CHANGE_DEADLINE_S)
        return container_id

    def state(self, container_id: str) -> tuple[int, int]:
        """(`enum ContainerState`, exit code): ContainerStatus has state = 3 and exit_code = 7."""
        status = message(self._place.cri.call("ContainerStatus", text(1, container_id), QUERY_DEADLINE_S), 1)
        return number_of(status, 3), number_of(status, 7)

    def execute(self, container_id: str, command: list[str], *, timeout_s: int) -> Executed:
        """ExecSyncRequest: container_id = 1, cmd = 2, timeout = 3; answer: stdout = 1, stderr = 2, exit_code = 3."""
        request = text(1, container_id) + b"".join(text(2, word) for word in command) + number(3, timeout_s)
        answer = self._place.cri.call("ExecSync", request, CHANGE_DEADLINE_S)
        return Executed(exit_code=number_of(answer, 3), stdout=text_of(answer, 1), stderr=text_of(answer, 2))

    def stop(self, container_id: str) -> None:
        """SIGTERM, then SIGKILL, as the manifest says. StopContainerRequest: container_id = 1, timeout = 2."""
        grace_s = self._spec["terminationGracePeriodSeconds"]
        self._place.cri.call("StopContainer", text(1, container_id) + number(2, grace_s), CHANGE_DEADLINE_S)

    def log(self, container: Mapping[str, Any]) -> str:
        path = self._log_directory / f"{container['name']}.log"
        return path.read_text() if path.exists() else ""

    def remove(self) -> None:
        self._place.cri.stop_sandbox(self.sandbox_id)
        self._place.cri.remove_sandbox(self.sandbox_id)

    def _container_config(self, container: Mapping[str, Any]) -> bytes:
        """`ContainerConfig`."""
        return b"".join(
            [
                embedded(1, text(1, container["name"])),  # metadata: name = 1
                embedded(2, text(1, self._place.image)),  # image: image = 1
                *(text(3, word) for word in container["command"]),
                *(embedded(6, text(1, name) + text(2, value)) for name, value in self._environment(container)),
                *(embedded(7, mount) for mount in self._mounts(container)),
                text(11, f"{container['name']}.log"),
                embedded(15, embedded(2, self._security(container["securityContext"]))),  # linux: security_context = 2
            ]
        )

    def _environment(self, container: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        for one in container["env"]:
            yield one["name"], str(one.get("value", "of-the-downward-api"))
        yield from self._place.environment.items()

    def _mounts(self, container: Mapping[str, Any]) -> Iterator[bytes]:
        """`Mount`: container_path = 1, host_path = 2, readonly = 3, propagation = 5."""
        volumes = {one["name"]: one["hostPath"] for one in self._spec["volumes"]}
        for mount in container["volumeMounts"]:
            host = self._place.host(volumes[mount["name"]]["path"])
            if volumes[mount["name"]]["type"] == "DirectoryOrCreate":
                host.mkdir(parents=True, exist_ok=True)
            assert host.is_dir(), host
            yield (
                text(1, mount["mountPath"])
                + text(2, str(host))
                + flag(3, value=mount.get("readOnly", False))
                + number(5, _PROPAGATION[mount.get("mountPropagation", "None")])
            )

    def _security(self, context: Mapping[str, Any]) -> bytes:
        """`LinuxContainerSecurityContext`; a seccomp profile without a type is the runtime's default."""
        assert self._spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        capabilities = context["capabilities"]
        added = b"".join(text(1, name) for name in capabilities.get("add", []))
        dropped = b"".join(text(2, name) for name in capabilities.get("drop", []))
        return b"".join(
            [
                embedded(1, added + dropped),
                flag(2, value=context.get("privileged", False)),
                embedded(3, number(1, NODE_NETWORK)),  # namespace_options: network = 1
                flag(7, value=context["readOnlyRootFilesystem"]),
                flag(11, value=not context["allowPrivilegeEscalation"]),  # no_new_privs
                *(text(13, f"/proc/{name}") for name in _MASKED),
                *(text(14, f"/proc/{name}") for name in _READ_ONLY),
                embedded(15, b""),
            ]
        )
