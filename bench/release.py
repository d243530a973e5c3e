"""Time what a release spends on forgetting the connections of its address, beside many connections of others.

    make bench-release          or: .venv/bin/python -m bench.release [foreign connections]...

Writes the section of docs/performance.md when no counts are given.

The peer in the same run is `conntrack -D`, twice, as a plugin without netlink code of its own would do it. Needs root
and Debian's conntrack; everything happens in a namespace of its own. Entries of UDP live 30 s, and most kernels hold
65,536 of them per namespace: more foreign connections than that cannot be had here.
"""

from __future__ import annotations

import ctypes
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

from agent.datapath import conntrack
from bench.report import write_section

_POD = IPv4Address("10.9.9.1")
_PEER = "10.9.9.2"
_ROUNDS = 15
_CONNECTIONS = 20
_CLONE_NEWNET = 0x40000000


def _run(*argv: str) -> None:
    subprocess.run(argv, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60)


def _open_connections(pod: socket.socket) -> None:
    for port in range(2000, 2000 + _CONNECTIONS):
        pod.sendto(b"x", (_PEER, port))


def _add_foreign(count: int) -> None:
    made = 0
    while made < count:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for port in range(1024, min(61024, 1024 + count - made)):
                sender.sendto(b"", (f"127.0.1.{1 + made // 60000}", port))
        made += 60000


def _entry_count() -> int:
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def _by_command() -> None:
    _run("conntrack", "-D", "-s", str(_POD))
    _run("conntrack", "-D", "-r", str(_POD))


def _median_ms(pod: socket.socket, forget: Callable[[], None]) -> float:
    times = []
    for _ in range(_ROUNDS):
        _open_connections(pod)
        before = _entry_count()
        started_s = time.perf_counter()
        forget()
        times.append((time.perf_counter() - started_s) * 1000)
        assert before - _entry_count() >= _CONNECTIONS
    return statistics.median(times)


def main() -> None:
    counts = [int(argument) for argument in sys.argv[1:]] or [0, 10_000, 50_000]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    _run("ip", "link", "set", "lo", "up")
    for address in (str(_POD), _PEER):
        _run("ip", "addr", "add", f"{address}/32", "dev", "lo")
    _run(
        "nft", "add table ip t; add chain ip t c { type filter hook output priority 0; }; add rule ip t c ct state new"
    )
    foreign = 0
    lines = ["| foreign connections | ours, ms | `conntrack -D`, ms | |", "|---|---|---|---|"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as pod:
        pod.bind((str(_POD), 5555))
        for count in counts:
            _add_foreign(count - foreign)
            foreign = count
            ours_ms = _median_ms(pod, lambda: conntrack.forget(conntrack.of_pod(_POD)))
            command_ms = _median_ms(pod, _by_command)
            lines.append(f"| {count:,} | {ours_ms:.2f} | {command_ms:.0f} | {ours_ms / command_ms:.3f}x |")
    text = "\n".join(lines)
    print(text)
    if not sys.argv[1:]:
        write_section("release", text)


if __name__ == "__main__":
    main()
