"""Model of the pool of amazon-vpc-cni-k8s v1.23.1: the baseline our own pool is measured against.

It is not a port: it replays the decision rules of that version's ipamd (pkg/ipamd/ipamd.go, pkg/ipamd/datastore and
pkg/awsutils, commit b52188387) against a virtual clock, and counts EC2 calls and IMDS reads. What it keeps of them:

- the pool is looked at every 5 s, in the same loop that grows, shrinks and waits for EC2; one step per look;
- an ADD that finds nothing fails at once, and kubelet tries again 10 to 15 s later;
- Go maps are iterated in random order, so which ENI and which address is chosen is drawn: compare over many seeds;
- an ENI costs six calls to add, and two and as many deletes as it takes to remove;
- after a refusal for want of addresses nothing new is tried for 120 s, but only if no existing ENI has room.

Counted are operations; what the SDK repeats by itself comes on top. The hourly sweep for leaked ENIs is left out: one
more DescribeNetworkInterfaces per hour.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import StrEnum

from bench.pool_aws_delays import AwsDelays
from bench.pool_aws_store import LONG_AGO_S, PREFIX_SIZE, AwsBlock, AwsEni, AwsStore

MIN_ENI_AGE_S = 60.0
REFUSED_PAUSE_S = 120.0
_IMDS_READS_PER_ENI = 9
_HALF_TICK_S = 2.501
"""Half of a look at the pool; a Go sleep overshoots a little."""

_Work = Generator[float, None, None]
"""Something that takes time: it yields the seconds until it goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsTargets:
    """The plugin's settings: WARM_ENI_TARGET, WARM_IP_TARGET, MINIMUM_IP_TARGET, WARM_PREFIX_TARGET,
    ENABLE_PREFIX_DELEGATION and AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG."""

    warm_eni: int = 1
    warm_ip: int = 0
    minimum_ip: int = 0
    warm_prefix: int = 1
    prefixes: bool = False
    custom_networking: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsCapacity:
    """What the instance type allows. slots: addresses or prefixes per ENI, beside its own address."""

    slots: int
    eni_count: int
    pod_count: int


class Refusal(StrEnum):
    """Why EC2 grants no addresses."""

    SUBNET_FULL = "InsufficientFreeAddressesInSubnet"
    THROTTLED = "RequestLimitExceeded"


