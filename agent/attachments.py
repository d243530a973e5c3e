"""The ADD / DEL / CHECK / GC transaction: reserve, wire, commit, or undo.

One ADD, in order: register (so that a DEL can overtake it), lock, take an address from the pool or wait for one, wire,
commit. Until it has an address it can be interrupted, by a DEL of the same attachment or because its client left, and
leaves nothing behind. From then on it runs to its end in a task of its own.

The lock is per pod interface and not per container: a pod that is re-created under its name (StatefulSet) has the same
host veth as its predecessor, so both must not be worked on at once.

What happens when the agent dies between two steps is decided by the kernel alone: the pod's route is the last thing
ADD makes and the first thing DEL takes away, so an attachment exists exactly if its route does (`ipam/recovery.py`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from agent.errors import AgentError, Cause, Conflict, InvalidRequest, TryAgain
from agent.ipam.ledger import Ledger
from agent.ipam.model import Address, Attachment, AttachmentKey, Holder
from agent.ipam.pool import Pool
from agent.ports.datapath import Datapath, PodWiring, PortMapping, Shaping, Wired
from agent.runtime.keyed_lock import KeyedLock
from agent.runtime.log import bind_request, event_logger
from agent.runtime.transactions import Transactions

log = event_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentPolicy:
    """What the transaction needs of the settings.

    cooldown_s: how long a released address rests.
    mtu: of pods' links, in bytes.
    """

    cooldown_s: float
    mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    """What ADD asks. mtu: None for the node's. port_mappings, ingress, egress: see `PodWiring`."""

    holder: Holder
    netns: str
    request_id: str
    mtu: int | None = None
    port_mappings: tuple[PortMapping, ...] = ()
    ingress: Shaping | None = None
    egress: Shaping | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """What ADD made."""

    addresses: tuple[Address, ...]
    wired: Wired
    mtu: int


