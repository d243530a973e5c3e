"""The instance metadata service, asked from inside nodes and from pods behind them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sim import namespaces
from sim.model.config import REALISTIC_TIMINGS
from tests.kernel.sim_program import Node, RunningSim, eventually, http_from, running_sim

IMDS = "169.254.169.254"
TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"


@pytest.fixture(scope="module")
def sim() -> Iterator[RunningSim]:
    with running_sim("--nodes", "2", "--latency", "none") as running:
        yield running


@pytest.fixture(scope="module")
def node(sim: RunningSim) -> Node:
    return sim.nodes[0]


@pytest.fixture(scope="module")
def token(node: Node) -> str:
    status, text, headers = http_from(node.namespace, IMDS, "PUT", "/latest/api/token", {TTL: "21600"})
    assert status == 200
    assert headers[TTL.lower()] == "21600"
    return text


def read(node: Node, token: str, path: str) -> tuple[int, str]:
    status, text, _ = http_from(node.namespace, IMDS, "GET", path, {TOKEN: token})
    return status, text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({TTL: "1"}, 200),
        ({TTL: "21600"}, 200),
        ({}, 400),
        ({TTL: "0"}, 400),
        ({TTL: "21601"}, 400),
        ({TTL: "-5"}, 400),
        ({TTL: "sixty"}, 400),
        ({TTL: "60", "X-Forwarded-For": "10.0.0.4"}, 403),
    ],
)
def test_token_request(node: Node, headers: dict[str, str], status: int) -> None:
    assert http_from(node.namespace, IMDS, "PUT", "/latest/api/token", headers)[0] == status


def test_nothing_without_a_good_token(sim: RunningSim, token: str) -> None:
    first, second = sim.nodes
    path = "/latest/meta-data/instance-id"
    assert http_from(first.namespace, IMDS, "GET", path)[0] == 401
    assert read(first, "made-up", path)[0] == 401
    assert read(second, token, path)[0] == 401
    assert read(first, token, path) == (200, first.instance_id)


def test_token_expires(node: Node) -> None:
    began_s = time.monotonic()
    short = http_from(node.namespace, IMDS, "PUT", "/latest/api/token", {TTL: "1"})[1]
    # On a machine so slow that its second is over already, only its end can be seen.
    assert read(node, short, "/latest/meta-data/mac")[0] == 200 or time.monotonic() - began_s > 1.0
    eventually(lambda: read(node, short, "/latest/meta-data/mac")[0] == 401, "the end of the token")


def test_unknown_path_is_a_page_that_says_so(node: Node, token: str) -> None:
    for path in ("/latest/meta-data/spot/instance-action", "/latest/user-data", "/2001-01-01/meta-data/mac"):
        status, text = read(node, token, path)
        assert status == 404
        assert "<title>404 - Not Found</title>" in text
    assert http_from(node.namespace, IMDS, "POST", "/latest/meta-data/mac", {TOKEN: token})[0] == 405


def test_identity_of_each_node(sim: RunningSim) -> None:
    for each in sim.nodes:
        token = http_from(each.namespace, IMDS, "PUT", "/latest/api/token", {TTL: "60"})[1]
        dashed = each.primary_address.replace(".", "-")
        expected = {
            "instance-id": each.instance_id,
            "instance-type": "m5.large",
            "instance-life-cycle": "on-demand",
            "mac": each.primary_mac,
            "local-ipv4": each.primary_address,
            "local-hostname": f"ip-{dashed}.us-west-2.compute.internal",
            "hostname": f"ip-{dashed}.us-west-2.compute.internal",
            "placement/availability-zone": "us-west-2a",
            "placement/availability-zone-id": "usw2-az1",
            "placement/region": "us-west-2",
            "services/domain": "amazonaws.com",
            "services/partition": "aws",
            "security-groups": "default",
        }
        found = {path: read(each, token, f"/latest/meta-data/{path}") for path in expected}
        assert found == {path: (200, text) for path, text in expected.items()}
        assert read(each, token, "/latest/meta-data/ami-id")[1].startswith("ami-")
        document = json.loads(read(each, token, "/latest/dynamic/instance-identity/document")[1])
        assert document["instanceId"] == each.instance_id
        assert document["privateIp"] == each.primary_address
        assert document["region"] == "us-west-2"
        assert document["accountId"] == "123456789012"


def test_listings_mark_categories_with_a_slash(node: Node, token: str) -> None:
    assert read(node, token, "/latest/")[1].split() == ["dynamic/", "meta-data/"]
    listing = read(node, token, "/latest/meta-data/")[1].splitlines()
    assert {"iam/", "network/", "placement/", "services/", "instance-id", "mac"} <= set(listing)
    macs = f"{node.primary_mac}/"
    for path in ("/latest/meta-data/network/interfaces/macs", "/latest/meta-data/network/interfaces/macs/"):
        assert read(node, token, path) == (200, macs)


def test_interfaces_follow_ec2(sim: RunningSim, node: Node, token: str) -> None:
    eni = sim.attach_eni(node, device=1, SecondaryPrivateIpAddressCount=2, Description="second")
    eni_id = eni["NetworkInterfaceId"]
    at = f"/latest/meta-data/network/interfaces/macs/{eni['MacAddress']}"
    addresses = [a["PrivateIpAddress"] for a in eni["PrivateIpAddresses"]]
    expected = {
        "interface-id": eni_id,
        "device-number": "1",
        "network-card": "0",
        "subnet-id": eni["SubnetId"],
        "vpc-id": eni["VpcId"],
        "security-group-ids": eni["Groups"][0]["GroupId"],
        "local-ipv4s": "\n".join(addresses),
        "subnet-ipv4-cidr-block": "10.0.0.0/24",
        "vpc-ipv4-cidr-block": "10.0.0.0/16",
        "vpc-ipv4-cidr-blocks": "10.0.0.0/16",
        "owner-id": "123456789012",
        "mac": eni["MacAddress"],
    }
    assert {item: read(node, token, f"{at}/{item}") for item in expected} == {k: (200, v) for k, v in expected.items()}
    fields = read(node, token, at)[1].splitlines()
    assert set(expected) <= set(fields)
    # What it does not have is neither listed nor there.
    for absent in ("ipv4-prefix", "ipv6s", "ipv6-prefix", "subnet-ipv6-cidr-blocks"):
        assert absent not in fields
        assert read(node, token, f"{at}/{absent}")[0] == 404
    prefix = sim.ec2.assign_private_ip_addresses(NetworkInterfaceId=eni_id, Ipv4PrefixCount=1)
    assert read(node, token, f"{at}/ipv4-prefix") == (200, prefix["AssignedIpv4Prefixes"][0]["Ipv4Prefix"])
    sim.ec2.detach_network_interface(AttachmentId=eni["Attachment"]["AttachmentId"])
    assert read(node, token, at)[0] == 404
    sim.ec2.delete_network_interface(NetworkInterfaceId=eni_id)


def test_role_credentials(node: Node, token: str) -> None:
    base = "/latest/meta-data/iam/security-credentials/"
    role = read(node, token, base)[1]
    credentials = json.loads(read(node, token, base + role)[1])
    assert credentials["Code"] == "Success"
    assert credentials["AccessKeyId"].startswith("ASIA")
    assert credentials["SecretAccessKey"]
    assert credentials["Token"]
    expires = datetime.strptime(credentials["Expiration"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert (expires - datetime.now(UTC)).total_seconds() > 3600
    assert read(node, token, base + "another-role")[0] == 404


SDK_SCRIPT = """
import asyncio, boto3, json
from aiobotocore.session import get_session
from botocore.utils import InstanceMetadataRegionFetcher
region = InstanceMetadataRegionFetcher(timeout=5, num_attempts=1).retrieve_region()
session = boto3.Session(region_name=region)
credentials = session.get_credentials()
found = session.client("ec2").describe_instances()["Reservations"]
ids = sorted(i["InstanceId"] for r in found for i in r["Instances"])
async def asynchronous():
    return await (await get_session().get_credentials()).get_access_key()
