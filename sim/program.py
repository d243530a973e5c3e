"""The program: a VPC, the fabric that makes it real, and everything that answers on it, in one process and one loop.

| where | what |
|---|---|
| 127.0.0.1:<ec2 port>, outside all namespaces | EC2's Query API |
| 203.0.113.20:80, on the internet of the VPC | the same, for nodes |
| 169.254.169.254:80, in the fabric | the instance metadata service |
| 203.0.113.5:80 and UDP 7777, on the internet | the address the internet saw |
| 127.0.0.1:<control port>, outside all namespaces | `sim.control`, and the routes below |

What the control endpoint answers besides `sim.control`:

| route | what |
|---|---|
| GET /nodes | running instances and their namespaces |
| GET /drops | packets dropped because EC2 does not know their (ENI, source), by ENI |
| GET /drops/internet | packets the internet gateway refused, `out` and `in` |
| GET /imds | metadata requests, by instance and result |
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from sim import namespaces
from sim.control import create_app as control_app
from sim.ec2.app import create_app as ec2_app
from sim.ec2.budget import Budget
from sim.ec2.calls import CallLog
from sim.ec2.latency import Latency
from sim.fabric import EC2_ADDRESS, INTERNET_ADDRESS, Fabric, remove_leftovers
from sim.fabric_batches import METADATA_ADDRESS
from sim.fabric_internet import HTTP_PORT, UDP_PORT, PeerEcho, peer_app
from sim.fabric_name import Refused, hold_name
from sim.faults import Faults
from sim.imds import MetadataProtocol, MetadataService
from sim.model.config import REALISTIC_TIMINGS, SubnetConfig, Timings, VpcConfig
from sim.model.errors import Ec2Error
from sim.model.vpc import Vpc

_LOOPBACK = IPv4Address("127.0.0.1")
_START_DEADLINE_S = 10
_DRAIN_DEADLINE_S = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What `up` was asked for. Port 0: a free one.

    subnets: of the VPC, the nodes in the first one; all in one availability zone.
    realistic: take EC2's time for everything, and its request limits; else answer at once and never throttle.
    state_file: where to write what is printed when ready; None for nowhere.
    """

    name: str
    node_count: int
    instance_type: str
    ec2_port: int
    control_port: int
    vpc_cidr: IPv4Network
    subnets: tuple[IPv4Network, ...]
    realistic: bool
    state_file: Path | None


def up(options: Options) -> None:
    """Run a simulated VPC until SIGTERM or SIGINT, then remove everything it made.

    Prints one line of JSON on stdout when everything answers. What a killed run of the same name left is removed first.

    Raises: Refused when the name is bad or held by a living run, when a port is taken, when the VPC or its nodes cannot
    be as asked for, or without root.
    """
    stray = [str(subnet) for subnet in options.subnets if not subnet.subnet_of(options.vpc_cidr)]
    if stray:
        raise Refused(f"Not in the VPC's {options.vpc_cidr}: {', '.join(stray)}.")
    with hold_name(options.name):
        remove_leftovers(options.name)
        asyncio.run(_run(options))


def down(name: str) -> None:
    """Remove what a killed run left. Idempotent.

    Raises: Refused when a run of that name is alive, or without root.
    """
    with hold_name(name):
        remove_leftovers(name)


async def _run(options: Options) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    world = _World(options)
    try:
        world.build()
        async with asyncio.TaskGroup() as tasks:
            servers = world.servers()
            for server in servers:
                tasks.create_task(server.serve(server.listeners))
            await world.echo_datagrams()
            async with asyncio.timeout(_START_DEADLINE_S):
                for server in servers:
                    await server.answers.wait()
            with _announced(world.description(), options.state_file):
                await stop.wait()
            for server in servers:
                server.should_exit = True
    finally:
        world.remove()


@contextlib.contextmanager
def _announced(description: Mapping[str, object], state_file: Path | None) -> Iterator[None]:
    line = json.dumps(description) + "\n"
    if state_file is not None:
        draft = state_file.with_name(state_file.name + ".new")
        draft.write_text(line, encoding="utf-8")
        draft.replace(state_file)
    sys.stdout.write(line)
    sys.stdout.flush()
    try:
        yield
    finally:
        if state_file is not None:
            state_file.unlink(missing_ok=True)


class _Server(uvicorn.Server):
    """A uvicorn server on sockets made elsewhere, which leaves signals to the program and says when it answers."""

    def __init__(
        self, app: ASGIApp, listeners: list[socket.socket], *, protocol: type[H11Protocol] = H11Protocol
    ) -> None:
        config = uvicorn.Config(
            app,
            http=protocol,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # who asks is who the packet comes from, whatever a header says
            timeout_graceful_shutdown=_DRAIN_DEADLINE_S,
        )
        super().__init__(config)
        self.listeners = listeners
        self.answers = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.answers.set()


