"""The threads in which the datapath blocks.

Four for netlink (the kernel's own rtnl lock lets one of them through at a time; the others prepare), one for
libnftables, which is not thread-safe. A netlink socket belongs to one thread at a time and is thrown away after a
failure that may have left an answer under way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Concatenate, Final, ParamSpec, TypeVar

from agent.datapath.netlink import NetlinkSocket, refusals_named
from agent.errors import Cause, KernelFailed

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

_NETLINK_THREAD_COUNT: Final = 4

DEADLINE_S: Final = 10.0
"""For one piece of blocking work. Everything here takes milliseconds; seconds mean that the kernel's rtnl lock is
held by something else, and a container runtime gives an ADD minutes."""

_FIREWALL_DEADLINE_S: Final = 30.0
"""libnftables may read tens of thousands of foreign rules first."""

_LATE_S: Final = 0.5
"""Between a thread's own deadline and the moment its caller stops waiting: what finished in time is still reported."""


class KernelThreads:
    """One event loop asks; `close` waits for what is under way."""

    def __init__(self) -> None:
        self._sockets: deque[NetlinkSocket] = deque()
        self._netlink = ThreadPoolExecutor(_NETLINK_THREAD_COUNT, thread_name_prefix="enoki-netlink")
        self._firewall = ThreadPoolExecutor(1, thread_name_prefix="enoki-nftables")

    def close(self) -> None:
        """Wait for the threads, close the sockets."""
        self._netlink.shutdown()
        self._firewall.shutdown()
        while self._sockets:
            self._sockets.pop().close()

    async def netlink(
        self, what: str, function: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> _Result:
        """Run `function` in a netlink thread. Raises: KernelFailed."""
        return await self._run(self._netlink, what, DEADLINE_S, partial(function, *args, **kwargs))

    async def with_route(
        self,
        what: str,
        function: Callable[Concatenate[NetlinkSocket, _Parameters], _Result],
        *args: _Parameters.args,
        **kwargs: _Parameters.kwargs,
    ) -> _Result:
        """Run `function` in a netlink thread, with a routing socket of the node's namespace. Raises: KernelFailed."""

        def borrow() -> _Result:
            try:
                route = self._sockets.pop()
            except IndexError:
                route = NetlinkSocket()
            try:
                result = function(route, *args, **kwargs)
            except BaseException:
                route.close()
                raise
            self._sockets.append(route)
            return result

        return await self._run(self._netlink, what, DEADLINE_S, borrow)

    async def nftables(
        self, what: str, function: Callable[_Parameters, _Result], *args: _Parameters.args, **kwargs: _Parameters.kwargs
    ) -> _Result:
        """Run `function` in the thread of libnftables. Raises: KernelFailed."""
        work = partial(function, *args, **kwargs)
        return await self._run(self._firewall, what, _FIREWALL_DEADLINE_S, work)

    async def _run(self, threads: Executor, what: str, deadline_s: float, work: Callable[[], _Result]) -> _Result:
        """The result of `work`. It runs to its end, whether or not anybody still waits for it.

        Raises: KernelFailed.
        """

        def named() -> _Result:
            with refusals_named(what):
                return work()

        future = asyncio.wrap_future(threads.submit(named))
        future.add_done_callback(_look_at)
        done, _ = await asyncio.wait({future}, timeout=deadline_s + _LATE_S)
        if not done:
            raise KernelFailed(
                Cause.KERNEL_REFUSED,
                f"{what}: no end after {deadline_s:g} s",
                evidence={"deadline_s": deadline_s},
                remedy="see what holds the kernel's rtnl lock: cat /proc/*/stack, dmesg",
            )
        return future.result()


def _look_at(future: asyncio.Future[_Result]) -> None:
    # A failure that nobody waited for is not a warning of the event loop.
    if not future.cancelled():
        future.exception()
