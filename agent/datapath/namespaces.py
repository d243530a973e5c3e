"""The container's network namespace: opened once, entered by a thread, always left again.

A namespace is per thread (network_namespaces(7), setns(2)), and so is /proc/sys/net: while a thread is inside, it sees
and writes the container's. Nothing here may run on the event loop's thread.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from agent.datapath.netlink import NetlinkSocket
from agent.errors import Cause, InvalidRequest, KernelFailed

_CLONE_NEWNET: Final = 0x40000000
_NS_GET_NSTYPE: Final = 0xB703
"""ioctl_ns(2); include/uapi/linux/nsfs.h."""

_OWN_NETNS: Final = "/proc/thread-self/ns/net"

_libc: Final = ctypes.CDLL(None, use_errno=True)


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of the network namespace at `path`; while it is open, the namespace cannot go away.

    The path comes from outside: it is looked at (O_PATH) before it is opened, because opening a FIFO blocks and
    opening a device may do something. All namespaces live in one nsfs, so the device number of our own tells a
    namespace from a file.

    Raises: InvalidRequest(netns_invalid) when there is no such file, it is not a network namespace, or it is the
    agent's own.
    """
    if not path.startswith("/"):
        raise _invalid(path, "it is not an absolute path")
    try:
        looked_at = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError) as exc:
        raise _invalid(path, getattr(exc, "strerror", None) or str(exc)) from exc
    try:
        seen, own = os.fstat(looked_at), Path(_OWN_NETNS).stat()
        if not stat.S_ISREG(seen.st_mode) or seen.st_dev != own.st_dev:
            raise _invalid(path, "it is not a namespace")
        if seen.st_ino == own.st_ino:
            raise _invalid(path, "it is the node's own network namespace")
        netns_fd = os.open(f"/proc/self/fd/{looked_at}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(looked_at)
    try:
        if fcntl.ioctl(netns_fd, _NS_GET_NSTYPE) != _CLONE_NEWNET:
            raise _invalid(path, "it is a namespace of another kind")
        yield netns_fd
    finally:
        os.close(netns_fd)


@contextmanager
def inside(netns_fd: int) -> Iterator[None]:
    """Put the calling thread into the namespace; put it back at the end.

    A thread that cannot come back would write one pod's routes into another pod: it ends the whole process instead.

    Raises: KernelFailed when the namespace cannot be entered.
    """
    home_fd = os.open(_OWN_NETNS, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            _setns(netns_fd)
        except OSError as exc:
            raise KernelFailed(
                Cause.KERNEL_REFUSED,
                f"entering the container's network namespace failed: {exc.strerror}",
                remedy="the agent needs CAP_SYS_ADMIN",
            ) from exc
        try:
            yield
        finally:
            _return_or_die(home_fd)
    finally:
        os.close(home_fd)


def open_route_socket(netns_fd: int) -> NetlinkSocket:
    """A netlink socket inside the namespace; it stays there, whatever thread uses it. The caller closes it."""
    with inside(netns_fd):
        return NetlinkSocket()


def _setns(fd: int) -> None:
    # os.setns exists from Python 3.12 on.
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _return_or_die(home_fd: int) -> None:
    try:
        _setns(home_fd)
    except OSError as exc:
        os.write(2, f"enoki: a thread cannot return to the node's network namespace ({exc}); aborting\n".encode())
        os.abort()


def _invalid(path: str, why: str) -> InvalidRequest:
    return InvalidRequest(
        Cause.NETNS_INVALID,
        f"{path!r} cannot be used as the container's network namespace: {why}",
        evidence={"netns": path},
        remedy="CNI_NETNS must be the absolute path of an existing network namespace other than the node's",
    )
