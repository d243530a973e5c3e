"""Carries out what a plan asks for, and looks at EC2: calls and ENI set-up, each as a task of its own.

So a slow action (an ENI takes EC2 seconds to attach, and longer to detach) never keeps the pool from serving demand
that has come meanwhile. What is in flight is known to the planner. An `AgentError` opens a breaker; anything else is a
bug, kept in `bug` for the loop to raise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

from agent.errors import AgentError, Cause, CloudDenied, CloudGone, CloudThrottled
from agent.ipam.account import asked_count
from agent.ipam.breakers import Breakers
from agent.ipam.inventory import CONSISTENCY_S
from agent.ipam.ledger import Ledger
from agent.ipam.lookout import Lookout, exhausted
from agent.ipam.model import BlockKind, Eni, EniId, SubnetId
from agent.ipam.plan import Action, AssignBlocks, CreateEni, ReleaseEni, UnassignBlocks
from agent.ipam.trouble import CREATE_ENI, GROW, SHRINK, align_scope, eni_scope
from agent.ports.cloud import Cloud
from agent.ports.datapath import Datapath
from agent.runtime.log import bind_request, event_logger
from agent.runtime.purpose import purpose

log = event_logger(__name__)

ENI_LINK_TIMEOUT_S = 30.0
"""How long a new ENI's link may take to appear. A hot-plug takes a second or two."""

_PURPOSES: dict[type[Action], str] = {
    CreateEni: "grow_eni",
    AssignBlocks: "grow",
    UnassignBlocks: "trim",
    ReleaseEni: "release_eni",
}
"""What EC2 calls are counted as, by the action they are part of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _SetUpEni:
    """Configure the link of an ENI that is there."""

    eni: Eni


@dataclass(frozen=True, slots=True, kw_only=True)
class _AlignEni:
    """Give an ENI the security groups of the primary one, DeleteOnTermination, or both. groups: None leaves them."""

    eni: Eni
    groups: tuple[str, ...] | None
    delete_with_instance: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _LookAtEnis:
    """Describe the ENIs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _LookAtSubnets:
    """Describe the subnets."""


_Upkeep = _SetUpEni | _AlignEni | _LookAtEnis | _LookAtSubnets
_Job = Action | _Upkeep


