"""EC2 and instance metadata, as the agent asks them. The rules for every method are in agent/ports."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import Protocol

from agent.ipam.model import (
    Block,
    BlockKind,
    Eni,
    EniId,
    Instance,
    InstanceLimits,
    Mac,
    Subnet,
    SubnetId,
)


class Metadata(Protocol):
    """IMDSv2: identity, never the truth about pod addresses."""

    async def instance(self) -> Instance:
        """Who this node is.

        Raises: CloudFailed(imds_unavailable) after its deadline; the caller retries.
        """
        ...

    async def subnet_cidr(self, mac: Mac) -> IPv4Network | None:
        """The subnet of an attached ENI, or None while IMDS does not list the ENI yet."""
        ...


class Cloud(Protocol):
    """EC2, for this instance. Retries belong to the pool loop: one call here is one request, but for paging."""

    async def limits(self, instance_type: str) -> InstanceLimits:
        """From the bundled table; one DescribeInstanceTypes when the type is unknown there.

        Raises: CloudGone when EC2 does not know the type either.
        """
        ...

    async def describe_enis(self) -> tuple[Eni, ...]:
        """Every ENI attached (or attaching) to this instance, primary first. One DescribeNetworkInterfaces.

        Raises: CloudFailed and its subclasses.
        """
        ...

    async def describe_subnets(self) -> tuple[Subnet, ...]:
        """Subnets a new ENI may be made in, best first. One DescribeSubnets."""
        ...

    async def create_eni(
        self, *, device: int, subnet_id: SubnetId, security_groups: Sequence[str], kind: BlockKind, count: int
    ) -> Eni:
        """Create, attach and set DeleteOnTermination: three calls.

        kind, count: the blocks asked for in the create call, beside the ENI's own primary address.
        The answer's `blocks` are what EC2 granted. When attach or modify fails, the ENI is deleted before raising.

        Raises: CloudLimit (subnet_exhausted, subnet_fragmented, ec2_limit), CloudThrottled, CloudDenied, CloudFailed.
        Idempotent: the create call carries a client token.
        Cancel: an unattached ENI carries our tags and is found by the leak sweep.
        """
        ...

    async def delete_eni(self, eni: Eni) -> None:
        """Detach, wait until available, delete. An ENI that is gone already is success."""
        ...

    async def set_security_groups(self, eni_id: EniId, security_groups: Sequence[str]) -> None:
        """Replace the security groups of an ENI. One call.

        Raises: CloudGone, CloudLimit, CloudThrottled, CloudDenied, CloudFailed. Idempotent.
        """
        ...

    async def delete_with_instance(self, eni: Eni) -> None:
        """Have an attached ENI deleted when its instance is terminated (DeleteOnTermination). One call. Idempotent."""
        ...

    async def assign_blocks(self, eni_id: EniId, kind: BlockKind, count: int) -> tuple[Block, ...]:
        """Ask for `count` more blocks of a kind; the ones granted (perhaps fewer).

        Raises: CloudLimit(ec2_limit: the ENI is full; subnet_exhausted; subnet_fragmented: too few whole /28 are free),
        CloudGone, CloudThrottled, CloudDenied, CloudFailed.
        Idempotent: no; observe before calling again. Cancel: a granted address is found by the next describe.
        """
        ...

    async def unassign_blocks(self, eni_id: EniId, blocks: Sequence[Block]) -> None:
        """Give blocks back: one call per kind. Blocks the ENI does not have are success."""
        ...
