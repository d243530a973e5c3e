"""The rate at which one core forwards, when another core sends more than it can take.

The sender of `datapath_forwarding.py` stays on one core; receive packet steering of the pod's host veth (RPS,
Documentation/networking/scaling.rst) hands its packets to another, which does the node's forwarding and the drop at the
far end and nothing else. What the sender costs is in no figure. The sender's socket
buffer holds some 250 packets and lets it go on at half of them, so that the core that forwards always has a queue, and
packets that arrive per second are what forwarding can do.

A slice is 5 ms of sending that fill the queue and 20 ms that count. Slices alternate between the layouts. What disturbs
a slice only takes from its rate: a layout's figure is the 90th percentile of its slices, with the median beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.datapath_nodes import Netns

_FILL_S: Final = 0.005
_COUNT_S: Final = 0.020
SLICES: Final = 100
WARM_UP_SLICES: Final = 5
_RPS: Final = "mount -t sysfs none /sys && echo $1 > /sys/class/net/$0/queues/rx-0/rps_cpus"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Packets per second of the forwarding core."""

    pods: int
    per_s: float
    median_per_s: float


def steer(netns: Netns, ifname: str, core: int | None) -> None:
    """Let what comes in by this link be worked on by one core; None: by whichever brought it."""
    mask = 0 if core is None else 1 << core
    netns.run("unshare", "--mount", "sh", "-ec", _RPS, ifname, f"{mask:x}")


class Arrivals:
    """Packets that have reached a link, as /proc/net/dev of its namespace counts them."""

    def __init__(self, netns: Netns, ifname: str) -> None:
        with netns.entered():
            self._file = Path("/proc/thread-self/net/dev").open()  # noqa: SIM115 - read again and again
        self._ifname = f"{ifname}:"

    def count(self) -> int:
        self._file.seek(0)
        line = next(line for line in self._file if line.strip().startswith(self._ifname))
        return int(line.split(":")[1].split()[1])

    def close(self) -> None:
        self._file.close()


class Flood:
    """One layout's sender and what arrives of it. batch: sends some packets, and says how many."""

    def __init__(self, arrivals: Arrivals, batch: Callable[[], int]) -> None:
        self._arrivals = arrivals
        self._batch = batch

    def slice(self) -> float:
        """Packets per second."""
        self._send_for(_FILL_S)
        had, started_s = self._arrivals.count(), time.perf_counter()
        self._send_for(_COUNT_S)
        arrived, elapsed_s = self._arrivals.count() - had, time.perf_counter() - started_s
        return arrived / elapsed_s

    def _send_for(self, duration_s: float) -> None:
        until_s = time.perf_counter() + duration_s
        while time.perf_counter() < until_s:
            self._batch()


def rates(floods: Sequence[Flood], pods: int) -> list[Rate]:
    """Each layout's rate, in turn, from the core this thread is pinned to."""
    slices: list[list[float]] = [[] for _ in floods]
    for number in range(WARM_UP_SLICES + SLICES):
        for flood, taken in zip(floods, slices, strict=True):
            measured = flood.slice()
            if number >= WARM_UP_SLICES:
                taken.append(measured)
    return [_rate(taken, pods) for taken in slices]


def _rate(taken: Sequence[float], pods: int) -> Rate:
    return Rate(
        pods=pods,
        per_s=statistics.quantiles(taken, n=10)[8],
        median_per_s=statistics.median(taken),
    )
