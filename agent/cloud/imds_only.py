"""A node whose ENIs and addresses somebody else provides, and which never asks EC2: everything comes from IMDS.

Implements `agent.ports.cloud.Cloud` for ENABLE_IMDS_ONLY_MODE. IMDS lags behind EC2 and has neither tags nor interface
types, so an ENI with an address is taken for one that pods may use, and changes cannot be made. What IMDS lists and the
kernel has no link for is not used: its set-up waits for the link.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network

from agent.cloud.answers import NO_ADDRESS
from agent.cloud.imds import ImdsMetadata
from agent.cloud.limits import bundled_limits, largest_limits
from agent.errors import Cause, CloudFailed
from agent.ipam.model import Block, BlockKind, Eni, EniId, Instance, InstanceLimits, Mac, Subnet, SubnetId

_MACS = "meta-data/network/interfaces/macs"


class ImdsOnlyCloud:
    """Every method that would change something raises ValueError: the pool must not plan in this mode."""

    def __init__(self, *, instance: Instance, metadata: ImdsMetadata) -> None:
        self._instance = instance
        self._metadata = metadata

    async def limits(self, instance_type: str) -> InstanceLimits:
        """See `Cloud.limits`. A type newer than the table gets the largest ones: nothing will be asked for by them."""
        return bundled_limits(instance_type) or largest_limits(instance_type)

    async def describe_enis(self) -> tuple[Eni, ...]:
        """See `Cloud.describe_enis`. 1 + 7 items for an ENI, one more when it has prefixes.

        Raises: CloudFailed(imds_unavailable) also for an answer that makes no sense.
        """
        listed = await self._metadata.item(f"{_MACS}/")
        enis = [await self._eni(Mac(line.strip().rstrip("/").lower())) for line in (listed or "").split()]
        found = [eni for eni in enis if eni is not None]
        return tuple(sorted(found, key=lambda eni: (eni.card, eni.device)))

    async def describe_subnets(self) -> tuple[Subnet, ...]:
        """None: no ENI is made in this mode."""
        return ()

    async def create_eni(
        self, *, device: int, subnet_id: SubnetId, security_groups: Sequence[str], kind: BlockKind, count: int
    ) -> Eni:
        """Never in this mode."""
        raise _changes_nothing(f"an ENI at device {device} in {subnet_id} with {count} {kind} and {security_groups}")

    async def delete_eni(self, eni: Eni) -> None:
        """Never in this mode."""
        raise _changes_nothing(f"deleting {eni.eni_id}")

    async def set_security_groups(self, eni_id: EniId, security_groups: Sequence[str]) -> None:
        """Never in this mode."""
        raise _changes_nothing(f"{security_groups} for {eni_id}")

    async def delete_with_instance(self, eni: Eni) -> None:
        """Never in this mode."""
        raise _changes_nothing(f"DeleteOnTermination of {eni.eni_id}")

    async def assign_blocks(self, eni_id: EniId, kind: BlockKind, count: int) -> tuple[Block, ...]:
        """Never in this mode."""
        raise _changes_nothing(f"{count} {kind} for {eni_id}")

    async def unassign_blocks(self, eni_id: EniId, blocks: Sequence[Block]) -> None:
        """Never in this mode."""
        raise _changes_nothing(f"giving {len(blocks)} blocks of {eni_id} back")

    async def _eni(self, mac: Mac) -> Eni | None:
        """One ENI; None when it has vanished while it was read."""
        names = {name.rstrip("/") for name in (await self._metadata.item(f"{_MACS}/{mac}/") or "").split()}
        wanted = names & {
            "device-number",
            "interface-id",
            "ipv4-prefix",
            "local-ipv4s",
            "network-card",
            "security-group-ids",
            "subnet-id",
            "subnet-ipv4-cidr-block",
        }
        items = {name: await self._metadata.item(f"{_MACS}/{mac}/{name}") or "" for name in sorted(wanted)}
        if not items.get("interface-id"):
            return None
        try:
            return _parsed(mac, items, is_primary=mac == self._instance.primary_mac)
        except (ValueError, KeyError) as error:
            raise CloudFailed(
                Cause.IMDS_UNAVAILABLE,
                f"IMDS has nothing useful at {_MACS}/{mac}: {error!r}",
                evidence={"mac": mac, **items},
                retry_after_s=5,
            ) from error


def _parsed(mac: Mac, items: dict[str, str], *, is_primary: bool) -> Eni:
    """Raises: ValueError, KeyError."""
    addresses = [IPv4Address(text) for text in items.get("local-ipv4s", "").split()]
    prefixes = items.get("ipv4-prefix", "").split()
    cidr = items.get("subnet-ipv4-cidr-block", "").strip()
    return Eni(
        eni_id=EniId(items["interface-id"].strip()),
        mac=mac,
        card=0 if is_primary else int(items.get("network-card") or 0),
        # IMDS has been seen with another number for the primary ENI (amazon-vpc-cni-k8s, imds.go).
        device=0 if is_primary else int(items["device-number"]),
        subnet_id=SubnetId(items["subnet-id"].strip()),
        subnet_cidr=IPv4Network(cidr or NO_ADDRESS),
        primary_address=addresses[0] if addresses else NO_ADDRESS,
        blocks=tuple(Block(network=IPv4Network(text)) for text in (*addresses[1:], *prefixes)),
        attachment_id="",
        security_groups=tuple(items.get("security-group-ids", "").split()),
        delete_on_termination=True,
        managed=bool(addresses),
    )


def _changes_nothing(what: str) -> ValueError:
    return ValueError(f"in IMDS-only mode nothing is changed: {what}")
