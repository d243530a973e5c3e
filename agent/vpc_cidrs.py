"""The VPC's CIDRs, which may change while the node runs: read from IMDS, written where they differ.

What is outside the VPC leaves as the node, so a CIDR that is added matters to a pod's new connection into it, and to
nothing else. Such a connection counts as leaving the VPC until the CIDR is known, and the kernel counts those. So IMDS
is read every 20 s on a node whose pods open connections out of the VPC, and rarely where none does
(docs/decisions/0017).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Network

from agent.runtime.log import event_logger

log = event_logger(__name__)

LOOK_EVERY_S = 5.0
"""How often the kernel's count is read: a fraction of a millisecond."""
READ_BUSY_S = 20.0
"""From one read of IMDS to the next while connections leave the VPC: with a look, and the change of the table, a CIDR
is in force within half a minute."""
READ_IDLE_S = 90.0
"""From one read of IMDS to the next while none does: 40 in an hour."""


class VpcCidrs:
    """read: the CIDRs now. write: replace them in the kernel. count_leaving: connections that have left the VPC; any
    other number than the last one means new ones. known: what the kernel has. clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        read: Callable[[], Awaitable[tuple[IPv4Network, ...]]],
        write: Callable[[Sequence[IPv4Network]], Awaitable[None]],
        count_leaving: Callable[[], Awaitable[int]],
        known: Sequence[IPv4Network],
        clock: Callable[[], float],
    ) -> None:
        self._read = read
        self._write = write
        self._count_leaving = count_leaving
        self._known = frozenset(known)
        self._clock = clock
        self._read_s = clock()
        self._leaving_count = 0

    async def step(self) -> float:
        """One turn of a loop; when to look again.

        Raises: CloudFailed, KernelFailed; the same difference is found again then.
        """
        leaving_count = await self._count_leaving()
        every_s = READ_IDLE_S if leaving_count == self._leaving_count else READ_BUSY_S
        if self._clock() - self._read_s >= every_s:
            began_s = self._clock()
            cidrs = await self._read()
            if frozenset(cidrs) != self._known:
                await self._write(cidrs)
                log.info("vpc_cidrs_changed", cidrs=[str(cidr) for cidr in cidrs])
                self._known = frozenset(cidrs)
            self._read_s, self._leaving_count = began_s, leaving_count
        return LOOK_EVERY_S
