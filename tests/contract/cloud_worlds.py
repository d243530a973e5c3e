"""Two EC2s for the adapter: moto's server, and the simulated VPC. Each with one running m5.large and nothing else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import boto3
import pytest
import uvicorn.config
import uvicorn.server
from aiobotocore.session import get_session
from moto.server import ThreadedMotoServer
from starlette.types import ASGIApp, Receive, Scope, Send

from agent.cloud import ec2
from agent.cloud.ec2 import Ec2Cloud
from agent.cloud.policy import CloudPolicy
from agent.cloud.removal import Patience
from agent.ipam.model import BlockKind, Eni, Instance, Mac, SubnetId
from agent.ports.cloud import Cloud, Metadata
from sim.ec2.app import create_app
from sim.ec2.calls import CallLog, CallRecord
from sim.ec2.latency import Latency
from sim.faults import Faults
from sim.model.config import SubnetConfig, Timings, VpcConfig
from sim.model.vpc import Vpc

REGION = "us-west-2"
ZONE = "us-west-2a"
INSTANCE_TYPE = "m5.large"
NODE_SUBNET = IPv4Network("10.0.0.0/24")
OTHER_SUBNET = IPv4Network("10.0.1.0/26")
OTHER_SUBNET_TAGS = {"kubernetes.io/role/cni": "1"}
QUICK = Patience(poll_s=0.005, unlisted_s=0.05, settle_s=0, retry_s=0.01, whole_s=10)
NOW = datetime(2026, 3, 1, 12, 30, 5, tzinfo=UTC)
POLICY = CloudPolicy(cluster_name="blue", additional_eni_tags=(("team", "net"),))


@dataclass(kw_only=True)
class FixedMetadata:
    """IMDS as a table of attached MACs."""

    facts: Instance
    cidrs: dict[Mac, IPv4Network] = field(default_factory=dict)

    async def instance(self) -> Instance:
        return self.facts

    async def subnet_cidr(self, mac: Mac) -> IPv4Network | None:
        return self.cidrs.get(mac)


@dataclass(frozen=True, kw_only=True)
class World:
    """An EC2 endpoint with one instance. boto3: an independent client, to look and to meddle with."""

    name: str
    endpoint: str
    instance: Instance
    boto3: Any
    subnet_ids: tuple[str, str]
    security_group: str

    def enis(self) -> list[Any]:
        """Every ENI of the account, as EC2 tells an independent client."""
        return list(self.boto3.describe_network_interfaces()["NetworkInterfaces"])

    def remove_secondary_enis(self) -> None:
        """Whatever a test left behind."""
        for eni in self.enis():
            attachment = eni.get("Attachment")
            if attachment and attachment["DeviceIndex"] == 0:
                continue
            if attachment:
                self.boto3.detach_network_interface(AttachmentId=attachment["AttachmentId"])
            self.boto3.delete_network_interface(NetworkInterfaceId=eni["NetworkInterfaceId"])

    @property
    def metadata(self) -> FixedMetadata:
        return FixedMetadata(facts=self.instance, cidrs={self.instance.primary_mac: NODE_SUBNET})


class Clock:
    """The time of the simulator; a test may let it pass."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead_s


class AwaitedCalls(CallLog):
    """A log that a test can wait for; the simulator answers in a thread of its own."""

    def __init__(self) -> None:
        super().__init__()
        self._awaited: dict[str, asyncio.Future[None]] = {}

    def next_of(self, action: str) -> asyncio.Future[None]:
        """Done when the next call of `action` is about to be answered."""
        self._awaited[action] = asyncio.get_running_loop().create_future()
        return self._awaited[action]

    def record(self, call: CallRecord) -> None:
        super().record(call)
        if (awaited := self._awaited.pop(call.action, None)) is not None:
            awaited.get_loop().call_soon_threadsafe(awaited.set_result, None)


@dataclass(frozen=True, kw_only=True)
class SimWorld(World):
    """The simulator's parts, to script faults and read its own count of calls."""

    vpc: Vpc
    faults: Faults
    calls: AwaitedCalls
    user_agents: set[str]
    clock: Clock


def _client(endpoint: str) -> Any:
    return boto3.client(
        "ec2",
        region_name=REGION,
        endpoint_url=endpoint,
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="secret",
    )


def _described(client: Any, instance_id: str) -> tuple[Instance, str]:
    """The instance as IMDS would show it, and its security group; all from EC2's own answers."""
    [reservation] = client.describe_instances(InstanceIds=[instance_id])["Reservations"]
    [answer] = reservation["Instances"]
    [eni] = answer["NetworkInterfaces"]
    [vpc] = client.describe_vpcs(VpcIds=[eni["VpcId"]])["Vpcs"]
    instance = Instance(
        instance_id=instance_id,
        account_id=eni["OwnerId"],
        instance_type=answer["InstanceType"],
        region=REGION,
        zone=answer["Placement"]["AvailabilityZone"],
        primary_mac=Mac(eni["MacAddress"]),
        primary_address=IPv4Address(eni["PrivateIpAddress"]),
        vpc_id=eni["VpcId"],
        vpc_cidrs=(IPv4Network(vpc["CidrBlock"]),),
    )
    return instance, eni["Groups"][0]["GroupId"]


