"""The IMDS adapter, and the SDK's credentials, against the simulated instance metadata service."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from starlette.types import Receive, Scope, Send

from agent.cloud.imds import ImdsMetadata
from agent.cloud.removal import Patience
from agent.ipam.model import Mac
from sim.imds import MetadataProtocol, MetadataService
from sim.model.config import Timings
from tests.contract.cloud_worlds import (
    NODE_SUBNET,
    OTHER_SUBNET,
    SimWorld,
    adapter,
    sdk_environment,
    second_eni,
    served,
    sim_world,
)


@dataclass(frozen=True, kw_only=True)
class Node:
    """An instance with both its faces of AWS."""

    world: SimWorld
    imds_endpoint: str
    service: MetadataService


@contextmanager
def node(timings: Timings | None = None) -> Iterator[Node]:
    with sim_world(timings) as world:
        service = MetadataService(world.vpc, clock=world.clock)

        async def asked_by_the_instance(scope: Scope, receive: Receive, send: Send) -> None:
            """The service knows instances by the address they ask from; over loopback all are one."""
            client = (str(world.instance.primary_address), 50_000)
            await service.app({**scope, "client": client}, receive, send)

        with served(asked_by_the_instance, http=MetadataProtocol) as endpoint:
            yield Node(world=world, imds_endpoint=endpoint, service=service)


async def test_the_instance_is_who_ec2_says_it_is() -> None:
    with node() as here:
        async with ImdsMetadata(endpoint=here.imds_endpoint) as metadata:
            assert await metadata.instance() == here.world.instance
            assert await metadata.vpc_cidrs(here.world.instance.primary_mac) == here.world.instance.vpc_cidrs
            assert await metadata.subnet_cidr(here.world.instance.primary_mac) == NODE_SUBNET
            assert await metadata.subnet_cidr(Mac("02:ff:ff:ff:ff:ff")) is None


async def test_tokens_are_used_again() -> None:
    with node() as here:
        async with ImdsMetadata(endpoint=here.imds_endpoint) as metadata:
            for _ in range(5):
                await metadata.subnet_cidr(here.world.instance.primary_mac)
        [counts] = here.service.requests().values()
    assert counts["PUT latest/api/token"] == 1


async def test_an_eni_is_listed_once_attached_and_its_removal_takes_two_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patience = Patience(poll_s=0.005, settle_s=0)
    with node(Timings(attach_s=60.0, detach_s=0.3, imds_lag_s=0.05)) as here:
        sdk_environment(monkeypatch, here.world.endpoint)
        async with (
            ImdsMetadata(endpoint=here.imds_endpoint) as metadata,
            adapter(here.world, metadata, patience) as cloud,
        ):
            made = await second_eni(cloud, here.world)
            assert await metadata.subnet_cidr(made.mac) is None
            here.world.clock.ahead_s += 60.0
            assert await metadata.subnet_cidr(made.mac) is None, "attached, and not yet seen here"
            here.world.clock.ahead_s += 60.0
            assert await metadata.subnet_cidr(made.mac) == OTHER_SUBNET
            before = cloud.calls.total()
            await cloud.delete_eni(made)
            assert cloud.calls.total() - before == 2
        assert len(here.world.enis()) == 1


async def test_the_instances_role_is_enough_to_call_ec2(monkeypatch: pytest.MonkeyPatch) -> None:
    with node() as here:
        sdk_environment(monkeypatch, here.world.endpoint, credential=False)
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", here.imds_endpoint)
        async with adapter(here.world) as cloud:
            assert len(await cloud.describe_enis()) == 1
        [*_, last] = here.world.calls.listed()
    assert last.access_key_id.startswith("ASIA")
