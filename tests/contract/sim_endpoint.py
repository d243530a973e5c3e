"""The simulated EC2 on real loopback HTTP, for tests that drive it with unmodified clients."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import boto3
import httpx
import uvicorn.config
import uvicorn.server
from botocore.config import Config
from starlette.types import ASGIApp

from sim import control
from sim.ec2 import app as ec2
from sim.ec2.budget import Budget
from sim.ec2.calls import CallLog
from sim.ec2.latency import Latency
from sim.faults import Faults
from sim.model.config import AddressPlacement, SubnetConfig, Timings, VpcConfig
from sim.model.vpc import Vpc

REGION = "us-west-2"
CONFIG = VpcConfig(
    subnets=(
        SubnetConfig(
            cidr=IPv4Network("10.0.0.0/24"), ipv6_cidr=IPv6Network("2600:1f13:a:b00::/64"), tags={"Name": "nodes"}
        ),
        SubnetConfig(cidr=IPv4Network("10.0.1.0/27")),
        SubnetConfig(cidr=IPv4Network("10.0.2.0/24"), availability_zone="us-west-2b", availability_zone_id="usw2-az2"),
    ),
    ipv6_cidrs=(IPv6Network("2600:1f13:a:b00::/56"),),
    placement=AddressPlacement.LOWEST,
    seed=1,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A running simulator.

    url: of the EC2 endpoint. control: a client of the control endpoint.
    subnets: identifiers, in the order of `CONFIG`.
    """

    url: str
    control: httpx.Client
    subnets: tuple[str, ...]

    def boto3(self, access_key_id: str = "AKIDEXAMPLE") -> Any:
        """An unmodified client that does not retry."""
        return boto3.client(
            "ec2",
            endpoint_url=self.url,
            region_name=REGION,
            aws_access_key_id=access_key_id,
            aws_secret_access_key="secret",
            config=Config(retries={"total_max_attempts": 1}, connect_timeout=60, read_timeout=60),
        )

    def launch(self, instance_type: str = "m5.large", subnet: int = 0) -> str:
        """Run an instance; its identifier."""
        answer = self.control.post(
            "/instances", json={"instance_type": instance_type, "subnet_id": self.subnets[subnet]}
        )
        answer.raise_for_status()
        return str(answer.json()["instance_id"])

    def state(self) -> dict[str, Any]:
        answer = self.control.get("/state")
        answer.raise_for_status()
        return dict(answer.json())

    def script(self, action: str, effect: dict[str, object], **more: object) -> None:
        """Add a scripted fault."""
        self.control.post("/faults", json={"action": action, "effect": effect, **more}).raise_for_status()


def signed(access_key_id: str = "AKIDWIRE", *, region: str = REGION, ago_s: float = 0.0) -> dict[str, str]:
    """The headers of a request by hand, as Signature Version 4 makes them; nobody verifies the signature itself."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(time.time() - ago_s))
    scope = f"{access_key_id}/{moment[:8]}/{region}/ec2/aws4_request"
    authorization = f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host;x-amz-date, Signature=0"
    return {"Authorization": authorization, "X-Amz-Date": moment}


@contextmanager
def running_sim(
    *,
    config: VpcConfig = CONFIG,
    timings: Timings | None = None,
    budget: Budget | None = None,
    clock: Callable[[], float] = time.time,
) -> Iterator[Endpoint]:
    """EC2 and control endpoints on loopback ports, in a thread with one event loop, for as long as the block runs."""
    vpc = Vpc(config, timings=timings)
    parts: dict[str, Any] = {
        "clock": clock,
        "faults": Faults(),
        "budget": budget,
        "latency": Latency(),
        "calls": CallLog(),
    }
    with (
        _serving(ec2.create_app(vpc, **parts), control.create_app(vpc, **parts)) as (ec2_url, control_url),
        httpx.Client(base_url=control_url, timeout=60) as client,
    ):
        yield Endpoint(url=ec2_url, control=client, subnets=tuple(vpc.state.subnets))


@contextmanager
def _serving(*apps: ASGIApp) -> Iterator[list[str]]:
    sockets = [_listener() for _ in apps]
    servers = [uvicorn.server.Server(uvicorn.config.Config(app, lifespan="off", log_level="critical")) for app in apps]

    async def serve() -> None:
        async with asyncio.TaskGroup() as group:
            for server, listener in zip(servers, sockets, strict=True):
                group.create_task(server.serve(sockets=[listener]))

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    try:
        yield [f"http://127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    finally:
        for server in servers:
            server.should_exit = server.force_exit = True
        thread.join(timeout=60)
        for each in sockets:
            each.close()
        assert not thread.is_alive()


def _listener() -> socket.socket:
    """A listening loopback socket: clients may connect at once.

    The protocol is named because asyncio switches Nagle's algorithm off only for sockets that say they are TCP; with it
    on, every answer waits 40 ms for a delayed acknowledgement.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener
