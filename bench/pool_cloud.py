"""EC2 and IMDS in memory: the real adapter on the simulator's pure model, in virtual time.

Only the wire is missing. `agent.cloud.ec2.Ec2Cloud` runs as it ships, so that the calls counted here are exactly those
it makes; in place of the SDK's client it has `MemoryClient`, which takes the SDK's arguments, waits as long as the
simulator's endpoint would, does the operation of `sim.model` and answers in the SDK's shape.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from botocore.exceptions import ClientError

from agent.cloud.ec2 import Ec2Cloud
from agent.cloud.policy import CloudPolicy
from agent.ipam.model import Instance, Mac
from sim.ec2 import filters as by
from sim.ec2.app import Alarm
from sim.ec2.filters import matching
from sim.ec2.latency import Latency
from sim.model.attachments import AttachInterface, attach_interface, detach_interface
from sim.model.errors import Ec2Error
from sim.model.interfaces import CreateInterface, create_interface, delete_interface, set_delete_on_termination
from sim.model.ipv4 import Ipv4Wish, assign_ipv4, unassign_ipv4
from sim.model.records import EniRecord, State, Step, SubnetRecord
from sim.model.rules import Rules
from sim.model.vpc import Vpc

if TYPE_CHECKING:
    from types_aiobotocore_ec2 import EC2Client

T = TypeVar("T")

_IMDS_READ_S = 0.003


class MemoryClient:
    """What the adapter uses of `aiobotocore`'s EC2 client. One page holds everything.

    calls: requests by action, refused ones included. refusals: error code by action, for as long as it is there.
    """

    def __init__(self, vpc: Vpc, *, clock: Callable[[], float]) -> None:
        self.calls: Counter[str] = Counter()
        self.refusals: dict[str, str] = {}
        self._vpc = vpc
        self._clock = clock
        self._latency = Latency.realistic()
        self._alarm = Alarm(vpc, clock)

    async def describe_network_interfaces(self, **request: Any) -> dict[str, Any]:
        await self._pass("DescribeNetworkInterfaces")
        seen = self._vpc.visible(self._clock())
        found = matching(_wanted(request), seen, seen.enis.values(), by.ENI, lambda eni: eni.tags)
        return {"NetworkInterfaces": [_network_interface(eni) for eni in found]}

    async def describe_subnets(self, **request: Any) -> dict[str, Any]:
        await self._pass("DescribeSubnets")
        seen = self._vpc.visible(self._clock())
        found = matching(_wanted(request), seen, seen.subnets.values(), by.SUBNET, lambda subnet: subnet.tags)
        return {"Subnets": [_subnet(each) for each in found]}

    async def create_network_interface(self, **request: Any) -> dict[str, Any]:
        wish = CreateInterface(
            subnet_id=request["SubnetId"],
            ipv4=_wish(request),
            security_group_ids=tuple(request["Groups"]),
            description=request["Description"],
            tags={tag["Key"]: tag["Value"] for each in request["TagSpecifications"] for tag in each["Tags"]},
            client_token=request["ClientToken"],
        )
        made = await self._change("CreateNetworkInterface", partial(create_interface, request=wish))
        return {"NetworkInterface": _network_interface(made)}

    async def attach_network_interface(self, **request: Any) -> dict[str, Any]:
        wish = AttachInterface(
            eni_id=request["NetworkInterfaceId"],
            instance_id=request["InstanceId"],
            device_index=request["DeviceIndex"],
        )
        made = await self._change(
            "AttachNetworkInterface", lambda state, rules: attach_interface(state, rules, wish, now_s=self._clock())
        )
        return {"AttachmentId": made.attachment_id}

    async def modify_network_interface_attribute(self, **request: Any) -> dict[str, Any]:
        eni_id, attachment = request["NetworkInterfaceId"], request["Attachment"]
        await self._change(
            "ModifyNetworkInterfaceAttribute",
            lambda state, _: set_delete_on_termination(
                state, eni_id, attachment["AttachmentId"], value=attachment["DeleteOnTermination"]
            ),
        )
        return {}

    async def detach_network_interface(self, **request: Any) -> dict[str, Any]:
        await self._change(
            "DetachNetworkInterface",
            lambda state, rules: detach_interface(state, rules, request["AttachmentId"], now_s=self._clock()),
        )
        return {}

    async def delete_network_interface(self, **request: Any) -> dict[str, Any]:
        await self._change(
            "DeleteNetworkInterface", lambda state, _: delete_interface(state, request["NetworkInterfaceId"])
        )
        return {}

    async def assign_private_ip_addresses(self, **request: Any) -> dict[str, Any]:
        grant = await self._change(
            "AssignPrivateIpAddresses",
            lambda state, rules: assign_ipv4(state, rules, request["NetworkInterfaceId"], _wish(request)),
        )
        return {
            "AssignedPrivateIpAddresses": [{"PrivateIpAddress": str(each)} for each in grant.addresses],
            "AssignedIpv4Prefixes": [{"Ipv4Prefix": str(each)} for each in grant.prefixes],
        }

    async def unassign_private_ip_addresses(self, **request: Any) -> dict[str, Any]:
        addresses = tuple(IPv4Address(each) for each in request.get("PrivateIpAddresses", ()))
        prefixes = tuple(IPv4Network(each) for each in request.get("Ipv4Prefixes", ()))
        await self._change(
            "UnassignPrivateIpAddresses",
            lambda state, _: unassign_ipv4(state, request["NetworkInterfaceId"], addresses, prefixes),
        )
        return {}

    async def _pass(self, action: str) -> None:
        """The way of a request to the service and back."""
        self.calls[action] += 1
        await asyncio.sleep(self._latency.of(action))
        code = self.refusals.get(action)
        if code is not None:
            raise _client_error(action, Ec2Error(code, "Refused by the scenario.", http_status=503))

    async def _change(self, action: str, operation: Callable[[State, Rules], Step[T]]) -> T:
        await self._pass(action)
        try:
            result = self._vpc.apply(operation, now_s=self._clock())
        except Ec2Error as refused:
            raise _client_error(action, refused) from refused
        self._alarm.set()
        return result


class MemoryCloud(Ec2Cloud):
    """The adapter, on a client that is there already."""

    def __init__(self, client: MemoryClient, *, instance: Instance, metadata: MemoryMetadata) -> None:
        now_s = asyncio.get_running_loop().time
        super().__init__(
            instance=instance,
            metadata=metadata,
            policy=CloudPolicy(),
            version="bench",
            now=lambda: datetime.fromtimestamp(now_s(), UTC),
        )
        self._memory_client = client

    async def __aenter__(self) -> Self:
        self._client = cast("EC2Client", self._memory_client)
        return self


class MemoryMetadata:
    """Implements `agent.ports.cloud.Metadata` on the model's view of IMDS. Counts reads as the real one makes them."""

    def __init__(self, vpc: Vpc, instance_id: str, *, clock: Callable[[], float]) -> None:
        self.read_count = 0
        self._vpc = vpc
        self._instance_id = instance_id
        self._clock = clock

    async def instance(self) -> Instance:
        """See `Metadata.instance`: four items."""
        await self._read(4)
        view = self._vpc.imds_view(self._instance_id, self._clock())
        if view is None:
            raise LookupError(f"{self._instance_id} does not run")
        primary = view.enis[0]
        return Instance(
            instance_id=self._instance_id,
            account_id=view.vpc.account_id,
            instance_type=view.instance.instance_type,
            region=view.vpc.region,
            zone=view.instance.availability_zone,
            primary_mac=Mac(primary.mac),
            primary_address=primary.primary_address,
            vpc_id=view.vpc.vpc_id,
            vpc_cidrs=view.vpc.cidrs,
        )

    async def vpc_cidrs(self, _mac: Mac) -> tuple[IPv4Network, ...]:
        """See `ImdsMetadata.vpc_cidrs`: one item."""
        await self._read(1)
        view = self._vpc.imds_view(self._instance_id, self._clock())
        return view.vpc.cidrs if view else ()

    async def subnet_cidr(self, mac: Mac) -> IPv4Network | None:
        """See `Metadata.subnet_cidr`: one item."""
        await self._read(1)
        view = self._vpc.imds_view(self._instance_id, self._clock())
        found = [view.subnets[eni.subnet_id].cidr for eni in view.enis if eni.mac == mac] if view else []
        return found[0] if found else None

    async def _read(self, count: int) -> None:
        self.read_count += count
        await asyncio.sleep(count * _IMDS_READ_S)


