"""IMDS-only mode against the simulated metadata service: the same ENIs as EC2 describes, without asking EC2."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.cloud.imds import ImdsMetadata
from agent.cloud.imds_only import ImdsOnlyCloud
from agent.errors import Cause, CloudFailed
from agent.ipam.model import BlockKind, Eni, InstanceLimits
from tests.contract.cloud_worlds import adapter, sdk_environment, second_eni
from tests.contract.test_cloud_imds import Node, node


async def seen_by_imds(here: Node) -> tuple[Eni, ...]:
    async with ImdsMetadata(endpoint=here.imds_endpoint) as metadata:
        return await ImdsOnlyCloud(instance=here.world.instance, metadata=metadata).describe_enis()


def without_what_imds_does_not_say(eni: Eni) -> Eni:
    return replace(eni, attachment_id="", made_by_us=False, delete_on_termination=True)


async def test_it_shows_what_ec2_shows_and_asks_ec2_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with node() as here:
        sdk_environment(monkeypatch, here.world.endpoint)
        async with adapter(here.world) as cloud:
            made = await second_eni(cloud, here.world, count=3)
            await cloud.assign_blocks(made.eni_id, BlockKind.IPV4_PREFIX, 1)
            by_ec2 = await cloud.describe_enis()
        here.world.calls.clear()
        assert await seen_by_imds(here) == tuple(without_what_imds_does_not_say(eni) for eni in by_ec2)
        assert here.world.calls.listed() == ()


async def test_limits_are_the_tables_or_the_largest() -> None:
    with node() as here:
        async with ImdsMetadata(endpoint=here.imds_endpoint) as metadata:
            cloud = ImdsOnlyCloud(instance=here.world.instance, metadata=metadata)
            known = await cloud.limits("m5.large")
            assert known == InstanceLimits(instance_type="m5.large", eni_count=3, addresses_per_eni=10)
            unknown = await cloud.limits("m9.gigantic")
            assert unknown.eni_count >= 15
            assert unknown.addresses_per_eni >= 50


async def test_nothing_can_be_changed() -> None:
    with node() as here:
        async with ImdsMetadata(endpoint=here.imds_endpoint) as metadata:
            cloud = ImdsOnlyCloud(instance=here.world.instance, metadata=metadata)
            [primary] = await cloud.describe_enis()
            assert await cloud.describe_subnets() == ()
            for change in (
                cloud.create_eni(
                    device=1,
                    subnet_id=primary.subnet_id,
                    security_groups=primary.security_groups,
                    kind=BlockKind.IPV4_ADDRESS,
                    count=1,
                ),
                cloud.delete_eni(primary),
                cloud.set_security_groups(primary.eni_id, ["sg-1"]),
                cloud.delete_with_instance(primary),
                cloud.assign_blocks(primary.eni_id, BlockKind.IPV4_ADDRESS, 1),
                cloud.unassign_blocks(primary.eni_id, []),
            ):
                with pytest.raises(ValueError, match="IMDS-only"):
                    await change
        asked = {call.action for call in here.world.calls.listed()}
        assert not {action for action in asked if not action.startswith("Describe")}


class ScriptedMetadata(ImdsMetadata):
    """Items from a table; nothing else exists."""

    def __init__(self, items: dict[str, str]) -> None:
        super().__init__()
        self._items = items

    async def item(self, path: str) -> str | None:
        return self._items.get(path.removeprefix("meta-data/network/interfaces/macs/"))


A, B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
FIELDS = "device-number\ninterface-id\nlocal-ipv4s\nsubnet-id\nsubnet-ipv4-cidr-block"
WHOLE = {
    "device-number": "3",
    "interface-id": "eni-1",
    "local-ipv4s": "10.0.0.5\n10.0.0.6",
    "subnet-id": "subnet-1",
    "subnet-ipv4-cidr-block": "10.0.0.0/24",
}


def items(mac: str, **changed: str | None) -> dict[str, str]:
    found = {**WHOLE, **{key.replace("_", "-"): value for key, value in changed.items()}}
    present = {name: value for name, value in found.items() if value is not None}
    return {f"{mac}/": "\n".join(present)} | {f"{mac}/{name}": value for name, value in present.items()}


async def test_oddities_of_imds() -> None:
    with node() as here:
        instance = replace(here.world.instance, primary_mac=A)  # type: ignore[arg-type]  # a text is enough here
    vanished = {f"{B}/": FIELDS}
    shown = {"": f"{A}/\n{B}/"} | items(A) | vanished
    [primary] = await ImdsOnlyCloud(instance=instance, metadata=ScriptedMetadata(shown)).describe_enis()
    assert primary.is_primary, "its device number is not 0, but its MAC is the instance's"
    assert primary.managed
    shown = {"": f"{A}/\n{B}/"} | items(A) | items(B, local_ipv4s=None, subnet_ipv4_cidr_block=None)
    _, efa_only = await ImdsOnlyCloud(instance=instance, metadata=ScriptedMetadata(shown)).describe_enis()
    assert not efa_only.managed, "without an address it is no use to pods"
    shown = {"": f"{A}/\n{B}/"} | items(A) | items(B, local_ipv4s="10.0.0.300")
    with pytest.raises(CloudFailed) as raised:
        await ImdsOnlyCloud(instance=instance, metadata=ScriptedMetadata(shown)).describe_enis()
    assert raised.value.cause is Cause.IMDS_UNAVAILABLE
    assert raised.value.evidence["mac"] == B