class Executor:
    """Actions in flight.

    serve: called as soon as addresses became usable. ended: called when an action has ended, whatever came of it.
    """

    def __init__(
        self,
        *,
        cloud: Cloud,
        datapath: Datapath,
        ledger: Ledger,
        lookout: Lookout,
        breakers: Breakers,
        clock: Callable[[], float],
        serve: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self._cloud = cloud
        self._datapath = datapath
        self._ledger = ledger
        self._inventory = ledger.inventory
        self._lookout = lookout
        self._breakers = breakers
        self._clock = clock
        self._serve = serve
        self._notify_ended = ended
        self._jobs: dict[asyncio.Task[None], _Job] = {}
        self._aligned_s: dict[EniId, float] = {}
        self.bug: BaseException | None = None
        """What ended an action, if it was not an AgentError."""

    @property
    def in_flight(self) -> tuple[Action, ...]:
        """Actions whose result is not in the ledger yet, oldest first."""
        return tuple(job for job in self._jobs.values() if not isinstance(job, _Upkeep))

    @property
    def setting_up(self) -> frozenset[EniId]:
        """ENIs whose link is being configured."""
        return frozenset(job.eni.eni_id for job in self._jobs.values() if isinstance(job, _SetUpEni))

    def start(self, action: Action, *, request_ids: list[str]) -> None:
        """Start an action of a plan. What it takes out of use is out of use when this returns.

        request_ids: of those who wait for it, for the log.
        """
        now_s = self._clock()
        fields: dict[str, object] = {}
        match action:
            case CreateEni():
                fields = {
                    "device": action.device,
                    "subnet": action.subnet_id,
                    "kind": action.kind,
                    "count": action.count,
                }
            case AssignBlocks():
                fields = {"eni": action.eni_id, "kind": action.kind, "count": action.count}
            case UnassignBlocks():
                self._inventory.retire(action.blocks, now_s)
                fields = {"eni": action.eni_id, "blocks": [str(block) for block in action.blocks]}
            case ReleaseEni():
                self._inventory.retire_eni(action.eni_id, now_s)
                fields = {"eni": action.eni_id}
            case _:
                assert_never(action)
        # The action's task inherits the binding, so its EC2 calls are logged with those who wait for them.
        with bind_request(",".join(request_ids)), purpose(_PURPOSES[type(action)]):
            log.info("pool_action", action=type(action).__name__, reason=action.reason, **fields)
            self._begin(action, name=type(action).__name__)

    @property
    def is_looking_at_enis(self) -> bool:
        return any(isinstance(job, _LookAtEnis) for job in self._jobs.values())

    @property
    def is_looking_at_subnets(self) -> bool:
        return any(isinstance(job, _LookAtSubnets) for job in self._jobs.values())

    def look_at_enis(self) -> None:
        """Start a describe of the ENIs, unless one is under way. Nobody who waits for an address waits for it."""
        if not self.is_looking_at_enis:
            self._begin(_LookAtEnis(), name="look at ENIs")

    def look_at_subnets(self) -> None:
        """Start a describe of the subnets, unless one is under way."""
        if not self.is_looking_at_subnets:
            self._begin(_LookAtSubnets(), name="look at subnets")

    def set_up_enis(self) -> None:
        """Start to set up every ENI of ours that is not, unless it failed a moment ago."""
        for usage in self._ledger.enis():
            eni_id = usage.eni.eni_id
            if usage.ready or usage.leaving or not usage.serves_pods or eni_id in self.setting_up:
                continue
            if not self._breakers.is_open(eni_scope(eni_id)):
                self._begin(_SetUpEni(eni=usage.eni), name=f"set up {eni_id}")

    def align_enis(self, *, follow_groups: bool) -> None:
        """Start to put right what the last describe shows to differ on ENIs of ours: a write only on a difference.

        follow_groups: whether they must have the primary ENI's security groups.
        """
        enis = [usage.eni for usage in self._ledger.enis() if usage.serves_pods and not usage.leaving]
        primary = next((eni for eni in enis if eni.is_primary), None)
        busy = {job.eni.eni_id for job in self._jobs.values() if isinstance(job, _AlignEni)}
        for eni in enis:
            job = _alignment(eni, primary if follow_groups else None)
            if job is None or eni.eni_id in busy or self._breakers.is_open(align_scope(eni.eni_id)):
                continue
            # What was written a moment ago, a describe may still show as it was.
            if self._lookout.described_s - self._aligned_s.get(eni.eni_id, float("-inf")) < CONSISTENCY_S:
                continue
            with purpose("follow"):
                self._begin(job, name=f"align {eni.eni_id}")

    async def wait(self) -> None:
        """Until everything in flight now has ended."""
        if self._jobs:
            await asyncio.wait(tuple(self._jobs))

    async def close(self) -> None:
        """Cancel what is in flight and wait for its end. What EC2 did meanwhile, the next start finds."""
        for task in self._jobs:
            task.cancel()
        await self.wait()

    def _begin(self, job: _Job, name: str) -> None:
        task = asyncio.get_running_loop().create_task(self._run(job), name=name)
        self._jobs[task] = job
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._jobs.pop(task)
        if not task.cancelled() and task.exception() is not None:
            self.bug = task.exception()
        self._notify_ended()

    async def _run(self, job: _Job) -> None:
        match job:
            case CreateEni():
                await self._create(job)
            case AssignBlocks():
                await self._assign(job)
            case UnassignBlocks():
                await self._unassign(job)
            case ReleaseEni():
                await self._release_eni(job)
            case _SetUpEni():
                await self._set_up(job.eni)
            case _AlignEni():
                await self._align(job)
            case _LookAtEnis():
                await self._lookout.look_at_enis()
            case _LookAtSubnets():
                await self._lookout.look_at_subnets()
            case _:
                assert_never(job)

    # ---- growing

    async def _assign(self, action: AssignBlocks) -> None:
        subnet_id = self._eni(action.eni_id).subnet_id
        try:
            granted = await self._cloud.assign_blocks(action.eni_id, action.kind, action.count)
        except AgentError as error:
            await self._growth_failed(GROW, subnet_id, action, error)
            return
        self._inventory.granted(action.eni_id, granted, self._clock())
        self._serve()
        self._breakers.reset(GROW)
        await self._grown(subnet_id, action, len(granted))

    async def _create(self, action: CreateEni) -> None:
        primary = next(usage.eni for usage in self._ledger.enis() if usage.eni.is_primary)
        try:
            eni = await self._cloud.create_eni(
                device=action.device,
                subnet_id=action.subnet_id,
                security_groups=action.security_groups or primary.security_groups,
                kind=action.kind,
                count=action.count,
            )
        except AgentError as error:
            await self._growth_failed(CREATE_ENI, action.subnet_id, action, error)
            return
        self._inventory.add_eni(eni, self._clock())
        # From here on its addresses are in the ledger: they must not count as coming any more.
        task = asyncio.current_task()
        if task is not None:
            self._jobs[task] = _SetUpEni(eni=eni)
        self._breakers.reset(CREATE_ENI)
        await self._set_up(eni)
        await self._grown(action.subnet_id, action, len(eni.blocks))

    async def _grown(self, subnet_id: SubnetId, action: AssignBlocks | CreateEni, granted_count: int) -> None:
        if granted_count >= action.count:
            self._lookout.subnet_granted(subnet_id, action.kind)
        else:
            await self._subnet_refused(subnet_id, action, exhausted(subnet_id, granted_count))

    async def _subnet_refused(self, subnet_id: SubnetId, action: AssignBlocks | CreateEni, error: AgentError) -> None:
        if action.kind is BlockKind.IPV4_PREFIX and error.cause is Cause.SUBNET_FRAGMENTED:
            self._lookout.prefixes_refused(subnet_id, action.count, error)
        else:
            own_count = isinstance(action, CreateEni)  # an ENI's primary address
            await self._lookout.subnet_refused(subnet_id, asked_count(action) + own_count, error)

    async def _growth_failed(
        self, scope: str, subnet_id: SubnetId, action: AssignBlocks | CreateEni, error: AgentError
    ) -> None:
        if error.cause in {Cause.SUBNET_EXHAUSTED, Cause.SUBNET_FRAGMENTED}:
            await self._subnet_refused(subnet_id, action, error)
            return
        self._breakers.trip(scope, error)
        if not isinstance(error, CloudThrottled | CloudDenied):
            # An ENI or the instance is fuller than the ledger says, or is gone, or nobody knows whether EC2 granted it.
            self._lookout.distrust()

    # ---- shrinking

    async def _unassign(self, action: UnassignBlocks) -> None:
        try:
            await self._cloud.unassign_blocks(action.eni_id, action.blocks)
        except AgentError as error:
            if isinstance(error, CloudThrottled | CloudDenied):
                self._inventory.kept(action.blocks, self._clock())
            else:
                self._inventory.doubt(action.blocks, self._clock())
                self._lookout.describe_soon(CONSISTENCY_S)
            self._breakers.trip(SHRINK, error)
            return
        self._inventory.retired(action.blocks, self._clock())
        self._breakers.reset(SHRINK)

    async def _release_eni(self, action: ReleaseEni) -> None:
        eni = self._eni(action.eni_id)
        try:
            await self._datapath.forget_eni(eni)
            await self._cloud.delete_eni(eni)
        except AgentError as error:
            self._inventory.eni_doubted(action.eni_id, self._clock())
            self._lookout.describe_soon(CONSISTENCY_S)
            self._breakers.trip(SHRINK, error)
            return
        self._inventory.eni_gone(action.eni_id, self._clock())
        self._breakers.reset(eni_scope(action.eni_id))
        self._breakers.reset(SHRINK)

    # ---- setting up

    async def _set_up(self, eni: Eni) -> None:
        scope = eni_scope(eni.eni_id)
        try:
            await self._datapath.wait_for_eni_link(eni.mac, ENI_LINK_TIMEOUT_S)
            table_id = await self._datapath.ensure_eni(eni)
        except AgentError as error:
            self._breakers.trip(scope, error)
            return
        self._inventory.eni_ready(eni.eni_id, table_id)
        self._breakers.reset(scope)
        self._serve()
        log.info("eni_ready", eni=eni.eni_id, device=eni.device, table=table_id)

    # ---- putting right

    async def _align(self, job: _AlignEni) -> None:
        eni_id = job.eni.eni_id
        scope = align_scope(eni_id)
        try:
            if job.groups is not None:
                await self._cloud.set_security_groups(eni_id, job.groups)
            if job.delete_with_instance:
                await self._cloud.delete_with_instance(job.eni)
        except AgentError as error:
            self._breakers.trip(scope, error)
            if isinstance(error, CloudGone):
                self._lookout.describe_soon(CONSISTENCY_S)
            return
        self._aligned_s[eni_id] = self._clock()
        self._breakers.reset(scope)
        log.info("eni_aligned", eni=eni_id, groups=job.groups, delete_with_instance=job.delete_with_instance)

    def _eni(self, eni_id: EniId) -> Eni:
        return next(usage.eni for usage in self._ledger.enis() if usage.eni.eni_id == eni_id)


def _alignment(eni: Eni, primary: Eni | None) -> _AlignEni | None:
    """What must be put right on an ENI; None when nothing differs. primary: whose groups it must have, if any."""
    if eni.is_primary:
        return None
    differs = primary is not None and set(eni.security_groups) != set(primary.security_groups)
    # What others attached (MANAGE_UNTAGGED_ENI) goes or stays as they chose.
    outlives = eni.made_by_us and not eni.delete_on_termination
    if not differs and not outlives:
        return None
    groups = primary.security_groups if primary is not None and differs else None
    return _AlignEni(eni=eni, groups=groups, delete_with_instance=outlives)
