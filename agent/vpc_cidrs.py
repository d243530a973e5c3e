"""The VPC's CIDRs, which may change while the node runs: read from IMDS, written where they differ.

What is outside the VPC leaves as the node, so a CIDR that is added must be known within half a minute.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Network

from agent.runtime.log import event_logger

log = event_logger(__name__)

EVERY_S = 20.0
"""IMDS answers from the host of the instance, so that asking three times a minute costs nobody anything."""


class VpcCidrs:
    """read: the CIDRs now. write: replace them in the kernel, in one transaction. known: what the kernel has."""

    def __init__(
        self,
        read: Callable[[], Awaitable[tuple[IPv4Network, ...]]],
        write: Callable[[Sequence[IPv4Network]], Awaitable[None]],
        known: Sequence[IPv4Network],
    ) -> None:
        self._read = read
        self._write = write
        self._known = frozenset(known)

    async def step(self) -> float:
        """One turn of a loop; when to look again.

        Raises: CloudFailed, KernelFailed; the same difference is found again then.
        """
        cidrs = await self._read()
        if frozenset(cidrs) != self._known:
            await self._write(cidrs)
            log.info("vpc_cidrs_changed", cidrs=[str(cidr) for cidr in cidrs])
            self._known = frozenset(cidrs)
        return EVERY_S
