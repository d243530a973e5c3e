"""A pause image made from the machine's static busybox: nothing is pulled."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path

REFERENCE = "enoki.test/pause:1"
"""`.test` never resolves (RFC 2606, section 2): an attempt to pull it fails instead of fetching something else."""

BUSYBOX = Path("/bin/busybox")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""`uname -m` to GOARCH, in which the image specification names architectures (OCI image-spec, "config")."""


def pause_image_archive() -> bytes:
    """A tar archive in the format of `docker save`: one layer with busybox, whose command sleeps for ever.

    Raises: FileNotFoundError without busybox, KeyError on an architecture that is not listed here.
    """
    layer = _tar({"bin/busybox": BUSYBOX.read_bytes()}, mode=0o755)
    config = {
        "architecture": _ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": ["/bin/busybox", "sleep", "infinity"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [REFERENCE], "Layers": ["layer.tar"]}]
    members = {
        "layer.tar": layer,
        "config.json": json.dumps(config).encode(),
        "manifest.json": json.dumps(manifest).encode(),
    }
    return _tar(members, mode=0o644)


def _tar(members: dict[str, bytes], *, mode: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