class Step(StrEnum):
    """Where an ADD is, in order."""

    LOCK = "lock"
    """It waits for other work on the same pod interface."""
    ADDRESS = "address"
    """It takes an address, or waits for one."""
    WIRE = "wire"
    """The kernel makes the pod's links and routes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """An ADD that has not been answered yet. since_s: when it entered `step`. began_s: when it came."""

    holder: Holder
    request_id: str
    step: Step
    since_s: float
    began_s: float


TimeSpent = Callable[[Step, float], None]
"""Told the seconds that one step of an ADD took."""


@dataclass(slots=True, kw_only=True)
class _Adding:
    """An ADD on its way. interruptible: it holds no address yet."""

    holder: Holder
    request_id: str
    step: Step = Step.LOCK
    since_s: float
    began_s: float
    interruptible: bool = True


class Attachments:
    """Attachments of this node. `ledger` is the pool's: who holds what is said in one place."""

    def __init__(
        self,
        *,
        pool: Pool,
        ledger: Ledger,
        datapath: Datapath,
        policy: AttachmentPolicy,
        clock: Callable[[], float],
        spent: TimeSpent = lambda _step, _s: None,
    ) -> None:
        """spent: for measurements."""
        self._spent = spent
        self._pool = pool
        self._ledger = ledger
        self._datapath = datapath
        self._policy = policy
        self._clock = clock
        self._locks: KeyedLock[str] = KeyedLock()
        self._transactions = Transactions()
        self._adding: dict[asyncio.Task[Attached], _Adding] = {}
        self._committed_at_s: dict[AttachmentKey, float] = {}
        self._stopping = False

    async def add(self, request: AttachRequest, *, deadline_s: float) -> Attached:
        """Attach, or answer again when it is attached already.

        deadline_s: how long to wait for an address, in seconds from now.

        Raises: TryAgain (no address in time, or the agent stops), Conflict (a DEL overtook it), InvalidRequest (netns),
        KernelFailed.
        Cancel: a waiter is forgotten; an ADD that has its address runs to its end.
        """
        if self._stopping:
            raise stopping()
        now_s = self._clock()
        adding = _Adding(holder=request.holder, request_id=request.request_id, since_s=now_s, began_s=now_s)
        task = self._transactions.begin(self._add(request, adding, deadline_s), name=f"ADD {request.holder.key}")
        self._adding[task] = adding
        task.add_done_callback(self._adding.pop)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if me is not None and me.cancelling():
                self._interrupt(task)
                raise
            if self._stopping:
                raise stopping() from None
            raise Conflict(
                Cause.ATTACHMENT_SUPERSEDED, f"a DEL of {request.holder.key} overtook this ADD; nothing was attached"
            ) from None

    async def delete(self, key: AttachmentKey) -> None:
        """Detach; success when it is not attached. An ADD of the same attachment that still waits is interrupted.

        Raises: KernelFailed; asking again is right then.
        Cancel: runs to its end.
        """
        held = self._ledger.attachment(key)
        holder = held.holder if held else None
        for task, adding in list(self._adding.items()):
            if adding.holder.key == key:
                holder = adding.holder
                self._interrupt(task)
        if holder is not None:
            await asyncio.shield(self._transactions.begin(self._delete(holder), name=f"DEL {key}"))

    async def check(self, request: AttachRequest) -> None:
        """Compare the kernel with what ADD made.

        Raises: InvalidRequest: attachment_missing, or attachment_drifted naming the first difference.
        """
        held = self._ledger.attachment(request.holder.key)
        if held is None:
            raise InvalidRequest(
                Cause.ATTACHMENT_MISSING,
                f"{request.holder.key} is not attached on this node",
                remedy="let the runtime delete the sandbox and make it again",
            )
        table_id = self._ledger.table_id(held.eni_id) if held.eni_id else None
        if table_id is None:
            raise InvalidRequest(
                Cause.ATTACHMENT_DRIFTED,
                f"{held.addresses[0]} of {request.holder.key} is on no ENI of this node that is set up",
                evidence={"address": str(held.addresses[0]), "eni": held.eni_id or ""},
            )
        async with self._locks.hold(_pod_interface(held.holder)):
            await self._datapath.check(self._wiring(request, held.addresses, table_id))

    async def keep_only(self, valid: frozenset[AttachmentKey]) -> None:
        """GC: detach whatever is not in `valid` and was attached before the call; best effort.

        Raises: the first failure, after all have been tried.
        """
        stale = [held.holder.key for held in self._ledger.attachments() if held.holder.key not in valid]
        failures = []
        for key in stale:
            if any(adding.holder.key == key for adding in self._adding.values()):
                continue  # younger than the runtime's list
            log.info("attachment_garbage", container_id=key.container_id, ifname=key.ifname)
            try:
                await self.delete(key)
            except AgentError as exc:
                failures.append(exc)
        if failures:
            raise failures[0]

    async def release_vanished(self) -> float:
        """One turn of a loop: free the addresses whose links went away without a DEL. Returns when to look again."""
        began_s = self._clock()
        seen = await self._datapath.observe()
        present = {attachment.holder.key for attachment in seen.attachments if attachment.addresses}
        busy = {adding.holder.key for adding in self._adding.values()}
        for held in self._ledger.attachments():
            key = held.holder.key
            # Younger than the look at the kernel: it could not have been seen.
            if key in present or key in busy or self._committed_at_s.get(key, -math.inf) >= began_s:
                continue
            log.warning("attachment_vanished", container_id=key.container_id, pod=held.holder.pod)
            await self._transactions.begin(self._delete(held.holder), name=f"vanished {key}")
        return math.inf

    def under_way(self) -> tuple[UnderWay, ...]:
        """The ADDs that have not been answered yet, oldest first."""
        return tuple(
            UnderWay(
                holder=adding.holder,
                request_id=adding.request_id,
                step=adding.step,
                since_s=adding.since_s,
                began_s=adding.began_s,
            )
            for adding in self._adding.values()
        )

    def turn_away(self) -> None:
        """The agent stops: an ADD that still waits fails at once, and so does every later one. DEL goes on."""
        self._stopping = True
        for task in list(self._adding):
            self._interrupt(task)

    async def drain(self, timeout_s: float) -> None:
        """Let transactions in flight end. After `turn_away`."""
        left = await self._transactions.drain(timeout_s)
        if left:
            log.warning("transactions_cut", count=left)

    def _enter(self, adding: _Adding, step: Step) -> None:
        now_s = self._clock()
        self._spent(adding.step, now_s - adding.since_s)
        adding.step, adding.since_s = step, now_s

    def _interrupt(self, task: asyncio.Task[Attached]) -> None:
        adding = self._adding.get(task)
        if adding is not None and adding.interruptible:
            task.cancel()

    async def _add(self, request: AttachRequest, adding: _Adding, deadline_s: float) -> Attached:
        holder = request.holder
        with bind_request(request.request_id):
            async with self._locks.hold(_pod_interface(holder)):
                self._enter(adding, Step.ADDRESS)
                known = self._ledger.attachment(holder.key) is not None
                reserved = await self._pool.reserve(holder, deadline_s=deadline_s, request_id=request.request_id)
                adding.interruptible = False
                self._enter(adding, Step.WIRE)
                wiring = self._wiring(request, reserved.addresses, reserved.table_id)
                try:
                    await self._replace_predecessor(holder)
                    wired = await self._datapath.wire(wiring)
                except BaseException:
                    if not known:
                        self._pool.release(holder.key, cooldown_s=0.0)  # never seen by anybody: no cooldown
                    raise
                self._committed_at_s[holder.key] = self._clock()
                self._spent(Step.WIRE, self._committed_at_s[holder.key] - adding.since_s)
                log.info("attached", pod=str(holder), addresses=[str(a) for a in reserved.addresses])
                return Attached(addresses=reserved.addresses, wired=wired, mtu=wiring.mtu)

    async def _replace_predecessor(self, holder: Holder) -> None:
        """Give up the attachment that an older sandbox of the same pod still has: the newer ADD wins."""
        if not holder.pod:
            return
        for older in self._ledger.of_pod(holder.namespace, holder.pod, holder.key.ifname):
            if older.holder.key != holder.key:
                log.info("attachment_superseded", pod=str(holder), older=str(older.holder.key))
                await self._detach(older)

    async def _delete(self, holder: Holder) -> None:
        async with self._locks.hold(_pod_interface(holder)):
            held = self._ledger.attachment(holder.key)
            if held is not None:
                await self._detach(held)
                log.info("detached", pod=str(holder), addresses=[str(a) for a in held.addresses])

    async def _detach(self, held: Attachment) -> None:
        """Kernel first: as long as the pod's route stands, nobody else may get the address."""
        await self._datapath.unwire(held.holder.key, held.addresses, self._policy.cooldown_s)
        self._pool.release(held.holder.key, cooldown_s=self._policy.cooldown_s)
        self._committed_at_s.pop(held.holder.key, None)

    def _wiring(self, request: AttachRequest, addresses: tuple[Address, ...], table_id: int) -> PodWiring:
        return PodWiring(
            holder=request.holder,
            netns=request.netns,
            addresses=addresses,
            table_id=table_id,
            mtu=request.mtu or self._policy.mtu,
            port_mappings=request.port_mappings,
            ingress=request.ingress,
            egress=request.egress,
        )


def stopping() -> TryAgain:
    """What an ADD is told that would make the agent's end wait."""
    return TryAgain(Cause.AGENT_STOPPING, "the agent is stopping; its successor takes over", retry_after_s=1.0)


def _pod_interface(holder: Holder) -> str:
    """What a lock protects: the host veth's name depends on nothing else."""
    return f"{holder.namespace}/{holder.pod}/{holder.key.ifname}" if holder.pod else str(holder.key)
