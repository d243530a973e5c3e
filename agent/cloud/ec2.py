"""EC2 for one instance: `agent.ports.cloud.Cloud` on aiobotocore.

One client for the life of the agent, with a model of the actions it calls and no others; one request per try:
the SDK's own retries are off, because the pool loop retries and must see every throttle. Region from the instance;
endpoint and credentials the SDK's way (`AWS_ENDPOINT_URL_EC2`; environment, web identity, container, instance role).

Changes run as transactions: cancelling the caller does not leave an ENI half attached or half removed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, assert_never

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from agent.cloud import answers, tags
from agent.cloud.budget import ActionBudget
from agent.cloud.calls import CallLedger
from agent.cloud.eni_changes import EniChanges
from agent.cloud.errors import says_not_assigned
from agent.cloud.limits import bundled_limits
from agent.cloud.policy import CloudPolicy
from agent.cloud.removal import Patience
from agent.cloud.sweep import LeakSweep
from agent.errors import AgentError, Cause, CloudFailed, CloudGone, Evidence
from agent.ipam.model import Block, BlockKind, Eni, EniId, Instance, InstanceLimits, Mac, Subnet, SubnetId
from agent.ports.cloud import Metadata
from agent.runtime.log import event_logger
from agent.runtime.purpose import purpose
from agent.runtime.transactions import Transactions
from agent.surveyed import CloudFacts

if TYPE_CHECKING:
    from types_aiobotocore_ec2 import EC2Client
    from types_aiobotocore_ec2.type_defs import (
        AssignPrivateIpAddressesRequestTypeDef,
        DescribeNetworkInterfacesRequestTypeDef,
        DescribeSubnetsRequestTypeDef,
        FilterTypeDef,
        NetworkInterfaceTypeDef,
        SubnetTypeDef,
        UnassignPrivateIpAddressesRequestTypeDef,
    )

_log = event_logger(__name__)

T = TypeVar("T")

_PAGE_SIZE = 1000
"""The most EC2 allows (DescribeNetworkInterfaces, DescribeSubnets: MaxResults 5..1000)."""
EC2_MODEL = Path(__file__).parent / "data"
"""The part of botocore's EC2 model we call, where its loader looks first; `make ec2-model` writes it."""
_DRAIN_S = 8.0
"""For changes under way when the agent stops; below the ten seconds a DaemonSet's pod usually has."""


