"""`enokictl support-bundle`: everything somebody else needs to help, in one archive, with secrets left out.

What the API says, and, run on the node, what `ip`, `nft`, `iptables-save`, `dmesg` and the journal say. What cannot be
had is a file that says why.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ctl.client import Client, Refused, Unreachable

ANSWERS: dict[str, tuple[tuple[str, ...], dict[str, str | int]]] = {
    "startup": (("v1", "startup"), {}),
    "health": (("v1", "health"), {}),
    "config": (("v1", "config"), {}),
    "pool": (("v1", "pool"), {}),
    "plan": (("v1", "pool", "plan"), {}),
    "enis": (("v1", "enis"), {}),
    "allocations": (("v1", "allocations"), {}),
    "explain-node": (("v1", "explain", "node"), {}),
    "budget": (("v1", "budget"), {}),
    "doctor": (("v1", "doctor"), {}),
    "logs": (("v1", "logs"), {"limit": 2000}),
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "uname": ("uname", "-a"),
    "ip-link": ("ip", "-d", "-s", "link"),
    "ip-address": ("ip", "address"),
    "ip-rule": ("ip", "rule"),
    "ip-rule-6": ("ip", "-6", "rule"),
    "ip-route": ("ip", "route", "show", "table", "all"),
    "ip-neighbour": ("ip", "neighbour"),
    "nft-table": ("nft", "list", "table", "inet", "enoki"),
    "nft-ruleset": ("nft", "--stateless", "--terse", "list", "ruleset"),
    "iptables": ("iptables-save",),
    "conntrack": ("conntrack", "-S"),
    "sysctl": ("sysctl", "-a", "--pattern", r"net\.ipv4\.(ip_forward|conf|tcp_early_demux)|nf_conntrack_(max|count)"),
    "journal": ("journalctl", "--no-pager", "-n", "2000", "-u", "kubelet", "-u", "containerd"),
    "dmesg": ("dmesg",),
}
CONFIGURATION = Path("/etc/cni/net.d")
COMMAND_S = 20.0
MOST_BYTES = 8 * 1024 * 1024
"""Of one file; the end is what counts."""

LEFT_OUT = "(left out)"
_SECRETS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?"),  # JSON web tokens
    re.compile(r"\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}\b"),
    re.compile(r"(?i)(?<=bearer )\s*[A-Za-z0-9._~+/=-]+"),
    re.compile(r"(?i)(?<=basic )\s*[A-Za-z0-9+/]{8,}={0,2}(?![\w.-])"),
    re.compile(r"(?<=://)[^/@\s\"']+@"),
    # name = value, "name": "value", --name value: whatever is called a secret
    re.compile(
        r"""(?ix) (?<![a-z0-9]) [a-z0-9_.-]* (?:secret|password|passwd|token|credential|api[_-]?key|access[_-]?key)
        [a-z0-9_.-]* \\?["']? \s*[=:\s]\s* \\?["']? (?P<value> [^\s"',;}\\]{6,})"""
    ),
)


def without_secrets(text: str) -> str:
    """Pure: the text with keys, tokens, passwords and users of URLs replaced by `(left out)`."""
    for pattern in _SECRETS:
        text = pattern.sub(_censored, text)
    return text


def _censored(found: re.Match[str]) -> str:
    if "value" not in found.re.groupindex:
        return LEFT_OUT
    start, end = found.span("value")
    offset = found.start()
    return found[0][: start - offset] + LEFT_OUT + found[0][end - offset :]


def write(client: Client, path: Path | None, *, on_node: bool, said: Callable[[str], None]) -> Path:
    """Make the archive, for its owner's eyes only; where it is. said: told what is being gathered.

    Raises: OSError when it cannot be written; FileExistsError when it is there already.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    name = f"enoki-{socket.gethostname()}-{stamp}"
    target = path or Path(f"{name}.tar.gz")
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with (
            os.fdopen(descriptor, "wb") as file,
            gzip.GzipFile(fileobj=file, mode="wb") as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            for inside, text in _files(client, on_node=on_node):
                said(inside)
                data = without_secrets(text[-MOST_BYTES:]).encode()
                entry = tarfile.TarInfo(f"{name}/{inside}")
                entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
                archive.addfile(entry, io.BytesIO(data))
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return target


def _files(client: Client, *, on_node: bool) -> Iterator[tuple[str, str]]:
    for name, (steps, query) in ANSWERS.items():
        yield f"api/{name}.json", _answer(client, steps, query)
    yield (
        "api/events.jsonl",
        _tried(lambda: "".join(f"{json.dumps(one.data)}\n" for one in client.events(after=0, follow=False))),
    )
    yield "api/metrics.txt", _tried(lambda: client.text("metrics"))
    if not on_node:
        return
    for name, argv in COMMANDS.items():
        yield f"node/{name}.txt", _run(argv)
    for path in sorted(CONFIGURATION.glob("*")) if CONFIGURATION.is_dir() else ():
        yield f"node/cni/{path.name}", _tried(lambda path=path: path.read_text(errors="replace"))  # type: ignore[misc]


def _answer(client: Client, steps: tuple[str, ...], query: dict[str, str | int]) -> str:
    return _tried(
        lambda: json.dumps(client.get(*steps, allow=(503,), timeout_s=120.0, **query), indent=2, ensure_ascii=False)
    )


def _tried(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except (Unreachable, Refused, OSError) as exc:
        return f"{exc}\n"


def _run(argv: tuple[str, ...]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=COMMAND_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return f"{' '.join(argv)}: {exc}\n"
    return done.stdout + (f"\n{' '.join(argv)}: {done.returncode}\n{done.stderr}" if done.returncode else "")


def to_stderr(inside: str) -> None:
    """One line per file."""
    sys.stderr.write(f"  {inside}\n")