class _World:
    """The parts of one run, put together."""

    def __init__(self, options: Options) -> None:
        self._options = options
        config = VpcConfig(cidrs=(options.vpc_cidr,), subnets=tuple(SubnetConfig(cidr=c) for c in options.subnets))
        self._vpc = Vpc(config, timings=REALISTIC_TIMINGS if options.realistic else Timings())
        self._fabric = Fabric(options.name, self._vpc)
        self._faults = Faults()
        self._budget = Budget() if options.realistic else None
        self._latency = Latency.realistic() if options.realistic else Latency()
        self._calls = CallLog()
        self._metadata = MetadataService(self._vpc, clock=time.time)
        self._ec2_listener = _host_listener(options.ec2_port)
        self._control_listener = _host_listener(options.control_port)

    def build(self) -> None:
        """Make the namespaces and launch the nodes.

        Raises: Refused when EC2 would not launch them.
        """
        self._fabric.build()
        first_subnet = next(iter(self._vpc.state.subnets))
        try:
            for _ in range(self._options.node_count):
                self._vpc.run_instance(self._options.instance_type, first_subnet, now_s=time.time())
        except Ec2Error as exc:
            raise Refused(f"The nodes cannot be launched: {exc.code}: {exc.message}") from exc

    def remove(self) -> None:
        self._fabric.remove()

    def servers(self) -> list[_Server]:
        """One per application; their sockets listen when this returns."""
        internet = self._fabric.internet_namespace
        ec2_in_vpc = namespaces.listen_tcp(internet, EC2_ADDRESS, HTTP_PORT)
        metadata = namespaces.listen_tcp(self._fabric.vpc_namespace, METADATA_ADDRESS, HTTP_PORT)
        return [
            _Server(self._ec2_app(), [self._ec2_listener, ec2_in_vpc]),
            _Server(self._control_app(), [self._control_listener]),
            _Server(self._metadata.app, [metadata], protocol=MetadataProtocol),
            _Server(peer_app, [namespaces.listen_tcp(internet, INTERNET_ADDRESS, HTTP_PORT)]),
        ]

    async def echo_datagrams(self) -> None:
        """Answer UDP on the internet, as long as the loop runs."""
        bound = namespaces.bind_udp(self._fabric.internet_namespace, INTERNET_ADDRESS, UDP_PORT)
        await asyncio.get_running_loop().create_datagram_endpoint(PeerEcho, sock=bound)

    def description(self) -> dict[str, object]:
        """What is printed when everything answers: where things are."""
        return {
            "name": self._options.name,
            "pid": os.getpid(),
            "region": self._vpc.state.vpc.region,
            "vpc_id": self._vpc.state.vpc.vpc_id,
            "vpc_cidrs": [str(cidr) for cidr in self._vpc.state.vpc.cidrs],
            "subnets": [{"subnet_id": s.subnet_id, "cidr": str(s.cidr)} for s in self._vpc.state.subnets.values()],
            "ec2_endpoint": _url(self._ec2_listener),
            "ec2_endpoint_in_vpc": f"http://{EC2_ADDRESS}",
            "control": _url(self._control_listener),
            "internet": {"http": f"http://{INTERNET_ADDRESS}", "address": str(INTERNET_ADDRESS), "udp_port": UDP_PORT},
            "namespaces": {"vpc": self._fabric.vpc_namespace, "internet": self._fabric.internet_namespace},
            "nodes": self._nodes(),
        }

    def _nodes(self) -> list[dict[str, str]]:
        nodes = []
        for instance_id, namespace in self._fabric.node_namespaces.items():
            primary = self._vpc.state.enis_of(instance_id)[0]
            nodes.append(
                {
                    "namespace": namespace,
                    "instance_id": instance_id,
                    "instance_type": self._vpc.state.instances[instance_id].instance_type,
                    "primary_eni_id": primary.eni_id,
                    "primary_address": str(primary.primary_address),
                    "primary_mac": primary.mac,
                    "primary_ifname": "ens5",
                }
            )
        return nodes

    def _ec2_app(self) -> ASGIApp:
        return ec2_app(
            self._vpc,
            clock=time.time,
            faults=self._faults,
            budget=self._budget,
            latency=self._latency,
            calls=self._calls,
        )

    def _control_app(self) -> ASGIApp:
        app = control_app(
            self._vpc,
            clock=time.time,
            faults=self._faults,
            budget=self._budget,
            latency=self._latency,
            calls=self._calls,
        )

        @app.get("/drops")
        async def source_drops() -> Mapping[str, int]:
            return self._fabric.drops().source_check

        @app.get("/drops/internet")
        async def internet_drops() -> dict[str, int]:
            drops = self._fabric.drops()
            return {"out": drops.internet_out, "in": drops.internet_in}

        @app.get("/nodes")
        async def nodes() -> list[dict[str, str]]:
            return self._nodes()

        @app.get("/imds")
        async def metadata_requests() -> Mapping[str, Mapping[str, int]]:
            return self._metadata.requests()

        return app


def _host_listener(port: int) -> socket.socket:
    try:
        return namespaces.tcp_listener(_LOOPBACK, port)
    except OSError as exc:
        raise Refused(f"Port {port} of 127.0.0.1 cannot be used: {exc.strerror}.") from exc


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()
    return f"http://{host}:{port}"