class AwsNode:
    """One node. Start work with `spawn`, schedule events with `at`, and let time pass with `run`.

    card: network card the pool is of; above 0 the plugin's targets are fixed.
    """

    def __init__(
        self, capacity: AwsCapacity, targets: AwsTargets, delays: AwsDelays, *, seed: int, card: int = 0
    ) -> None:
        self.random = random.Random(seed)
        self.now_s = 0.0
        self.calls: Counter[str] = Counter()
        self.imds_read_count = 0
        self.failed_add_count = 0
        self.wait_s: dict[str, float] = {}
        self.refusal: Refusal | None = None
        self.cordoned = False
        self._capacity = capacity
        self._targets = targets
        self._delays = delays
        self._card = card
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._event_count = 0
        self._store = AwsStore(PREFIX_SIZE if targets.prefixes else 1, self.random)
        self._gone: set[str] = set()
        self._shrunk_s = self._acted_s = self._refused_s = LONG_AGO_S

    @property
    def address_count(self) -> int:
        """Addresses pods have or could have, on every ENI."""
        return self._store.address_count

    @property
    def eni_count(self) -> int:
        return len(self._store.enis)

    # ---- time

    def at(self, time_s: float, act: Callable[[], None]) -> None:
        """Have `act` called at `time_s`; what is due at the same time comes in the order of asking."""
        self._event_count += 1
        heapq.heappush(self._events, (time_s, self._event_count, act))

    def spawn(self, work: _Work) -> None:
        """Begin `work` now."""

        def go_on() -> None:
            try:
                pause_s = next(work)
            except StopIteration:
                return
            self.at(self.now_s + pause_s, go_on)

        self.at(self.now_s, go_on)

    def run(self, until_s: float) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, act = heapq.heappop(self._events)
            act()
        self.now_s = until_s

    # ---- pods

    def add_pod(self, pod: str, asked_s: float | None = None) -> None:
        """ADD; repeated by kubelet until it succeeds or the pod is gone."""
        if pod in self._gone:
            return
        since_s = self.now_s if asked_s is None else asked_s
        self.imds_read_count += 1  # the VPC's CIDRs, on every ADD
        if self._store.assign(pod, self.now_s):
            self.wait_s[pod] = self.now_s - since_s
        else:
            self.failed_add_count += 1
            self.at(self.now_s + self.random.uniform(10, 15), lambda: self.add_pod(pod, since_s))

    def delete_pod(self, pod: str) -> None:
        """DEL; also of a pod that never got an address."""
        if not self._store.unassign(pod, self.now_s):
            self._gone.add(pod)

    # ---- the daemon

    def boot(self) -> _Work:
        """A new node's start, up to serving; then the loops go on for ever."""
        self.imds_read_count += 9 + 1 + 1  # identity, the VPC's CIDRs, security groups
        yield self._enumerate(1)
        yield self._call("DescribeNetworkInterfaces")
        yield self._call("CreateTags")
        yield self._call("DescribeSubnets")
        self.have_primary()
        if not self._targets.custom_networking:
            yield self._call("ModifyNetworkInterfaceAttribute")
        if self._is_low():
            yield from self._grow()
        self.spawn(self.manage())
        self.spawn(self._read_every_30_s())
        self.spawn(self._read_every_30_s())

    def restart(self) -> _Work:
        """The calls and reads of a start with a healthy pool. The loops keep their rhythm."""
        self.imds_read_count += 9 + 1 + 1 + 2  # as at boot, and the first round of both 30 s loops
        yield self._enumerate(self.eni_count)
        yield self._call("DescribeNetworkInterfaces")
        for _ in range(self.eni_count):
            yield self._call("DescribeSubnets")
            yield self._call("ModifyNetworkInterfaceAttribute")

    def have_primary(self) -> None:
        """The first ENI of the pool is known."""
        self._store.add_eni(primary=True, now_s=self.now_s)

    def manage(self) -> _Work:
        """The pool loop."""
        while True:
            yield _HALF_TICK_S
            total, held = self.address_count, self._store.held_count
            if self._is_low():
                yield from self._grow()
            elif self._is_high() and self.now_s - self._shrunk_s > 30:
                yield from self._shrink()
                self._shrunk_s = self._acted_s = self.now_s
            if self._may_free_eni(total - held):
                yield from self._free_eni()
            yield _HALF_TICK_S
            if self.now_s - self._acted_s > 60:
                yield self._enumerate(self.eni_count)
                self._acted_s = self.now_s

    def _read_every_30_s(self) -> _Work:
        while True:
            self.imds_read_count += 1
            yield 30.0

    # ---- targets

    def _goals(self) -> tuple[int, int]:
        """(WARM_IP_TARGET, MINIMUM_IP_TARGET) as they count on this card."""
        return (1, 1) if self._card > 0 else (self._targets.warm_ip, self._targets.minimum_ip)

    def _ip_state(self) -> tuple[int, int] | None:
        """(short, over) under IP targets, in addresses or prefixes; None without such targets."""
        warm, minimum = self._goals()
        if not (warm or minimum):
            return None
        total, held = self.address_count, self._store.held_count
        free = total - held
        short = max(warm - free, 0, minimum - total)
        over = max(min(max(free - warm, 0), total - minimum), 0)
        if self._card == 0 and self._targets.prefixes:
            short = _prefixes(short) if short > 0 else 0
            count = self._store.block_count
            over = max(min(self._store.empty_block_count, count - _prefixes(held + warm)), 0)
            over = max(min(over, count - _prefixes(minimum)), 0)
        return short, over

    def _is_low(self) -> bool:
        total, held = self.address_count, self._store.held_count
        if total >= self._capacity.pod_count:
            return False
        state = self._ip_state()
        if state is not None:
            return state[0] > 0
        targets = self._targets
        unit, warm = (PREFIX_SIZE, targets.warm_prefix) if targets.prefixes else (self._eni_size, targets.warm_eni)
        free = total - held
        return free < unit * warm or (warm == 0 and free == 0)

    def _is_high(self) -> bool:
        state = self._ip_state()
        if state is not None:
            return state[1] > 0
        return self._targets.prefixes and self._store.empty_block_count > self._targets.warm_prefix

    @property
    def _eni_size(self) -> int:
        return self._capacity.slots * (PREFIX_SIZE if self._targets.prefixes else 1)

    # ---- growing

    def _wanted_count(self) -> int:
        state = self._ip_state()
        if self._targets.prefixes:
            short = state[0] if state is not None else max(self._targets.warm_prefix - self._store.empty_block_count, 0)
            return max(1, short)
        return state[0] if state is not None else self._capacity.slots

    def _grow(self) -> _Work:
        """One step: fill one ENI, or else add one."""
        if self.cordoned or self.now_s - self._refused_s <= REFUSED_PAUSE_S:
            return
        wanted = self._wanted_count()
        for eni in self._store.shuffled(self._store.enis) if wanted else ():
            room = self._capacity.slots - len(eni.blocks)
            if room <= 0 or (eni.primary and self._targets.custom_networking):
                continue
            yield self._call("AssignPrivateIpAddresses")
            if self.refusal is None:
                self._store.grant(eni, min(room, wanted))
                self._acted_s = self.now_s
                return
            yield self._call("AssignPrivateIpAddresses")  # once more, for a single address
            if self.refusal is Refusal.THROTTLED:
                return
        if self.eni_count < self._capacity.eni_count:
            yield from self._add_eni(min(wanted, self._capacity.slots))

    def _add_eni(self, count: int) -> _Work:
        if not self._targets.custom_networking:
            yield self._call("DescribeSubnets")
        yield self._call("CreateNetworkInterface")
        if self.refusal is Refusal.SUBNET_FULL:
            self._refused_s = self.now_s
            return
        yield self._call("DescribeInstances")
        yield self._call("AttachNetworkInterface")
        visible_s = self.now_s + self._delays.visible_s
        yield self._call("ModifyNetworkInterfaceAttribute")
        pause_s = 0.1
        while True:
            seen = self.now_s >= visible_s
            yield self._enumerate(self.eni_count + seen)
            if seen:
                break
            yield pause_s * (1 + self.random.random() * 0.15)
            pause_s = min(pause_s * 2, 60)
        yield self._call("DescribeSubnets")  # may the ENI's subnet be used? asked when the ENI is set up
        self._store.grant(self._store.add_eni(primary=False, now_s=self.now_s), count)
        self._acted_s = self.now_s

    # ---- shrinking

    def _shrink(self) -> _Work:
        """Give free addresses or prefixes back, cooling or not; from ENIs in random order."""
        state = self._ip_state()
        over = state[1] if state is not None else 0
        if state is None and self._targets.prefixes:
            over = max(self._store.empty_block_count - self._targets.warm_prefix, 0)
        for eni in self._store.shuffled(self._store.enis):
            if over <= 0:
                break
            free = [block for block in self._store.shuffled(eni.blocks) if not block.held_count][:over]
            if not free:
                continue
            for block in free:
                del eni.blocks[block.name]
            yield self._call("UnassignPrivateIpAddresses")
            over -= len(free)

    def _may_free_eni(self, free_count: int) -> bool:
        """free_count: as it was when this look at the pool began."""
        if self.cordoned:
            return False
        targets = self._targets
        if targets.warm_ip or targets.minimum_ip or self._card:
            return True
        enough = ((targets.warm_prefix if targets.prefixes else targets.warm_eni) + 1) * self._eni_size
        if free_count >= enough:
            return True
        return targets.prefixes and any(not eni.primary and not eni.held_count for eni in self._store.enis.values())

    def _deletable(self) -> AwsEni | None:
        for eni in self._store.shuffled(self._store.enis):
            if eni.primary or self.now_s - eni.born_s < MIN_ENI_AGE_S or eni.is_cooling(self.now_s) or eni.held_count:
                continue
            if self._suffices(
                [block for other in self._store.enis.values() if other is not eni for block in other.blocks.values()]
            ):
                return eni
        return None

    def _suffices(self, blocks: list[AwsBlock]) -> bool:
        """Whether these blocks meet the targets without any other."""
        warm, minimum = self._goals()
        targets = self._targets
        if targets.prefixes:
            warm, minimum = PREFIX_SIZE * _prefixes(warm), PREFIX_SIZE * _prefixes(minimum)
        if warm and sum(block.size - block.held_count for block in blocks) < warm:
            return False
        if minimum and sum(block.size for block in blocks) < minimum:
            return False
        empty = sum(not block.held_count for block in blocks)
        return not (targets.prefixes and targets.warm_prefix and empty < targets.warm_prefix)

    def _free_eni(self) -> _Work:
        eni = self._deletable()
        if eni is None:
            return
        del self._store.enis[eni.name]
        yield self._call("DescribeNetworkInterfaces")
        yield self._call("DetachNetworkInterface")
        gone_s = self.now_s + self._delays.detached_s
        yield 2.0
        pause_s = 0.5
        while True:
            yield self._call("DeleteNetworkInterface")
            if self.now_s >= gone_s:  # EC2 looks when the request has come through, for us and for them
                return
            yield pause_s * (1 + self.random.random() * 0.15)
            pause_s = min(pause_s * 2, 60)

    # ---- the outside world

    def _call(self, action: str) -> float:
        self.calls[action] += 1
        return self._delays.call_s[action]

    def _enumerate(self, eni_count: int) -> float:
        """Read everything IMDS says about this many ENIs."""
        reads = 1 + _IMDS_READS_PER_ENI * eni_count
        self.imds_read_count += reads
        return reads * self._delays.imds_read_s


def _prefixes(address_count: int) -> int:
    return -(-address_count // PREFIX_SIZE)
