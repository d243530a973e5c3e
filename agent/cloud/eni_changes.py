"""An ENI's way in and out, request by request: create, attach, DeleteOnTermination; detach, delete.

Each method is one change from its beginning to its end; who calls it shields it from cancellation.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, assert_never

from agent.cloud import answers, tags
from agent.cloud.calls import CallLedger
from agent.cloud.policy import CloudPolicy
from agent.cloud.removal import Patience, remove
from agent.errors import AgentError, Cause, CloudFailed
from agent.ipam.model import BlockKind, EniId, Instance, Mac, SubnetId
from agent.ports.cloud import Metadata
from agent.runtime.log import event_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from types_aiobotocore_ec2 import EC2Client
    from types_aiobotocore_ec2.type_defs import (
        CreateNetworkInterfaceRequestTypeDef,
        NetworkInterfaceAttachmentTypeDef,
        NetworkInterfaceTypeDef,
    )

_log = event_logger(__name__)

Asked = tuple[SubnetId, tuple[str, ...], BlockKind, int]
"""What a new ENI is asked to be: subnet, security groups, kind and number of its blocks."""


class EniChanges:
    """client: the SDK's, once it is there. now: the wall clock, for the ENIs' createdAt tag."""

    def __init__(
        self,
        *,
        client: Callable[[], EC2Client],
        calls: CallLedger,
        instance: Instance,
        metadata: Metadata,
        policy: CloudPolicy,
        patience: Patience,
        now: Callable[[], datetime],
    ) -> None:
        self._client_now = client
        self._calls = calls
        self._instance = instance
        self._metadata = metadata
        self._policy = policy
        self._patience = patience
        self._now = now
        # Create requests whose outcome is unknown, by what was asked for: sent again with the same token.
        self._unanswered: dict[Asked, CreateNetworkInterfaceRequestTypeDef] = {}

    @property
    def _client(self) -> EC2Client:
        return self._client_now()

    async def create_and_attach(
        self, device: int, asked: Asked
    ) -> tuple[NetworkInterfaceTypeDef, NetworkInterfaceAttachmentTypeDef]:
        """Three requests. When one of the last two fails, the ENI is deleted again before that is raised."""
        created = await self._create(asked)
        eni_id, mac = EniId(created["NetworkInterfaceId"]), Mac(created["MacAddress"])
        attachment_id: str | None = None
        try:
            attachment_id = await self._attach(eni_id, device)
            await self.delete_with_instance(eni_id, attachment_id)
        except AgentError as error:
            await self._discard(eni_id, mac, attachment_id, error)
            raise
        return created, {"AttachmentId": attachment_id, "DeviceIndex": device, "DeleteOnTermination": True}

    async def _create(self, asked: Asked) -> NetworkInterfaceTypeDef:
        """CreateNetworkInterface. A request whose outcome nobody told us is sent again as it was, token included."""
        request = self._unanswered.pop(asked, None) or self._create_request(*asked)
        try:
            answer = await self._calls.run(
                "CreateNetworkInterface", self._client.create_network_interface(**request), {"subnet_id": asked[0]}
            )
        except CloudFailed as error:
            if error.cause is Cause.EC2_UNAVAILABLE:
                self._unanswered[asked] = request
            raise
        return answer["NetworkInterface"]

    def _create_request(
        self, subnet_id: SubnetId, groups: tuple[str, ...], kind: BlockKind, count: int
    ) -> CreateNetworkInterfaceRequestTypeDef:
        instance_id = self._instance.instance_id
        ours = tags.for_new_eni(self._policy, instance_id=instance_id, now=self._now())
        request: CreateNetworkInterfaceRequestTypeDef = {
            "ClientToken": str(uuid.uuid4()),
            "Description": f"aws-K8S-{instance_id}",
            "Groups": groups,
            "SubnetId": subnet_id,
            "TagSpecifications": [
                {
                    "ResourceType": "network-interface",
                    "Tags": [{"Key": key, "Value": value} for key, value in ours.items()],
                }
            ],
        }
        if count:
            match kind:
                case BlockKind.IPV4_ADDRESS:
                    request["SecondaryPrivateIpAddressCount"] = count
                case BlockKind.IPV4_PREFIX:
                    request["Ipv4PrefixCount"] = count
                case _:
                    assert_never(kind)
        return request

    async def _attach(self, eni_id: EniId, device: int) -> str:
        attached = await self._calls.run(
            "AttachNetworkInterface",
            self._client.attach_network_interface(
                DeviceIndex=device, InstanceId=self._instance.instance_id, NetworkInterfaceId=eni_id
            ),
            {"eni_id": eni_id, "device": device},
        )
        return attached["AttachmentId"]

    async def delete_with_instance(self, eni_id: EniId, attachment_id: str) -> None:
        """DeleteOnTermination, which the attach request cannot set."""
        await self._calls.run(
            "ModifyNetworkInterfaceAttribute",
            self._client.modify_network_interface_attribute(
                NetworkInterfaceId=eni_id, Attachment={"AttachmentId": attachment_id, "DeleteOnTermination": True}
            ),
            {"eni_id": eni_id},
        )

    async def set_security_groups(self, eni_id: EniId, groups: Sequence[str]) -> None:
        """Replace an ENI's security groups."""
        await self._calls.run(
            "ModifyNetworkInterfaceAttribute",
            self._client.modify_network_interface_attribute(NetworkInterfaceId=eni_id, Groups=list(groups)),
            {"eni_id": eni_id},
        )

    async def remove(self, eni_id: EniId, mac: Mac, attachment_id: str | None) -> None:
        """Detach and delete: two requests, unless EC2 is slow to let go."""
        await remove(
            eni_id=eni_id,
            mac=mac,
            detach=partial(self._detach, eni_id, attachment_id) if attachment_id else None,
            delete=partial(self._delete, eni_id),
            metadata=self._metadata,
            patience=self._patience,
        )

    async def _detach(self, eni_id: EniId, attachment_id: str) -> None:
        await self._calls.run(
            "DetachNetworkInterface",
            self._client.detach_network_interface(AttachmentId=attachment_id),
            {"eni_id": eni_id, "attachment_id": attachment_id},
        )

    async def _delete(self, eni_id: EniId) -> None:
        await self._calls.run(
            "DeleteNetworkInterface",
            self._client.delete_network_interface(NetworkInterfaceId=eni_id),
            {"eni_id": eni_id},
        )

    async def _discard(self, eni_id: EniId, mac: Mac, attachment_id: str | None, because: AgentError) -> None:
        """Delete an ENI that could not be attached, or not be set up.

        Never raises what is expected: the caller has a first cause to tell. What stays carries our tags.
        """
        try:
            if attachment_id is None and because.cause is Cause.EC2_UNAVAILABLE:
                # EC2 may have attached it and only failed to say so.
                found = await self.one_network_interface(eni_id)
                attached = answers.attachment(found[0]) if found else None
                attachment_id = attached["AttachmentId"] if attached else None
            await self.remove(eni_id, mac, attachment_id)
        except AgentError as error:
            _log.error("eni_not_discarded", eni_id=eni_id, because=str(because), error=str(error))
        else:
            _log.warning("eni_discarded", eni_id=eni_id, because=str(because))

    async def one_network_interface(self, eni_id: EniId) -> list[NetworkInterfaceTypeDef]:
        """The ENI as EC2 shows it now; nothing when EC2 does not know it."""
        # A filter, not an id parameter: EC2 then answers with nothing for an ENI it does not know.
        answer = await self._calls.run(
            "DescribeNetworkInterfaces",
            self._client.describe_network_interfaces(
                Filters=[{"Name": "network-interface-id", "Values": [eni_id]}], MaxResults=5
            ),
            {"eni_id": eni_id},
        )
        return answer["NetworkInterfaces"]
