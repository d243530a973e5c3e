"""The IMDSv2 client against a service that misbehaves in every documented way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from agent.cloud import imds
from agent.cloud.imds import ImdsMetadata
from agent.errors import Cause, CloudFailed
from agent.ipam.model import Instance, Mac

MAC = Mac("02:00:00:00:00:01")
INTERFACE = f"meta-data/network/interfaces/macs/{MAC}"
ITEMS = {
    "dynamic/instance-identity/document": json.dumps(
        {
            "instanceId": "i-me",
            "accountId": "123456789012",
            "instanceType": "m5.large",
            "region": "us-west-2",
            "availabilityZone": "us-west-2a",
            "privateIp": "10.0.0.9",
        }
    ),
    "meta-data/mac": "02:00:00:00:00:01",
    f"{INTERFACE}/vpc-id": "vpc-1",
    f"{INTERFACE}/vpc-ipv4-cidr-blocks": "10.0.0.0/16\n100.64.0.0/16",
    f"{INTERFACE}/subnet-ipv4-cidr-block": "10.0.0.0/24",
}


@dataclass(kw_only=True)
class Service:
    """IMDSv2 with scripted statuses: each request takes the next one, 200 once the script is over."""

    items: dict[str, str] = field(default_factory=lambda: dict(ITEMS))
    statuses: list[int] = field(default_factory=list)
    token_statuses: list[int] = field(default_factory=list)
    valid_token: str = ""
    tokens_given: int = 0
    requests: list[str] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        path = request.path.removeprefix("/latest/")
        self.requests.append(f"{request.method} {path}")
        if request.method == "PUT":
            return self._token(request)
        status = self.statuses.pop(0) if self.statuses else 200
        if status != 200:
            return web.Response(status=status)
        if request.headers.get("X-aws-ec2-metadata-token") != self.valid_token:
            return web.Response(status=401)
        return web.Response(text=self.items[path]) if path in self.items else web.Response(status=404)

    def _token(self, request: web.Request) -> web.Response:
        status = self.token_statuses.pop(0) if self.token_statuses else 200
        if status != 200:
            return web.Response(status=status)
        assert request.path == "/latest/api/token"
        assert request.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "21600"
        self.tokens_given += 1
        self.valid_token = f"token-{self.tokens_given}"
        return web.Response(text=self.valid_token)


@asynccontextmanager
async def client(service: Service, now_s: list[float] | None = None) -> AsyncIterator[ImdsMetadata]:
    """A client of `service`; `now_s` holds what its clock shows."""
    clock = now_s or [0.0]
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", service.answer)
    async with (
        TestServer(app, host="127.0.0.1") as server,
        ImdsMetadata(endpoint=f"http://127.0.0.1:{server.port}/", clock=lambda: clock[0]) as metadata,
    ):
        yield metadata


async def test_the_instance_costs_one_token_and_four_items() -> None:
    service = Service()
    async with client(service) as metadata:
        assert await metadata.instance() == Instance(
            instance_id="i-me",
            account_id="123456789012",
            instance_type="m5.large",
            region="us-west-2",
            zone="us-west-2a",
            primary_mac=MAC,
            primary_address=IPv4Address("10.0.0.9"),
            vpc_id="vpc-1",
            vpc_cidrs=(IPv4Network("10.0.0.0/16"), IPv4Network("100.64.0.0/16")),
        )
    assert service.requests == [
        "PUT api/token",
        "GET dynamic/instance-identity/document",
        "GET meta-data/mac",
        f"GET {INTERFACE}/vpc-id",
        f"GET {INTERFACE}/vpc-ipv4-cidr-blocks",
    ]


async def test_an_eni_that_is_not_listed_has_no_subnet_yet() -> None:
    service = Service()
    async with client(service) as metadata:
        assert await metadata.subnet_cidr(MAC) == IPv4Network("10.0.0.0/24")
        assert await metadata.subnet_cidr(Mac("02:00:00:00:00:99")) is None
    assert service.tokens_given == 1


async def test_a_refused_token_is_replaced() -> None:
    service = Service()
    async with client(service) as metadata:
        await metadata.subnet_cidr(MAC)
        service.valid_token = "of another boot"
        await metadata.subnet_cidr(MAC)
    assert service.tokens_given == 2
    assert len([one for one in service.requests if one.startswith("GET")]) == 3


async def test_a_token_is_renewed_before_its_life_is_over() -> None:
    service, now_s = Service(), [1000.0]
    async with client(service, now_s) as metadata:
        await metadata.subnet_cidr(MAC)
        now_s[0] += 21_600 * 0.89
        await metadata.subnet_cidr(MAC)
        assert service.tokens_given == 1
        now_s[0] += 21_600 * 0.02
        await metadata.subnet_cidr(MAC)
    assert service.tokens_given == 2
    assert "401" not in str(service.requests)


@pytest.mark.parametrize("status", [500, 503, 429, 403])
async def test_a_passing_failure_is_tried_again(status: int) -> None:
    service = Service(statuses=[status, status])
    async with client(service) as metadata:
        assert await metadata.subnet_cidr(MAC) == IPv4Network("10.0.0.0/24")
    assert len([one for one in service.requests if one.startswith("GET")]) == 3


async def test_a_failing_token_request_is_tried_again() -> None:
    service = Service(token_statuses=[500, 500])
    async with client(service) as metadata:
        assert await metadata.subnet_cidr(MAC) == IPv4Network("10.0.0.0/24")


async def test_a_service_that_refuses_every_token_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imds, "_DEADLINE_S", 0.2)
    service = Service(statuses=[401] * 1000)
    async with client(service) as metadata:
        with pytest.raises(CloudFailed) as raised:
            await metadata.subnet_cidr(MAC)
    assert raised.value.cause is Cause.IMDS_UNAVAILABLE
    assert "401" in raised.value.message
    assert service.tokens_given < 20


async def test_nobody_there_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imds, "_DEADLINE_S", 0.2)
    endpoint = f"http://127.0.0.1:{unused_port()}"
    async with ImdsMetadata(endpoint=endpoint) as metadata:
        with pytest.raises(CloudFailed) as raised:
            await metadata.instance()
    assert raised.value.cause is Cause.IMDS_UNAVAILABLE
    assert raised.value.evidence["endpoint"] == endpoint
    assert "hop limit" in raised.value.remedy


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("dynamic/instance-identity/document", "<html>"),
        ("dynamic/instance-identity/document", "{}"),
        ("dynamic/instance-identity/document", "[]"),
        ("dynamic/instance-identity/document", None),
        ("meta-data/mac", None),
        (f"{INTERFACE}/vpc-id", None),
        (f"{INTERFACE}/vpc-ipv4-cidr-blocks", "fd00::/8"),
    ],
)
async def test_something_that_is_not_an_instances_metadata_is_said_to_be(path: str, text: str | None) -> None:
    items = ITEMS | {path: text} if text is not None else {key: ITEMS[key] for key in ITEMS if key != path}
    async with client(Service(items=dict(items))) as metadata:
        with pytest.raises(CloudFailed) as raised:
            await metadata.instance()
    assert raised.value.cause is Cause.IMDS_UNAVAILABLE


async def test_a_subnet_that_is_no_network_is_said_to_be() -> None:
    path = f"{INTERFACE}/subnet-ipv4-cidr-block"
    async with client(Service(items={path: "soon"})) as metadata:
        with pytest.raises(CloudFailed) as raised:
            await metadata.subnet_cidr(MAC)
    assert raised.value.evidence["path"] == path