same = asyncio.run(asynchronous()) == credentials.access_key
print(json.dumps({"region": region, "method": credentials.method, "instances": ids, "same_in_aiobotocore": same}))
"""


def test_unconfigured_sdk_finds_role_and_region(sim: RunningSim, node: Node, tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),  # noqa: TID251 - what the child starts from
        "HOME": str(tmp_path),
        "AWS_ENDPOINT_URL_EC2": sim.ready["ec2_endpoint_in_vpc"],
    }
    done = subprocess.run(
        ["ip", "netns", "exec", node.namespace, sys.executable, "-c", SDK_SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "region": "us-west-2",
        "method": "iam-role",
        "instances": sorted(n.instance_id for n in sim.nodes),
        "same_in_aiobotocore": True,
    }


@pytest.fixture
def hops(sim: RunningSim, node: Node) -> Iterator[tuple[str, str]]:
    """A pod one hop behind the node, and another one hop behind that; the node sends both out with its own address."""
    pod, far = f"{sim.name}-pod", f"{sim.name}-far"
    namespaces.create(pod)
    namespaces.create(far)
    try:
        node.run("ip", "link", "add", "pod0", "type", "veth", "peer", "name", "eth0", "netns", pod)
        node.run("ip", "address", "add", "192.168.0.1/24", "dev", "pod0")
        node.run("ip", "link", "set", "pod0", "up")
        node.run("ip", "route", "add", "192.168.1.0/24", "via", "192.168.0.2", "dev", "pod0", "onlink")
        namespaces.ip_batch(
            pod,
            (
                "address add 192.168.0.2/24 dev eth0",
                "link set eth0 up",
                "route add default via 192.168.0.1",
                f"link add far0 type veth peer name eth0 netns {far}",
                "address add 192.168.1.1/24 dev far0",
                "link set far0 up",
            ),
        )
        namespaces.set_sysctls(pod, {"ipv4/ip_forward": 1})
        namespaces.ip_batch(
            far, ("address add 192.168.1.2/24 dev eth0", "link set eth0 up", "route add default via 192.168.1.1")
        )
        namespaces.nft(
            node.namespace,
            "table ip hops { chain out {\ntype nat hook postrouting priority srcnat; oifname ens5 masquerade\n}\n}\n",
        )
        yield pod, far
    finally:
        namespaces.nft(node.namespace, "table ip hops\ndelete table ip hops\n")
        namespaces.delete(far)
        namespaces.delete(pod)


def test_token_reaches_a_pod_but_no_further(hops: tuple[str, str], node: Node) -> None:
    pod, far = hops
    status, token, _ = http_from(pod, IMDS, "PUT", "/latest/api/token", {TTL: "60"})
    assert status == 200
    assert http_from(pod, IMDS, "GET", "/latest/meta-data/instance-id", {TOKEN: token})[1] == node.instance_id
    # Only the answer to the PUT is limited: with a token from elsewhere, metadata is read from any distance.
    assert http_from(far, IMDS, "GET", "/latest/meta-data/instance-id", {TOKEN: token})[1] == node.instance_id
    with pytest.raises(TimeoutError):
        http_from(far, IMDS, "PUT", "/latest/api/token", {TTL: "60"}, timeout_s=1)


def test_requests_are_counted_by_instance(sim: RunningSim, token: str) -> None:
    first, second = sim.nodes
    path = "/latest/meta-data/placement/region"

    def counted(node: Node, key: str) -> int:
        return int(sim.control("/imds").get(node.instance_id, {}).get(key, 0))

    before = [counted(first, f"GET {path[1:]}"), counted(first, "404"), counted(second, f"GET {path[1:]}")]
    read(first, token, path)
    read(first, token, "/latest/meta-data/made-up")
    after = [counted(first, f"GET {path[1:]}"), counted(first, "404"), counted(second, f"GET {path[1:]}")]
    assert after == [before[0] + 1, before[1] + 1, before[2]]


def test_metadata_lags_behind_ec2() -> None:
    with running_sim("--nodes", "1", "--latency", "real") as sim:
        node = sim.nodes[0]
        token = http_from(node.namespace, IMDS, "PUT", "/latest/api/token", {TTL: "60"})[1]
        at = f"/latest/meta-data/network/interfaces/macs/{node.primary_mac}/local-ipv4s"
        assert read(node, token, at) == (200, node.primary_address)
        began_s = time.monotonic()
        granted = sim.ec2.assign_private_ip_addresses(
            NetworkInterfaceId=node.primary_eni_id, SecondaryPrivateIpAddressCount=1
        )
        seen = read(node, token, at)
        is_late = time.monotonic() - began_s > REALISTIC_TIMINGS.imds_lag_s  # on a machine that is very slow
        assert seen == (200, node.primary_address) or is_late
        both = f"{node.primary_address}\n{granted['AssignedPrivateIpAddresses'][0]['PrivateIpAddress']}"
        eventually(lambda: read(node, token, at) == (200, both), "metadata that shows the new address")
