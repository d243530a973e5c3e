"""The leak sweep: one describe an hour finds the leaked ENIs of the cluster, and what is proven a leak is deleted.

All nodes sweep, each at its own random times, so that a leak waits minutes in a large cluster and two nodes hardly ever
meet at one. A sweep that finds nothing costs one read; the owners are looked up only when there are any.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent.cloud import answers, tags
from agent.cloud.calls import CallLedger
from agent.cloud.errors import says_in_use
from agent.cloud.leaks import DESCRIPTION_PREFIX, GRACE_S, Standing, Stray, gone, judge
from agent.cloud.policy import CloudPolicy
from agent.errors import AgentError, CloudGone, CloudThrottled
from agent.ipam.model import EniId, Instance
from agent.runtime.log import event_logger
from agent.runtime.purpose import purpose

if TYPE_CHECKING:
    from types_aiobotocore_ec2 import EC2Client
    from types_aiobotocore_ec2.type_defs import FilterTypeDef, NetworkInterfaceTypeDef

_log = event_logger(__name__)

FIRST_S = (30.0, 300.0)
"""After the start, drawn from this span: the predecessor may have left something, and nodes start together."""
EVERY_S = (3600.0, 3900.0)
"""From the end of a sweep to the next one: at most one read an hour. The AWS plugin's figures."""
AGAIN_S = (GRACE_S + 30.0, GRACE_S + 300.0)
"""After a sweep that found what is too young to be judged."""
DELETED_AT_ONCE_COUNT = 20
"""Deletions of one sweep. The rest is found again: this is nobody's emergency, and the account's budget is shared."""

_PAGE_SIZE = 1000


class LeakSweep:
    """Turn `step` in a loop. clock: monotonic seconds. now: the wall clock. draw: random numbers in [0, 1)."""

    def __init__(
        self,
        *,
        client: EC2Client,
        calls: CallLedger,
        instance: Instance,
        policy: CloudPolicy,
        clock: Callable[[], float],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._client = client
        self._calls = calls
        self._instance = instance
        self._policy = policy
        self._clock = clock
        self._now = now
        self._draw = draw
        self._seen_s: dict[EniId, float] = {}
        self._due_s = clock() + self._within(FIRST_S)

    async def step(self) -> float:
        """Sweep if it is time; the seconds until the next turn. Never raises an AgentError: the next sweep retries."""
        if self._clock() >= self._due_s:
            with purpose("leaks"):
                try:
                    again = await self._sweep()
                except AgentError as error:
                    _log.warning("leak_sweep_failed", error=str(error))
                    again = False
            self._due_s = self._clock() + self._within(AGAIN_S if again else EVERY_S)
        return max(0.0, self._due_s - self._clock())

    async def _sweep(self) -> bool:
        """One sweep; whether something is there that may be judged later."""
        strays = await self._strays()
        now_s, now = self._clock(), self._now()
        self._seen_s = {one.eni_id: self._seen_s.get(one.eni_id, now_s) for one in strays}
        by_standing: dict[Standing, list[Stray]] = {standing: [] for standing in Standing}
        for stray in strays:
            standing, why = judge(
                stray,
                instance_id=self._instance.instance_id,
                account_id=self._instance.account_id,
                cluster_name=self._policy.cluster_name,
                now=now,
                seen_s=now_s - self._seen_s[stray.eni_id],
            )
            by_standing[standing].append(stray)
            if standing is Standing.LEAVE:
                _log.warning("leak_left_alone", eni_id=stray.eni_id, because=why)
        leaks = by_standing[Standing.OURS]
        if asked := by_standing[Standing.ASK]:
            vanished = await self._vanished({one.owner_id for one in asked})
            leaks += [one for one in asked if one.owner_id in vanished]
        complete = await self._delete(leaks)
        return bool(by_standing[Standing.WAIT]) or not complete

    async def unattached(self) -> tuple[str, ...]:
        """ENIs of the cluster's nodes that are attached to nothing, leaked or on their way. One request.

        Raises: CloudFailed.
        """
        return tuple(one.eni_id for one in await self._strays() if not one.in_use)

    async def _strays(self) -> list[Stray]:
        wanted: list[FilterTypeDef] = [
            {"Name": "tag-key", "Values": [tags.INSTANCE_ID]},
            {"Name": "status", "Values": ["available"]},
            {"Name": "vpc-id", "Values": [self._instance.vpc_id]},
            {"Name": "owner-id", "Values": [self._instance.account_id]},
            {"Name": "description", "Values": [f"{DESCRIPTION_PREFIX}*"]},
        ]
        if self._policy.cluster_name:
            wanted.append({"Name": f"tag:{tags.CLUSTER}", "Values": [self._policy.cluster_name]})
        # One page: a thousand leaks are more than one sweep deletes.
        found = await self._calls.run(
            "DescribeNetworkInterfaces",
            self._client.describe_network_interfaces(Filters=wanted, MaxResults=_PAGE_SIZE),
            {"vpc_id": self._instance.vpc_id},
        )
        return [_stray(one) for one in found["NetworkInterfaces"]]

    async def _vanished(self, owner_ids: set[str]) -> frozenset[str]:
        """Owners that are gone. Asked by filter, because an id EC2 does not know would be an error by itself."""
        asked = sorted(owner_ids)[:200]  # a filter takes no more values (EC2 API reference, DescribeInstances)
        found = await self._calls.run(
            "DescribeInstances",
            self._client.describe_instances(Filters=[{"Name": "instance-id", "Values": asked}], MaxResults=_PAGE_SIZE),
            {"count": len(asked)},
        )
        if found.get("NextToken"):
            return frozenset()  # not the whole answer: no proof
        states = {
            one["InstanceId"]: str(one["State"]["Name"])
            for reservation in found["Reservations"]
            for one in reservation["Instances"]
        }
        return gone(asked, states)

    async def _delete(self, leaks: Sequence[Stray]) -> bool:
        """Delete what is proven a leak, the first of them; whether that were all, and all went."""
        complete = len(leaks) <= DELETED_AT_ONCE_COUNT
        for stray in leaks[:DELETED_AT_ONCE_COUNT]:
            try:
                await self._calls.run(
                    "DeleteNetworkInterface",
                    self._client.delete_network_interface(NetworkInterfaceId=stray.eni_id),
                    {"eni_id": stray.eni_id},
                )
            except CloudGone:
                continue  # another node was faster
            except CloudThrottled:
                return False
            except AgentError as error:
                # In use: it was attached since EC2 listed it, so it is no leak.
                _log.warning("leak_not_deleted", eni_id=stray.eni_id, in_use=says_in_use(error), error=str(error))
                continue
            _log.info("leak_deleted", eni_id=stray.eni_id, owner=stray.owner_id)
        return complete

    def _within(self, span_s: tuple[float, float]) -> float:
        low_s, high_s = span_s
        return low_s + (high_s - low_s) * self._draw()


def _stray(answer: NetworkInterfaceTypeDef) -> Stray:
    return Stray(
        eni_id=EniId(answer["NetworkInterfaceId"]),
        account_id=answer.get("OwnerId", ""),
        description=answer.get("Description", ""),
        tags=answers.tags(answer.get("TagSet", ())),
        in_use="Attachment" in answer,
    )
