"""The smallest container runtime: a network namespace, and the shim called as containerd would call it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHIM = Path(__file__).resolve().parent.parent / "bin" / "enoki"
NETWORK: Mapping[str, Any] = {"cniVersion": "1.0.0", "name": "enoki", "type": "enoki"}


class CniFailed(Exception):
    """The shim answered with a CNI error object (CNI spec 1.1, section 5)."""

    def __init__(self, reply: Mapping[str, Any]) -> None:
        super().__init__(f"CNI error {reply.get('code')}: {reply.get('msg')} {reply.get('details', '')}".rstrip())
        self.reply = reply
        self.code = reply.get("code")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A sandbox of ours: its network namespace is named like its container id."""

    container_id: str
    name: str
    socket: Path
    pod_namespace: str = "default"
    ifname: str = "eth0"
    network: Mapping[str, Any] = field(default_factory=lambda: NETWORK)

    @property
    def netns(self) -> str:
        return f"/run/netns/{self.container_id}"

    def environment(self, command: str) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "ENOKI_SOCKET": str(self.socket),
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": self.container_id,
            "CNI_NETNS": self.netns,
            "CNI_IFNAME": self.ifname,
            "CNI_PATH": "/opt/cni/bin",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={self.pod_namespace};K8S_POD_NAME={self.name}"
            f";K8S_POD_INFRA_CONTAINER_ID={self.container_id}",
        }

    def call(self, command: str, *, timeout_s: float = 60.0) -> dict[str, Any]:
        """Run the shim once; the decoded reply (empty when the verb answers nothing).

        Raises: CniFailed.
        """
        done = subprocess.run(
            [SHIM],
            env=self.environment(command),
            input=json.dumps(self.network).encode(),
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
        reply: dict[str, Any] = json.loads(done.stdout) if done.stdout.strip() else {}
        if done.returncode != 0:
            raise CniFailed(reply or {"code": None, "msg": done.stderr.decode(errors="replace")})
        return reply

    def start(self) -> str:
        """Make the namespace, ADD; the pod's address without its prefix length."""
        make_namespace(self.container_id)
        self.run("ip", "link", "set", "lo", "up")
        result = self.call("ADD")
        return str(result["ips"][0]["address"]).split("/")[0]

    def stop(self) -> None:
        """DEL, then take the namespace away, as a runtime does."""
        self.call("DEL")
        delete_namespace(self.container_id)

    def run(self, *argv: str, timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["nsenter", f"--net={self.netns}", "--", *argv],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


def make_namespace(name: str) -> None:
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)


def delete_namespace(name: str) -> None:
    """Remove a named network namespace; one that is gone already is fine."""
    if os.path.lexists(f"/run/netns/{name}"):
        subprocess.run(["ip", "netns", "delete", name], check=False, timeout=20)


def namespaces_of(lab_name: str) -> list[str]:
    """The pods of a lab: network namespaces called `<lab>-pod-...`."""
    directory = Path("/run/netns")
    return sorted(entry.name for entry in directory.glob(f"{lab_name}-pod-*")) if directory.exists() else []
