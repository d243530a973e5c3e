"""The simulated VPC as a program, for tests that send real packets: started, spoken to, and gone afterwards."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.config import Config

from sim import namespaces

ROOT = Path(__file__).resolve().parents[2]
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 60.0
_serial = itertools.count()


def unique_name() -> str:
    return f"ek{os.getpid()}s{next(_serial)}"


def sim_command(verb: str, name: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "sim", verb, "--name", name, *more]


def run_sim(verb: str, name: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        sim_command(verb, name, *more), cwd=ROOT, capture_output=True, text=True, timeout=START_DEADLINE_S, check=False
    )


@dataclass(frozen=True, kw_only=True)
class Node:
    namespace: str
    instance_id: str
    primary_eni_id: str
    primary_address: str
    primary_mac: str
    primary_ifname: str

    def run(self, *command: str, check: bool = True) -> str:
        return in_namespace(self.namespace, *command, check=check).stdout

    def pings(self, destination: str, *options: str, source: str = "") -> bool:
        """Whether one packet is answered."""
        from_source = ("-I", source) if source else ()
        done = in_namespace(
            self.namespace, "ping", "-n", "-c", "1", "-W", "1", *options, *from_source, destination, check=False
        )
        return done.returncode == 0

    def reaches(self, destination: str, *options: str, source: str = "") -> bool:
        """Whether one of several packets is: the first may be lost, as a link becomes usable a moment after the kernel
        says so."""
        return any(self.pings(destination, *options, source=source) for _ in range(5))


@dataclass(frozen=True, kw_only=True)
class RunningSim:
    name: str
    process: subprocess.Popen[str]
    ready: Mapping[str, Any]
    ec2: Any

    @property
    def nodes(self) -> list[Node]:
        return [_node(each) for each in self.control("/nodes")]

    def control(self, path: str) -> Any:
        return httpx.get(self.ready["control"] + path, timeout=30).raise_for_status().json()

    def source_drops(self, eni_id: str) -> int:
        return int(self.control("/drops")[eni_id])

    def attach_eni(self, node: Node, *, device: int, **create: Any) -> dict[str, Any]:
        """Create an ENI in the node's subnet and attach it; answers EC2's description of it afterwards."""
        subnet_id = self.ready["subnets"][0]["subnet_id"]
        eni_id = self.ec2.create_network_interface(SubnetId=subnet_id, **create)["NetworkInterface"][
            "NetworkInterfaceId"
        ]
        self.ec2.attach_network_interface(NetworkInterfaceId=eni_id, InstanceId=node.instance_id, DeviceIndex=device)
        described = self.ec2.describe_network_interfaces(NetworkInterfaceIds=[eni_id])["NetworkInterfaces"][0]
        return dict(described)


def _node(each: Mapping[str, Any]) -> Node:
    return Node(**{key: each[key] for key in Node.__dataclass_fields__})


def in_namespace(namespace: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", namespace, *command], capture_output=True, text=True, timeout=60, check=check
    )


@contextlib.contextmanager
def running_sim(*options: str, name: str = "") -> Iterator[RunningSim]:
    """`python -m sim up` until the block ends; then SIGTERM, and it must end with status 0."""
    name = name or unique_name()
    process = subprocess.Popen(sim_command("up", name, *options), cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        ready = json.loads(_first_line(process))
        yield RunningSim(name=name, process=process, ready=ready, ec2=_ec2_client(ready["ec2_endpoint"]))
        if process.poll() is None:
            process.terminate()
            assert process.wait(STOP_DEADLINE_S) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(STOP_DEADLINE_S)
        if process.stdout is not None:
            process.stdout.close()
        run_sim("down", name)


def _first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(START_DEADLINE_S):
            raise AssertionError(f"the simulator said nothing for {START_DEADLINE_S} s")
    return process.stdout.readline()


def _ec2_client(endpoint: str) -> Any:
    return boto3.client(
        "ec2",
        endpoint_url=endpoint,
        region_name="us-west-2",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=30, read_timeout=30),
    )


def http_from(
    namespace: str,
    host: str,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    *,
    timeout_s: float = 30,
) -> tuple[int, str, Mapping[str, str]]:
    """One HTTP request by a socket inside a namespace: (status, body, headers with lower-case names)."""

    def ask() -> tuple[int, str, Mapping[str, str]]:
        connection = http.client.HTTPConnection(host, 80, timeout=timeout_s)
        try:
            connection.request(method, path, headers=dict(headers or {}))
            answer = connection.getresponse()
            found = {key.lower(): value for key, value in answer.getheaders()}
            return answer.status, answer.read().decode(), found
        finally:
            connection.close()

    return namespaces.run_inside(namespace, ask)


def eventually(condition: Callable[[], bool], what: str, *, deadline_s: float = 60.0) -> None:
    """Poll for something that happens by itself."""
    until_s = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > until_s:
            raise AssertionError(f"not within {deadline_s} s: {what}")
        time.sleep(0.01)


def links(namespace: str) -> dict[str, dict[str, Any]]:
    """`ip address` by interface name."""
    return {each["ifname"]: each for each in _ip_json("-n", namespace, "address")}


def host_link_names() -> set[str]:
    return {each["ifname"] for each in _ip_json("link")}


def _ip_json(*arguments: str) -> Sequence[dict[str, Any]]:
    done = subprocess.run(["ip", "-j", *arguments], capture_output=True, text=True, timeout=30, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found
