"""Where the pod of the DaemonSet finds what it mounts, and the image it runs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

IMAGE = "enoki.test/agent:1"
ARCHIVE = Path(os.environ.get("ENOKI_IMAGE_ARCHIVE", "/nowhere"))  # noqa: TID251  # from the Makefile
REAL = ("/proc/sys/net", "/run/netns")
"""Host paths that are the kernel's: the machine's own serve every node, each process sees those of its namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A node's own part of the file system."""

    root: Path

    def path(self, path: str) -> Path:
        return Path(path) if path in REAL else self.root / path.lstrip("/")


def file_system_of(path: Path) -> str:
    """The kind of file system that is mounted at `path`, or at / (proc(5), /proc/self/mounts)."""
    kinds = {line.split()[1]: line.split()[2] for line in Path("/proc/self/mounts").read_text().splitlines()}
    return kinds.get(str(path), kinds["/"])


def snapshotter() -> str:
    """What a containerd with its directory below /run can use."""
    return "native" if file_system_of(Path("/run")) == "overlay" else "overlayfs"
