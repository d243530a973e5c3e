"""An EC2 in memory that fails as told: the simulator's model and its scripted faults behind the SDK client's methods.

What `sim.ec2.app` does on the wire, in virtual time: token bucket, fault before the change, the change, fault after it.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from botocore.exceptions import ClientError, ConnectionClosedError

from bench.pool_cloud import MemoryClient
from sim.ec2.budget import Budget
from sim.faults import DelayEffect, DropEffect, Effect, ErrorEffect, Faults, HangEffect, PartialEffect
from sim.model.catalog import load_catalog
from sim.model.interfaces import InterfaceAttributes, modify_interface
from sim.model.vpc import Vpc

_COUNTS = ("SecondaryPrivateIpAddressCount", "Ipv4PrefixCount")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One request: when it began, and what came of it ("ok" or EC2's code, "lost" when nothing came back)."""

    action: str
    at_s: float
    outcome: str


class FaultyClient:
    """What the adapter uses of the SDK's client.

    before, after: called with the action's name before a request takes effect, and before its answer comes back.
    budget: the account's, shared by the clients of a fleet; None for no throttling.
    """

    def __init__(self, vpc: Vpc, *, clock: Callable[[], float], budget: Budget | None = None) -> None:
        self.faults = Faults()
        self.sent: list[Sent] = []
        self.before: Callable[[str], None] = lambda _: None
        self.after: Callable[[str], None] = lambda _: None
        self.is_dead = False
        self._vpc = vpc
        self._clock = clock
        self._budget = budget
        self._inner = _Client(vpc, clock=clock)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        action = "".join(part.capitalize() for part in name.split("_"))
        return partial(self._request, action, method)

    def count(self, *actions: str, since_s: float = 0.0) -> int:
        return sum(one.action in actions or not actions for one in self.sent if one.at_s >= since_s)

    def outcomes(self) -> Counter[tuple[str, str]]:
        return Counter((one.action, one.outcome) for one in self.sent)

    async def _request(self, action: str, method: Callable[..., Any], **request: Any) -> Any:
        at_s, outcome = self._clock(), "lost"
        try:
            await self._hang_if_dead()
            if self._budget is not None and not self._budget.take(action, filtered=True, now_s=at_s):
                raise _client_error(action, "RequestLimitExceeded", 503)
            effect = self.faults.take(action)
            self.before(action)
            await self._hang_if_dead()
            await _fail(effect, action, after=False)
            if isinstance(effect, PartialEffect):
                request |= {name: min(request[name], effect.grant_count) for name in _COUNTS if name in request}
            answer = await method(**request)
            await _fail(effect, action, after=True)
            self.after(action)
            await self._hang_if_dead()
            outcome = "ok"
        except ClientError as refused:
            outcome = str(refused.response["Error"]["Code"])
            raise
        finally:
            self.sent.append(Sent(action=action, at_s=at_s, outcome=outcome))
        return answer

    async def _hang_if_dead(self) -> None:
        """A killed agent does nothing more; whoever cancels its tasks ends this."""
        if self.is_dead:
            await asyncio.get_running_loop().create_future()


class _Client(MemoryClient):
    """The rest of what the adapter may ask."""

    async def modify_network_interface_attribute(self, **request: Any) -> dict[str, Any]:
        if "Groups" not in request:
            return await super().modify_network_interface_attribute(**request)
        wanted = InterfaceAttributes(security_group_ids=tuple(request["Groups"]))
        await self._change(
            "ModifyNetworkInterfaceAttribute",
            lambda state, _: modify_interface(state, request["NetworkInterfaceId"], wanted),
        )
        return {}

    async def describe_network_interfaces(self, **request: Any) -> dict[str, Any]:
        answer = await super().describe_network_interfaces(**request)
        seen = self._vpc.visible(self._clock())
        for one in answer["NetworkInterfaces"]:
            one["OwnerId"] = seen.vpc.account_id
            one["Description"] = seen.enis[one["NetworkInterfaceId"]].description
        return answer

    async def describe_instances(self, **request: Any) -> dict[str, Any]:
        await self._pass("DescribeInstances")
        [wanted] = [one["Values"] for one in request["Filters"]]
        found = [one for one in self._vpc.visible(self._clock()).instances.values() if one.instance_id in wanted]
        instances = [{"InstanceId": one.instance_id, "State": {"Name": one.state.value}} for one in found]
        return {"Reservations": [{"Instances": instances}]}

    async def describe_instance_types(self, **request: Any) -> dict[str, Any]:
        await self._pass("DescribeInstanceTypes")
        limits = load_catalog()[request["InstanceTypes"][0]]
        cards = [
            {"NetworkCardIndex": index, "MaximumNetworkInterfaces": count}
            for index, count in enumerate(limits.interfaces_per_card)
        ]
        network = {"NetworkCards": cards, "Ipv4AddressesPerInterface": limits.ipv4_per_interface}
        described = {
            "InstanceType": limits.name,
            "NetworkInfo": network,
            "Hypervisor": limits.hypervisor,
            "BareMetal": limits.bare_metal,
        }
        return {"InstanceTypes": [described]}


async def _fail(effect: Effect | None, action: str, *, after: bool) -> None:
    match effect:
        case ErrorEffect() if effect.after == after:
            raise _client_error(action, effect.code, effect.http_status)
        case DropEffect() if effect.after == after:
            raise ConnectionClosedError(endpoint_url="https://ec2")
        case HangEffect() if effect.after == after:
            await asyncio.get_running_loop().create_future()
        case DelayEffect() if not after:
            await asyncio.sleep(effect.delay_s)
        case _:
            pass


def _client_error(action: str, code: str, http_status: int) -> ClientError:
    answer: Any = {
        "Error": {"Code": code, "Message": "Scripted fault"},
        "ResponseMetadata": {"HTTPStatusCode": http_status},
    }
    assert re.fullmatch(r"[A-Za-z.]+", code)
    return ClientError(answer, action)