def sdk_environment(monkeypatch: pytest.MonkeyPatch, endpoint: str, *, credential: bool = True) -> None:
    """What an SDK finds in its environment: the endpoint, perhaps a credential, and nothing of this machine's."""
    for name in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", endpoint)
    if not credential:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
        return
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    # Clients of one session share its parsed EC2 model, which takes most of a test's time.
    monkeypatch.setattr(ec2, "get_session", lambda: _SESSION)


_SESSION = get_session()


@contextmanager
def moto_world() -> Iterator[World]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        client = _client(endpoint)
        vpc_id = client.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
        subnet_ids = tuple(
            client.create_subnet(VpcId=vpc_id, CidrBlock=str(cidr), AvailabilityZone=ZONE)["Subnet"]["SubnetId"]
            for cidr in (NODE_SUBNET, OTHER_SUBNET)
        )
        client.create_tags(
            Resources=[subnet_ids[1]], Tags=[{"Key": k, "Value": v} for k, v in OTHER_SUBNET_TAGS.items()]
        )
        image_id = client.describe_images()["Images"][0]["ImageId"]
        [launched] = client.run_instances(
            ImageId=image_id, MinCount=1, MaxCount=1, InstanceType=INSTANCE_TYPE, SubnetId=subnet_ids[0]
        )["Instances"]
        instance, group = _described(client, launched["InstanceId"])
        yield World(
            name="moto",
            endpoint=endpoint,
            instance=instance,
            boto3=client,
            subnet_ids=(subnet_ids[0], subnet_ids[1]),
            security_group=group,
        )
    finally:
        server.stop()


@contextmanager
def sim_world(timings: Timings | None = None, more_subnets: tuple[SubnetConfig, ...] = ()) -> Iterator[SimWorld]:
    vpc = Vpc(
        VpcConfig(
            subnets=(
                SubnetConfig(cidr=NODE_SUBNET),
                SubnetConfig(cidr=OTHER_SUBNET, tags=OTHER_SUBNET_TAGS),
                *more_subnets,
            )
        ),
        timings=timings,
    )
    faults, calls, clock = Faults(), AwaitedCalls(), Clock()
    app = create_app(vpc, clock=clock, faults=faults, budget=None, latency=Latency(), calls=calls)
    user_agents: set[str] = set()

    async def noting_user_agents(scope: Scope, receive: Receive, send: Send) -> None:
        user_agents.add(dict(scope["headers"])[b"user-agent"].decode())
        await app(scope, receive, send)

    with served(noting_user_agents) as endpoint:
        client = _client(endpoint)
        subnets = {one["CidrBlock"]: one["SubnetId"] for one in client.describe_subnets()["Subnets"]}
        subnet_ids = (subnets[str(NODE_SUBNET)], subnets[str(OTHER_SUBNET)])
        launched = vpc.run_instance(INSTANCE_TYPE, subnet_ids[0], now_s=time.time())
        instance, group = _described(client, launched.instance_id)
        yield SimWorld(
            name="sim",
            endpoint=endpoint,
            instance=instance,
            boto3=client,
            subnet_ids=subnet_ids,
            security_group=group,
            vpc=vpc,
            faults=faults,
            calls=calls,
            user_agents=user_agents,
            clock=clock,
        )


@contextmanager
def served(app: ASGIApp, **options: Any) -> Iterator[str]:
    """Serve an ASGI application on a free port of loopback, in a thread; yields its URL."""
    config = uvicorn.config.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="off", **options)
    server = uvicorn.server.Server(config)
    listener = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        listener.close()


@asynccontextmanager
async def adapter(
    world: World, metadata: Metadata | None = None, patience: Patience = QUICK
) -> AsyncIterator[Ec2Cloud]:
    cloud = Ec2Cloud(
        instance=world.instance,
        metadata=metadata or world.metadata,
        policy=POLICY,
        version="0.0",
        patience=patience,
        now=lambda: NOW,
    )
    async with cloud:
        yield cloud


async def second_eni(cloud: Cloud, world: World, *, count: int = 2, kind: BlockKind = BlockKind.IPV4_ADDRESS) -> Eni:
    return await cloud.create_eni(
        device=1,
        subnet_id=SubnetId(world.subnet_ids[1]),
        security_groups=[world.security_group],
        kind=kind,
        count=count,
    )
