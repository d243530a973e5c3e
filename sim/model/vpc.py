"""The VPC that changes: one current `State`, its recent past, and who wants to know.

`Vpc` owns no clock: every method takes `now_s`, seconds since the Unix epoch. Attachments complete by themselves when
their time has come; whoever owns a clock calls `advance` at `next_due_s`. Not thread-safe: one event loop thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from sim.model.attachments import complete
from sim.model.catalog import load_catalog
from sim.model.config import Timings, VpcConfig
from sim.model.errors import Ec2Error
from sim.model.instances import RunInstance, run_instance, terminate_instance
from sim.model.lag import History
from sim.model.mint import Mint
from sim.model.records import (
    Change,
    EniRecord,
    InstanceRecord,
    InstanceState,
    SecurityGroupRecord,
    State,
    Step,
    SubnetRecord,
    VpcRecord,
)
from sim.model.rules import Rules
from sim.model.space import reserved_bits

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImdsView:
    """What the metadata service knows of one instance.

    enis: attached ones, primary first, as they were `Timings.imds_lag_s` ago.
    subnets, security_group_names: by identifier.
    """

    vpc: VpcRecord
    instance: InstanceRecord
    enis: tuple[EniRecord, ...]
    subnets: Mapping[str, SubnetRecord]
    security_group_names: Mapping[str, str]


class Vpc:
    """One simulated VPC.

    state: the truth now, immutable; read it freely.
    timings: may be replaced at any time; holds for what starts afterwards.
    """

    def __init__(self, config: VpcConfig, *, timings: Timings | None = None) -> None:
        self._mint = Mint(config.seed)
        self._placement = config.placement
        self._callbacks: list[Callable[[Change], None]] = []
        self.timings = timings or Timings()
        self.state = _initial_state(config, self._mint)
        self._history = History(self.state)

    def subscribe(self, callback: Callable[[Change], None]) -> None:
        """Have `callback` called, synchronously and in order, after each change; `state` is then the new one."""
        self._callbacks.append(callback)

    def apply(self, operation: Callable[[State, Rules], Step[T]], *, now_s: float, dry_run: bool = False) -> T:
        """Do one of the operations of `sim.model` and answer its result.

        Raises: Ec2Error as the operation does, and then nothing has changed; Ec2Error(DryRunOperation) instead of
        changing anything when `dry_run` is set and the operation would have succeeded.
        """
        self.advance(now_s)
        step = operation(self.state, self._rules())
        if dry_run:
            raise Ec2Error("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", http_status=412)
        self._commit(step, now_s)
        self.advance(now_s)  # what takes no time is over when the call is
        return step.result

    def run_instance(
        self, instance_type: str, subnet_id: str, *, now_s: float, tags: Mapping[str, str] | None = None
    ) -> InstanceRecord:
        """Launch an instance with its primary ENI attached. `state.enis_of(instance_id)[0]` is that ENI.

        Raises: Ec2Error(InvalidInstanceType, InvalidSubnetID.NotFound, InsufficientFreeAddressesInSubnet).
        """
        request = RunInstance(instance_type=instance_type, subnet_id=subnet_id, tags=tags or {})
        return self.apply(partial(run_instance, request=request, now_s=now_s), now_s=now_s)

    def terminate_instance(self, instance_id: str, *, now_s: float) -> None:
        """Terminate: ENIs with DeleteOnTermination go with it, the others become available.

        Raises: Ec2Error(InvalidInstanceID.NotFound).
        """
        self.apply(lambda state, _: terminate_instance(state, instance_id), now_s=now_s)

    def advance(self, now_s: float) -> None:
        """Complete the attachments and detachments that are due."""
        due_s = self.next_due_s()
        if due_s is not None and due_s <= now_s:
            self._commit(complete(self.state, now_s), now_s)

    def next_due_s(self) -> float | None:
        """When `advance` has something to do next; None when nothing is under way."""
        return self.state.transitions[0].due_s if self.state.transitions else None

    def visible(self, now_s: float) -> State:
        """The state as describes show it: `Timings.describe_lag_s` ago."""
        self.advance(now_s)
        return self._history.at(now_s - self.timings.describe_lag_s)

    def imds_view(self, instance_id: str, now_s: float) -> ImdsView | None:
        """What IMDS says to this instance; None when there is no such running instance."""
        self.advance(now_s)
        instance = self.state.instances.get(instance_id)
        if instance is None or instance.state is not InstanceState.RUNNING:
            return None
        # Metadata is there when the machine boots.
        seen = self._history.at(max(now_s - self.timings.imds_lag_s, instance.launch_time_s))
        return ImdsView(
            vpc=self.state.vpc,
            instance=instance,
            enis=tuple(e for e in seen.enis_of(instance_id) if not e.is_attaching),
            subnets=seen.subnets,
            security_group_names={g.group_id: g.name for g in seen.security_groups.values()},
        )

    def _rules(self) -> Rules:
        return Rules(catalog=load_catalog(), mint=self._mint, placement=self._placement, timings=self.timings)

    def _commit(self, step: Step[T], now_s: float) -> None:
        self.state = step.state
        horizon_s = max(self.timings.describe_lag_s, self.timings.imds_lag_s)
        self._history.record(step.state, now_s=now_s, horizon_s=horizon_s)
        for change in step.changes:
            for callback in self._callbacks:
                callback(change)


def _initial_state(config: VpcConfig, mint: Mint) -> State:
    vpc = VpcRecord(
        vpc_id=mint.identifier("vpc"),
        region=config.region,
        account_id=config.account_id,
        cidrs=config.cidrs,
        ipv6_cidrs=config.ipv6_cidrs,
        tags=dict(config.tags),
    )
    subnets = [
        SubnetRecord(
            subnet_id=each.subnet_id or mint.identifier("subnet"),
            vpc_id=vpc.vpc_id,
            cidr=each.cidr,
            ipv6_cidr=each.ipv6_cidr,
            availability_zone=each.availability_zone,
            availability_zone_id=each.availability_zone_id,
            used_bits=reserved_bits(each.cidr),
            tags=dict(each.tags),
        )
        for each in config.subnets
    ]
    groups = [
        SecurityGroupRecord(
            group_id=each.group_id or mint.identifier("sg"),
            name=each.name,
            description=each.description,
            vpc_id=vpc.vpc_id,
            tags=dict(each.tags),
        )
        for each in config.security_groups
    ]
    return State(
        vpc=vpc,
        subnets={each.subnet_id: each for each in subnets},
        security_groups={each.group_id: each for each in groups},
    )