class Ec2Cloud:
    """Implements `agent.ports.cloud.Cloud`. Use as an async context manager; the methods work inside only."""

    def __init__(
        self,
        *,
        instance: Instance,
        metadata: Metadata,
        policy: CloudPolicy,
        version: str,
        patience: Patience | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """version: of the agent, for the user agent. now: the wall clock, for the ENIs' createdAt tag."""
        self._instance = instance
        self._metadata = metadata
        self._policy = policy
        self._version = version
        self._now = now
        self._calls = CallLedger()
        self._changes = EniChanges(
            client=lambda: self._client,
            calls=self._calls,
            instance=instance,
            metadata=metadata,
            policy=policy,
            patience=patience or Patience(),
            now=now,
        )
        self._transactions = Transactions()
        self._stack = AsyncExitStack()
        self._client: EC2Client
        # From the bundled table, and beyond it as EC2 described them.
        self._known_limits: dict[str, InstanceLimits] = {}
        # A subnet's CIDR never changes.
        self._subnet_cidrs: dict[SubnetId, IPv4Network] = {}
        # Subnets whose tags kept pods out when they were last described: an ENI's description does not say.
        self._excluded: set[SubnetId] = set()

    async def __aenter__(self) -> Self:
        # At debug level the SDK logs whole requests, session token included.
        for name in ("botocore", "aiobotocore"):
            logging.getLogger(name).setLevel(logging.WARNING)
        config = AioConfig(
            connect_timeout=3,
            read_timeout=15,
            retries={"mode": "standard", "total_max_attempts": 1},
            max_pool_connections=8,
            user_agent_extra=f"enoki/{self._version}",
        )
        session = get_session()
        session.set_config_variable("data_path", str(EC2_MODEL))
        client = session.create_client("ec2", region_name=self._instance.region, config=config)
        self._client = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        unfinished = await self._transactions.drain(_DRAIN_S)
        if unfinished:
            _log.warning("ec2_changes_abandoned", count=unfinished)
        await self._stack.aclose()

    @property
    def calls(self) -> Counter[tuple[str, str]]:
        """Requests so far by (action, outcome); outcome is "ok", a cause's value, or "cancelled"."""
        return self._calls.budget.counts()

    def budget(self) -> tuple[ActionBudget, ...]:
        """EC2's request budget as this node sees it: by action, with the requests so far by reason and outcome."""
        return self._calls.budget.view()

    def leak_sweep(self) -> LeakSweep:
        """The loop that finds leaked ENIs, on this adapter's client and budget; use it inside the context only."""
        return LeakSweep(
            client=self._client,
            calls=self._calls,
            instance=self._instance,
            policy=self._policy,
            clock=asyncio.get_running_loop().time,
            now=self._now,
        )

    async def rehearse(self, primary: Eni) -> CloudFacts:
        """What EC2 would allow, and what it says of this instance: about fifteen requests. Changes nothing.

        primary: the primary ENI. Never raises an AgentError.
        """
        # Rarely asked for, so that its import waits until then.
        from agent.cloud.rehearsal import Rehearsal  # noqa: PLC0415

        subnets: dict[str, int] | None = None
        leaked: tuple[str, ...] | None = None
        with purpose("doctor"):
            with suppress(AgentError):
                subnets = {one.subnet_id: one.free_address_count for one in await self.describe_subnets()}
            with suppress(AgentError):
                leaked = await self.leak_sweep().unattached()
            rehearsal = Rehearsal(client=self._client, calls=self._calls, instance=self._instance)
            return await rehearsal.ask(primary, subnets, leaked)

    # --- Reading -----------------------------------------------------------------------------------------------------

    async def limits(self, instance_type: str) -> InstanceLimits:
        """See `Cloud.limits`."""
        known = self._known_limits.get(instance_type) or bundled_limits(instance_type)
        if known is None:
            known = await self._described_limits(instance_type)
        self._known_limits[instance_type] = known
        return known

    async def _described_limits(self, instance_type: str) -> InstanceLimits:
        answer = await self._calls.run(
            "DescribeInstanceTypes",
            self._client.describe_instance_types(InstanceTypes=[instance_type]),  # type: ignore[list-item]  # a new one
            {"instance_type": instance_type},
        )
        for described in answer["InstanceTypes"]:
            return answers.limits(described)
        raise CloudGone(
            Cause.EC2_GONE,
            f"DescribeInstanceTypes knows no {instance_type}",
            evidence={"action": "DescribeInstanceTypes", "instance_type": instance_type},
        )

    async def describe_enis(self) -> tuple[Eni, ...]:
        """See `Cloud.describe_enis`."""
        instance_id = self._instance.instance_id
        found = await self._network_interfaces(
            {"Name": "attachment.instance-id", "Values": [instance_id]}, {"instance_id": instance_id}
        )
        attached = [(answer, at) for answer in found if (at := answers.attachment(answer)) is not None]
        await self._learn_subnet_cidrs((SubnetId(one["SubnetId"]), Mac(one["MacAddress"])) for one, _ in attached)
        enis = [
            answers.eni(
                answer,
                at,
                excluded=answer["SubnetId"] in self._excluded,
                subnet_cidr=self._subnet_cidrs[SubnetId(answer["SubnetId"])],
                instance_id=instance_id,
                policy=self._policy,
            )
            for answer, at in attached
        ]
        return tuple(sorted(enis, key=lambda eni: (eni.card, eni.device)))

    async def describe_subnets(self) -> tuple[Subnet, ...]:
        """See `Cloud.describe_subnets`. Empty when the tags leave none."""
        found = await self._subnets(
            {"Name": "vpc-id", "Values": [self._instance.vpc_id]},
            {"Name": "availability-zone", "Values": [self._instance.zone]},
        )
        return answers.usable_subnets(found, instance=self._instance, policy=self._policy)

    async def _network_interfaces(self, wanted: FilterTypeDef, ids: Evidence) -> list[NetworkInterfaceTypeDef]:
        request: DescribeNetworkInterfacesRequestTypeDef = {"Filters": [wanted], "MaxResults": _PAGE_SIZE}
        found: list[NetworkInterfaceTypeDef] = []
        while True:
            page = await self._calls.run(
                "DescribeNetworkInterfaces", self._client.describe_network_interfaces(**request), ids
            )
            found += page["NetworkInterfaces"]
            if not (token := page.get("NextToken")):
                return found
            request["NextToken"] = token

    async def _subnets(self, *wanted: FilterTypeDef) -> list[SubnetTypeDef]:
        request: DescribeSubnetsRequestTypeDef = {"Filters": wanted, "MaxResults": _PAGE_SIZE}
        found: list[SubnetTypeDef] = []
        while True:
            page = await self._calls.run(
                "DescribeSubnets", self._client.describe_subnets(**request), {"vpc_id": self._instance.vpc_id}
            )
            found += page["Subnets"]
            if not (token := page.get("NextToken")):
                break
            request["NextToken"] = token
        for one in found:
            subnet_id = SubnetId(one["SubnetId"])
            self._subnet_cidrs[subnet_id] = IPv4Network(one.get("CidrBlock") or answers.NO_ADDRESS)
            is_excluded = tags.subnet_is_excluded(answers.tags(one.get("Tags", ())), policy=self._policy)
            (self._excluded.add if is_excluded else self._excluded.discard)(subnet_id)
        return found

    async def _learn_subnet_cidrs(self, wanted: Iterable[tuple[SubnetId, Mac]]) -> None:
        """Have the CIDR of each subnet: from memory, else from IMDS by an ENI in it, else one DescribeSubnets."""
        unknown: set[SubnetId] = set()
        for subnet_id, mac in wanted:
            if subnet_id in self._subnet_cidrs:
                continue
            cidr = await self._listed_subnet_cidr(mac)
            if cidr is None:
                unknown.add(subnet_id)
            else:
                self._subnet_cidrs[subnet_id] = cidr
        await self._require_subnets(unknown)

    async def _require_subnets(self, wanted: set[SubnetId]) -> None:
        unknown = wanted - self._subnet_cidrs.keys()
        if unknown:
            await self._subnets({"Name": "subnet-id", "Values": sorted(unknown)})
        for subnet_id in unknown - self._subnet_cidrs.keys():
            raise CloudGone(Cause.EC2_GONE, f"EC2 lists no subnet {subnet_id}", evidence={"subnet_id": subnet_id})

    async def _listed_subnet_cidr(self, mac: Mac) -> IPv4Network | None:
        try:
            return await self._metadata.subnet_cidr(mac)
        except CloudFailed:
            return None  # EC2 knows it too

    # --- Changing ----------------------------------------------------------------------------------------------------

    async def create_eni(
        self, *, device: int, subnet_id: SubnetId, security_groups: Sequence[str], kind: BlockKind, count: int
    ) -> Eni:
        """See `Cloud.create_eni`.

        Cancel: the change goes on to its end in the background; the next describe shows the ENI, attached.
        """
        await self._require_subnets({subnet_id})
        created, attached = await self._finished(
            self._changes.create_and_attach(device, (subnet_id, tuple(security_groups), kind, count)),
            name=f"create ENI at device {device}",
        )
        return answers.eni(
            created,
            attached,
            subnet_cidr=self._subnet_cidrs[subnet_id],
            instance_id=self._instance.instance_id,
            policy=self._policy,
        )

    async def delete_eni(self, eni: Eni) -> None:
        """See `Cloud.delete_eni`. Two requests, unless EC2 is slow to let go.

        Raises: ValueError for the primary and for somebody else's ENI: a bug.
        Cancel: the removal goes on to its end in the background.
        """
        if eni.is_primary or not eni.managed:
            raise ValueError(f"{eni.eni_id} is not ours to delete")
        await self._finished(self._changes.remove(eni.eni_id, eni.mac, eni.attachment_id), name=f"delete {eni.eni_id}")

    async def set_security_groups(self, eni_id: EniId, security_groups: Sequence[str]) -> None:
        """See `Cloud.set_security_groups`."""
        await self._changes.set_security_groups(eni_id, security_groups)

    async def delete_with_instance(self, eni: Eni) -> None:
        """See `Cloud.delete_with_instance`."""
        await self._changes.delete_with_instance(eni.eni_id, eni.attachment_id)

    async def assign_blocks(self, eni_id: EniId, kind: BlockKind, count: int) -> tuple[Block, ...]:
        """See `Cloud.assign_blocks`."""
        request: AssignPrivateIpAddressesRequestTypeDef = {"NetworkInterfaceId": eni_id}
        match kind:
            case BlockKind.IPV4_ADDRESS:
                request["SecondaryPrivateIpAddressCount"] = count
            case BlockKind.IPV4_PREFIX:
                request["Ipv4PrefixCount"] = count
            case _:
                assert_never(kind)
        answer = await self._calls.run(
            "AssignPrivateIpAddresses",
            self._client.assign_private_ip_addresses(**request),
            {"eni_id": eni_id, "kind": kind, "count": count},
        )
        return answers.granted(answer)

    async def unassign_blocks(self, eni_id: EniId, blocks: Sequence[Block]) -> None:
        """See `Cloud.unassign_blocks`.

        EC2 refuses the whole request for one block the ENI does not have; then what it has is looked up, and the
        rest is given back: two more requests.
        """
        for kind in BlockKind:
            of_kind = [block for block in blocks if block.kind is kind]
            if of_kind:
                await self._unassign_present(eni_id, kind, of_kind)

    async def _unassign_present(self, eni_id: EniId, kind: BlockKind, blocks: Sequence[Block]) -> None:
        try:
            await self._unassign(eni_id, kind, blocks)
        except CloudFailed as error:
            if not says_not_assigned(error):
                raise
            found = await self._changes.one_network_interface(eni_id)
            present = {block for one in found for block in answers.blocks(one)}
            still_there = [block for block in blocks if block in present]
            if still_there:
                await self._unassign(eni_id, kind, still_there)

    async def _unassign(self, eni_id: EniId, kind: BlockKind, blocks: Sequence[Block]) -> None:
        request: UnassignPrivateIpAddressesRequestTypeDef = {"NetworkInterfaceId": eni_id}
        match kind:
            case BlockKind.IPV4_ADDRESS:
                request["PrivateIpAddresses"] = [str(block) for block in blocks]
            case BlockKind.IPV4_PREFIX:
                request["Ipv4Prefixes"] = [str(block) for block in blocks]
            case _:
                assert_never(kind)
        await self._calls.run(
            "UnassignPrivateIpAddresses",
            self._client.unassign_private_ip_addresses(**request),
            {"eni_id": eni_id, "kind": kind, "count": len(blocks)},
        )

    async def _finished(self, change: Coroutine[Any, Any, T], *, name: str) -> T:
        return await asyncio.shield(self._transactions.begin(change, name=name))
