"""What EC2 would allow: each action that is called and can be asked with DryRun, on what exists. Changes nothing.

EC2 API reference, "DryRun": DryRunOperation when the caller has the permission, UnauthorizedOperation when not. What
else EC2 may refuse (an ENI that is in use, a full subnet) comes after the permission, and counts as allowed here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from agent.cloud.calls import CallLedger
from agent.cloud.errors import translate
from agent.errors import AgentError, Cause, CloudDenied
from agent.ipam.model import Eni, Instance
from agent.surveyed import CloudFacts

if TYPE_CHECKING:
    from types_aiobotocore_ec2 import EC2Client

_WITHOUT_DRY_RUN = ("AssignPrivateIpAddresses", "UnassignPrivateIpAddresses")
"""EC2 API reference: these two have no such parameter."""
_UNANSWERED = frozenset({Cause.EC2_THROTTLED, Cause.EC2_UNAVAILABLE})


class Rehearsal:
    """Asks once. now: the wall clock."""

    def __init__(self, *, client: EC2Client, calls: CallLedger, instance: Instance) -> None:
        self._client = client
        self._calls = calls
        self._instance = instance
        self._skew_s: float | None = None

    async def ask(self, primary: Eni, subnets: Mapping[str, int] | None, leaked: tuple[str, ...] | None) -> CloudFacts:
        """primary: what exists for certain, to ask about. Never raises an AgentError."""
        hop_limit, problem = await self._hop_limit()
        requests = self._requests(primary)
        answers = await asyncio.gather(*(self._dry(action, request) for action, request in requests.items()))
        permissions = {action: words for action, words in zip(requests, answers, strict=True) if words is not None}
        permissions |= self._from_experience()
        return CloudFacts(
            reachable=problem,
            permissions=permissions,
            unknown=tuple(action for action, words in zip(requests, answers, strict=True) if words is None),
            hop_limit=hop_limit,
            skew_s=self._skew_s,
            leaked=leaked,
            subnets=subnets,
        )

    async def _hop_limit(self) -> tuple[int | None, str]:
        try:
            answer = await self._calls.run(
                "DescribeInstances",
                self._client.describe_instances(
                    Filters=[{"Name": "instance-id", "Values": [self._instance.instance_id]}]
                ),
            )
        except CloudDenied:
            return None, ""
        except AgentError as error:
            return None, str(error)
        self._note_time(answer.get("ResponseMetadata", {}))
        for reservation in answer["Reservations"]:
            for one in reservation["Instances"]:
                return one.get("MetadataOptions", {}).get("HttpPutResponseHopLimit"), ""
        return None, ""

    def _requests(self, primary: Eni) -> dict[str, Coroutine[Any, Any, Any]]:
        _client, eni_id = self._client, primary.eni_id
        return {
            "DescribeNetworkInterfaces": _client.describe_network_interfaces(DryRun=True),
            "DescribeSubnets": _client.describe_subnets(DryRun=True),
            "DescribeInstances": _client.describe_instances(DryRun=True),
            "DescribeInstanceTypes": _client.describe_instance_types(DryRun=True),
            "CreateNetworkInterface": _client.create_network_interface(
                DryRun=True,
                SubnetId=primary.subnet_id,
                Groups=list(primary.security_groups),
                TagSpecifications=[
                    {"ResourceType": "network-interface", "Tags": [{"Key": "enoki/doctor", "Value": "dry-run"}]}
                ],
            ),
            "AttachNetworkInterface": _client.attach_network_interface(
                DryRun=True, DeviceIndex=1, InstanceId=self._instance.instance_id, NetworkInterfaceId=eni_id
            ),
            "ModifyNetworkInterfaceAttribute": _client.modify_network_interface_attribute(
                DryRun=True, NetworkInterfaceId=eni_id, Groups=list(primary.security_groups)
            ),
            "DetachNetworkInterface": _client.detach_network_interface(DryRun=True, AttachmentId=primary.attachment_id),
            "DeleteNetworkInterface": _client.delete_network_interface(DryRun=True, NetworkInterfaceId=eni_id),
        }

    def _from_experience(self) -> dict[str, str]:
        """What has no DryRun, by what came of the requests so far; nothing for an action that was never asked for."""
        counts = self._calls.budget.counts()
        found = {}
        for action in _WITHOUT_DRY_RUN:
            denied_count, allowed_count = counts[action, Cause.IAM_DENIED], counts[action, "ok"]
            if allowed_count:
                found[action] = ""
            elif denied_count:
                found[action] = f"{action} was denied {denied_count} times, and never allowed"
        return found

    async def _dry(self, action: str, request: Awaitable[Any]) -> str | None:
        """ "" when it is allowed, EC2's words when it is not, None when nobody answered."""
        try:
            await self._calls.run(action, _expecting_refusal(action, request))
        except CloudDenied as error:
            return error.message
        except AgentError as error:
            return None if error.cause in _UNANSWERED else ""
        return ""

    def _note_time(self, metadata: Mapping[str, Any]) -> None:
        told = metadata.get("HTTPHeaders", {}).get("date", "")
        try:
            self._skew_s = (datetime.now(UTC) - parsedate_to_datetime(told)).total_seconds()
        except (TypeError, ValueError):
            self._skew_s = None


async def _expecting_refusal(action: str, request: Awaitable[Any]) -> Any:
    """So that what was asked for does not stand in the log and in the counts as a failure."""
    try:
        return await request
    except ClientError as refused:
        if translate(action, refused, {}).cause in {Cause.IAM_DENIED, *_UNANSWERED}:
            raise
        return refused.response
