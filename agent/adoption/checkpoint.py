"""Pure: the AWS plugin's file of allocations, `/var/run/aws-node/ipam.json`, version `vpc-cni-ipam/1`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from typing import Any, Final

VERSION: Final = "vpc-cni-ipam/1"
NETWORK_NAME: Final = "aws-cni"
"""Name of the network configuration list that the AWS plugin installs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One address and who has it.

    allocated_ns: nanoseconds since the Unix epoch. interface_count: of the pod; 0 where the version of the AWS plugin
    that wrote the file does not count them (before 1.20).
    """

    network: str
    container_id: str
    ifname: str
    address: IPv4Address
    allocated_ns: int
    namespace: str
    pod: str
    interface_count: int = 0


class CheckpointInvalid(ValueError):
    """The file is not one we understand wholly; the message says what is wrong and where."""


def parse(text: str) -> tuple[Allocation, ...]:
    """Every allocation, in the file's order.

    Raises: CheckpointInvalid for anything we would have to guess about: another version, IPv6, an entry without a pod's
    name, a pod with several interfaces.
    """
    try:
        document = json.loads(text)
    except ValueError as exc:
        raise CheckpointInvalid(f"it is not JSON: {exc}") from exc
    if not isinstance(document, dict) or document.get("version") != VERSION:
        found = document.get("version") if isinstance(document, dict) else type(document).__name__
        raise CheckpointInvalid(f"its version is {found!r}; only {VERSION!r} is known")
    entries = document.get("allocations")
    if not isinstance(entries, list):
        raise CheckpointInvalid("it has no list of allocations")
    return tuple(_allocation(index, entry) for index, entry in enumerate(entries))


def _allocation(index: int, entry: Any) -> Allocation:
    where = f"allocation {index}"
    if not isinstance(entry, dict):
        raise CheckpointInvalid(f"{where} is not an object")
    metadata = entry.get("metadata") or {}
    if entry.get("ipv6"):
        raise CheckpointInvalid(f"{where} has the IPv6 address {entry['ipv6']}: only IPv4 nodes can be adopted")
    if metadata.get("interfacesCount", 1) > 1:
        raise CheckpointInvalid(f"{where} belongs to a pod with {metadata['interfacesCount']} interfaces")
    values: dict[str, Any] = {name: entry.get(name) for name in ("networkName", "containerID", "ifName", "ipv4")}
    values |= {name: metadata.get(name) for name in ("k8sPodNamespace", "k8sPodName")}
    for name, value in values.items():
        if not isinstance(value, str) or not value:
            raise CheckpointInvalid(f"{where} has no {name}")
    try:
        address = IPv4Address(values["ipv4"])
    except AddressValueError as exc:
        raise CheckpointInvalid(f"{where}: {exc}") from exc
    return Allocation(
        network=values["networkName"],
        container_id=values["containerID"],
        ifname=values["ifName"],
        address=address,
        allocated_ns=int(entry.get("allocationTimestamp", 0)),
        namespace=values["k8sPodNamespace"],
        pod=values["k8sPodName"],
        interface_count=int(metadata.get("interfacesCount", 0)),
    )


def render(allocations: Sequence[Allocation]) -> str:
    """The file's text, as the AWS plugin writes it: compact, one line."""
    entries = [
        {
            "networkName": each.network,
            "containerID": each.container_id,
            "ifName": each.ifname,
            "ipv4": str(each.address),
            "allocationTimestamp": each.allocated_ns,
            "metadata": {
                "k8sPodNamespace": each.namespace,
                "k8sPodName": each.pod,
                **({"interfacesCount": each.interface_count} if each.interface_count else {}),
            },
        }
        for each in allocations
    ]
    return json.dumps({"version": VERSION, "allocations": entries}, separators=(",", ":")) + "\n"