def _wanted(request: Mapping[str, Any]) -> by.Filters:
    return tuple((each["Name"], tuple(each["Values"])) for each in request["Filters"])


def _wish(request: Mapping[str, Any]) -> Ipv4Wish:
    return Ipv4Wish(
        count=request.get("SecondaryPrivateIpAddressCount", 0), prefix_count=request.get("Ipv4PrefixCount", 0)
    )


def _client_error(action: str, refused: Ec2Error) -> ClientError:
    answer = {
        "Error": {"Code": refused.code, "Message": refused.message},
        "ResponseMetadata": {"HTTPStatusCode": refused.http_status},
    }
    return ClientError(answer, action)


def _network_interface(eni: EniRecord) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "NetworkInterfaceId": eni.eni_id,
        "MacAddress": eni.mac,
        "SubnetId": eni.subnet_id,
        "InterfaceType": "interface",
        "PrivateIpAddress": str(eni.primary_address),
        "PrivateIpAddresses": _addresses((eni.primary_address, *eni.secondary_addresses)),
        "Ipv4Prefixes": [{"Ipv4Prefix": str(each)} for each in eni.ipv4_prefixes],
        "Groups": [{"GroupId": group} for group in eni.security_group_ids],
        "TagSet": _tags(eni.tags),
    }
    at = eni.attachment
    if at is not None:
        answer["Attachment"] = {
            "AttachmentId": at.attachment_id,
            "InstanceId": at.instance_id,
            "DeviceIndex": at.device_index,
            "NetworkCardIndex": at.network_card_index,
            "Status": at.status.value,
            "DeleteOnTermination": at.delete_on_termination,
        }
    return answer


def _addresses(addresses: Sequence[IPv4Address]) -> list[dict[str, Any]]:
    return [{"PrivateIpAddress": str(each), "Primary": index == 0} for index, each in enumerate(addresses)]


def _subnet(subnet: SubnetRecord) -> dict[str, Any]:
    return {
        "SubnetId": subnet.subnet_id,
        "CidrBlock": str(subnet.cidr),
        "AvailableIpAddressCount": subnet.free_address_count,
        "Tags": _tags(subnet.tags),
    }


def _tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]
