"""Named network namespaces: make them, look into them, remove them.

A namespace is named as `ip netns` names it (a bind mount in /run/netns), so `ip netns exec NAME ...` works on each.
Everything here blocks for a few milliseconds; programs that are started have a deadline.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

NETNS_DIRECTORY = Path("/run/netns")
COMMAND_DEADLINE_S = 10.0
_CLONE_NEWNET = 0x40000000  # linux/sched.h


class CommandFailed(Exception):
    """`ip` or `nft` said no: the command, what was fed to it and what it answered."""


def names() -> frozenset[str]:
    """Every named network namespace of this machine."""
    return frozenset(p.name for p in NETNS_DIRECTORY.iterdir()) if NETNS_DIRECTORY.is_dir() else frozenset()


def create(name: str) -> None:
    """Make an empty namespace whose loopback is up.

    Raises: CommandFailed when the name is taken, or without root.
    """
    run(("ip", "netns", "add", name))
    ip_batch(name, ("link set lo up",))


def delete(name: str) -> None:
    """Remove a namespace. Its links go with it once no process is left inside. Gone already is success."""
    if name in names():
        run(("ip", "netns", "delete", name))


def run_inside(name: str, function: Callable[[], T]) -> T:
    """Call `function` in a short-lived thread whose network namespace is `name`; return what it returns.

    A socket made by `function` stays in that namespace when the calling thread uses it. /proc/sys/net shows the
    namespace of the thread that opens it.

    Raises: OSError when the namespace does not exist or may not be entered; whatever `function` raises.
    """

    def enter_and_call() -> T:
        descriptor = os.open(NETNS_DIRECTORY / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # os.setns came with Python 3.12.
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(descriptor, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"cannot enter network namespace {name}")
        finally:
            os.close(descriptor)
        return function()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(enter_and_call).result()


def set_sysctls(name: str, values: Mapping[str, int]) -> None:
    """Write keys below /proc/sys/net (`ipv4/ip_forward`) in a namespace, in the order given."""

    def write() -> None:
        for key, value in values.items():
            (Path("/proc/sys/net") / key).write_text(str(value), encoding="ascii")

    run_inside(name, write)


def listen_tcp(name: str, address: IPv4Address, port: int) -> socket.socket:
    """A non-blocking listening TCP socket inside a namespace. Port 0 lets the kernel choose."""
    return run_inside(name, lambda: tcp_listener(address, port))


def tcp_listener(address: IPv4Address, port: int) -> socket.socket:
    """A non-blocking listening TCP socket in the namespace of the calling thread."""
    # Named, because asyncio switches Nagle's delay off only on sockets that say they are TCP: 40 ms per answer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # A simulator that starts over must not wait for the TIME_WAIT of the one before.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(address), port))
        listener.listen(512)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def bind_udp(name: str, address: IPv4Address, port: int) -> socket.socket:
    """A non-blocking bound UDP socket inside a namespace."""

    def make() -> socket.socket:
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.setblocking(False)
        bound.bind((str(address), port))
        return bound

    return run_inside(name, make)


def ip_batch(name: str, commands: Sequence[str], *, force: bool = False) -> None:
    """Run `ip` commands in a namespace, in order, by one process; the first failure ends it.

    force: go on after failures and forget them, for removals: what is gone already is no failure.

    Raises: CommandFailed unless `force`.
    """
    if not commands:
        return
    arguments = ("ip", "-n", name, *(("-force",) if force else ()), "-batch", "-")
    run(arguments, feed="\n".join(commands) + "\n", check=not force)


def nft(name: str, script: str) -> None:
    """Apply an nftables script in a namespace as one transaction.

    Raises: CommandFailed; nothing of the script has been applied then.
    """
    if script:
        run((*_inside(name), "nft", "-f", "-"), feed=script)


def nft_json(name: str, command: str) -> str:
    """The JSON answer of an `nft list ...` command in a namespace.

    Raises: CommandFailed.
    """
    return run((*_inside(name), "nft", "-j", *command.split()))


def _inside(name: str) -> tuple[str, ...]:
    # Not `ip netns exec`: that also makes a mount namespace and remounts /sys, which takes longer than nft itself.
    return ("nsenter", f"--net={NETNS_DIRECTORY / name}")


def run(arguments: Sequence[str], *, feed: str = "", check: bool = True) -> str:
    """Run a program to its end and return what it printed.

    Raises: CommandFailed when it fails (and `check`) or outlives its deadline.
    """
    try:
        done = subprocess.run(
            arguments, input=feed, capture_output=True, text=True, timeout=COMMAND_DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired as exc:
        raise CommandFailed(f"{' '.join(arguments)}: no end after {COMMAND_DEADLINE_S} s") from exc
    if check and done.returncode != 0:
        raise CommandFailed(f"{' '.join(arguments)}: {done.stderr.strip()}\n{feed}".rstrip())
    return done.stdout
