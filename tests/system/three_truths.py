"""What the agent, the kernel and EC2 each say about a node: the oracle of the system tests.

All three are asked from outside: the agent over its socket, the kernel with `ip` and `nft`, EC2 with boto3.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Collection, Container
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import boto3

from ctl.client import Client
from lab import agent_api
from lab.lab import Lab, LabNode

POD_TABLE = "20512"
RELEASED_TABLE = "20513"
ATTACHED_GROUPS = range(20000, 20064)
"""Link groups of host veths; the last digits say which ENI."""
LEAVING_GROUP = 20099
"""What a DEL leaves to the namespace's end."""

COMMAND_DEADLINE_S = 20.0


def netns(node: LabNode) -> Path:
    return Path("/run/netns") / node.namespace


def run_in(namespace: Path, *argv: str, check: bool = True) -> str:
    """Standard output of a command inside a network namespace."""
    done = subprocess.run(
        ["nsenter", f"--net={namespace}", "--", *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=COMMAND_DEADLINE_S,
    )
    assert done.returncode == 0 or not check, f"{argv} in {namespace}: {done.stdout}{done.stderr}"
    return done.stdout


# ---- the agent


def allocations(node: LabNode) -> dict[str, str]:
    """Container id to address."""
    return {item["container_id"]: item["addresses"][0] for item in agent_api.get(node.socket, "/v1/allocations")}


def counts(node: LabNode) -> dict[str, int]:
    """Addresses by state: `free_count`, `held_count`, `cooling_count`, ..."""
    found: dict[str, int] = agent_api.get(node.socket, "/v1/pool")["counts"]
    return found


def waiter_count(node: LabNode) -> int:
    return int(agent_api.get(node.socket, "/v1/pool")["waiter_count"])


def log_events(node: LabNode, event: str = "") -> list[dict[str, Any]]:
    """The agent's log lines of one event, or all; a line that is not JSON (a traceback on its own) is an error."""
    lines = [json.loads(line) for line in node.log.read_text().splitlines()]
    return [line for line in lines if event in {"", line["event"]}]


def address_events(node: LabNode) -> list[dict[str, Any]]:
    """What the agent remembers of its addresses' changes, oldest first: `at`, and `fields` with `before`, `after`..."""
    return [one.data for one in Client(str(node.socket)).events(after=0, follow=False) if one.name == "address"]


# ---- the kernel


def pod_routes(node: LabNode) -> dict[str, str]:
    """Pod address to host veth."""
    # The table exists only while it holds a route; asking for it fails without one.
    listed = run_in(netns(node), "ip", "-json", "route", "show", "table", POD_TABLE, check=False)
    return {route["dst"]: route["dev"] for route in json.loads(listed or "[]")}


def host_links(node: LabNode, groups: Container[int] = (*ATTACHED_GROUPS, LEAVING_GROUP)) -> dict[str, str]:
    """Host veth of ours in one of `groups` to its alias."""
    listed = json.loads(run_in(netns(node), "ip", "-json", "-details", "link", "show", "type", "veth"))
    return {
        link["ifname"]: link.get("ifalias", "")
        for link in listed
        if link and str(link.get("group", "")).isdigit() and int(link["group"]) in groups
    }


def set_elements(node: LabNode) -> dict[str, set[str]]:
    """Addresses in each set and map of table `inet enoki`."""
    listed = json.loads(run_in(netns(node), "nft", "--json", "list", "table", "inet", "enoki"))["nftables"]
    found: dict[str, set[str]] = {}
    for item in listed:
        for kind in ("set", "map"):
            if kind in item:
                found[item[kind]["name"]] = {_key(element) for element in item[kind].get("elem", [])}
    return found


def cooling(node: LabNode) -> set[str]:
    """Addresses in the kernel's cooldown set, or on their way into it."""
    # One table alone cannot be asked for while it holds no route.
    listed = json.loads(run_in(netns(node), "ip", "-N", "-4", "-json", "route", "show", "table", "all"))
    uptime_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    on_the_way = {one["dst"] for one in listed if one.get("table") == RELEASED_TABLE and one["metric"] > uptime_s}
    return on_the_way | set_elements(node)["cooling"]


def _key(element: Any) -> str:
    """`element` is a value, an object `{"elem": {"val": value, ...}}`, or in a map a pair of such a key and a value."""
    match element:
        case [key, _]:
            return _key(key)
        case {"elem": {"val": value}}:
            return _key(value)
        case _:
            return element if isinstance(element, str) else json.dumps(element)


def attached_links(node: LabNode) -> set[str]:
    """Host veths that are somebody's."""
    return set(host_links(node, ATTACHED_GROUPS))


# ---- EC2


class Ec2:
    """EC2 as an outsider sees it."""

    def __init__(self, vpc: Lab) -> None:
        self._client = boto3.client(
            "ec2",
            region_name="us-west-2",
            endpoint_url=vpc.announced["ec2_endpoint"],
            aws_access_key_id="x",
            aws_secret_access_key="x",
        )

    def pod_addresses(self, node: LabNode) -> set[str]:
        """Secondary addresses of every ENI of a node, those of prefixes included."""
        every = [address for eni in self.enis(node) for address in eni["PrivateIpAddresses"]]
        single = {address["PrivateIpAddress"] for address in every if not address["Primary"]}
        return single | {str(address) for prefix in self.prefixes(node) for address in prefix}

    def prefixes(self, node: LabNode) -> set[IPv4Network]:
        """The /28 prefixes of every ENI of a node."""
        return {IPv4Network(one["Ipv4Prefix"]) for eni in self.enis(node) for one in eni.get("Ipv4Prefixes", ())}

    def prefix_of(self, node: LabNode, address: str) -> IPv4Network | None:
        """The prefix an address is part of; None for a single address."""
        return next((prefix for prefix in self.prefixes(node) if IPv4Address(address) in prefix), None)

    def enis(self, node: LabNode) -> list[Any]:
        """What is attached to a node, as EC2 describes it."""
        of_node = [{"Name": "attachment.instance-id", "Values": [node.instance_id]}]
        found: list[Any] = self._client.describe_network_interfaces(Filters=of_node)["NetworkInterfaces"]
        return found

    def available_enis(self) -> list[Any]:
        """What is attached to nothing."""
        available = [{"Name": "status", "Values": ["available"]}]
        found: list[Any] = self._client.describe_network_interfaces(Filters=available)["NetworkInterfaces"]
        return found

    def delete_eni(self, eni_id: str) -> None:
        self._client.delete_network_interface(NetworkInterfaceId=eni_id)

    def take_pod_addresses(self, node: LabNode) -> None:
        """Unassign them all; the node's agent must not run."""
        for eni in self.enis(node):
            own = [one["PrivateIpAddress"] for one in eni["PrivateIpAddresses"] if not one["Primary"]]
            if own:
                self._client.unassign_private_ip_addresses(
                    NetworkInterfaceId=eni["NetworkInterfaceId"], PrivateIpAddresses=own
                )


# ---- all three


def assert_agreed(node: LabNode, ec2: Ec2, live: dict[str, str]) -> None:
    """Exactly the containers of `live` hold addresses: theirs, each one's own, and EC2 knows every one.

    Links are not looked at: a released one may stay until its namespace has gone.
    """
    assert allocations(node) == live
    assert set(pod_routes(node)) == set(live.values())
    assert len(set(live.values())) == len(live), live
    assert set(live.values()) <= ec2.pod_addresses(node)
    found = counts(node)
    assert (found["held_count"], found["quarantined_count"]) == (len(live), 0)


def owners(node: LabNode) -> set[str]:
    """Container ids in the aliases of our host veths; an empty one stands for a link without an alias."""
    return {alias.split(" ")[1] if alias else "" for alias in host_links(node).values()}


def addresses_outside_cooling(node: LabNode, addresses: Collection[str]) -> dict[str, set[str]]:
    """Sets and maps, other than `cooling`, in which one of `addresses` is."""
    return {
        name: elements & set(addresses)
        for name, elements in set_elements(node).items()
        if name != "cooling" and elements & set(addresses)
    }
