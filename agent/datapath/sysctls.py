"""Kernel settings of links and of the node: /proc/sys/net of the namespace the calling thread is in.

A write takes about 15 us and does not wait for anything, so there is no deadline to keep.
"""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = "/proc/sys/net"


def use(directory: Path) -> None:
    """Read and write below `directory` from now on.

    Any mount of procfs will do: what is seen there depends on the network namespace of the thread that looks, not on
    where it is mounted (net/sysctl_net.c, `is_seen`).
    """
    global _ROOT  # noqa: PLW0603  # one node, one kernel: set once, when the datapath is made
    _ROOT = str(directory)


def set_link_ipv4(ifname: str, key: str, value: int) -> None:
    """Raises: OSError when the link is gone, or /proc/sys is read-only."""
    _write(f"{_ROOT}/ipv4/conf/{ifname}/{key}", value)


def set_link_ipv6(ifname: str, key: str, value: int) -> None:
    """As `set_link_ipv4`; a kernel without IPv6 has no such file, and that is fine."""
    try:
        _write(f"{_ROOT}/ipv6/conf/{ifname}/{key}", value)
    except FileNotFoundError:
        return


def link_setting(family: str, ifname: str, key: str) -> int | None:
    """The value of "ipv4" or "ipv6"; None when the link is gone, or the kernel lacks the family."""
    return _read(f"{_ROOT}/{family}/conf/{ifname}/{key}")


def set_link_setting(family: str, ifname: str, key: str, value: int) -> None:
    """Raises: OSError when the link is gone, or /proc/sys is read-only."""
    _write(f"{_ROOT}/{family}/conf/{ifname}/{key}", value)


def link_ipv4(ifname: str, key: str) -> int | None:
    """The value; None when the link is gone."""
    return _read(f"{_ROOT}/ipv4/conf/{ifname}/{key}")


def link_ipv6(ifname: str, key: str) -> int | None:
    """The value; None when the link is gone, or the kernel has no IPv6."""
    return _read(f"{_ROOT}/ipv6/conf/{ifname}/{key}")


def forwarding() -> bool:
    """net.ipv4.ip_forward."""
    return _read(f"{_ROOT}/ipv4/ip_forward") == 1


def enable_forwarding() -> None:
    """net.ipv4.ip_forward = 1, written only when it is not: a write resets every link's host/router defaults."""
    if not forwarding():
        _write(f"{_ROOT}/ipv4/ip_forward", 1)


def has_ipv6() -> bool:
    return Path(f"{_ROOT}/ipv6").exists()


def _read(path: str) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return int(os.read(fd, 32))
    finally:
        os.close(fd)


def _write(path: str, value: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)
