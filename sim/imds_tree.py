"""What the instance metadata service says about one instance, as a tree of texts. Pure.

Sources: EC2 User Guide, "Instance metadata categories", "Instance identity documents", "Retrieve security credentials
from instance metadata". A slash at the end changes nothing: the guide shows both forms, and SDKs use both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TypeAlias

from sim.model.records import EniRecord
from sim.model.vpc import ImdsView

Tree: TypeAlias = Mapping[str, "str | Tree"]
"""A category is a tree, an item is its text."""

ROLE = "enoki-sim-node"
VERSIONS = ("1.0", "2016-09-02", "2021-07-15", "2023-12-07", "latest")
"""A few of the real ones; each shows the same."""
CREDENTIAL_LIFE_S = 6 * 3600
CREDENTIAL_ROTATION_S = 3600
"""Real ones live about six hours, and new ones are there at least five minutes before the old ones expire."""
_ACCOUNT_DOMAIN = "amazonaws.com"


def instance_tree(view: ImdsView, *, now_s: float) -> Tree:
    """Everything below `/latest/`. now_s: seconds since the Unix epoch; dates the credentials."""
    return {
        "dynamic": {"instance-identity": {"document": _identity_document(view)}},
        "meta-data": _metadata(view, now_s),
    }


def lookup(tree: Tree, path: str) -> str | None:
    """The text at `path` (`a/b`, with or without a slash at the end), a category's listing, or None.

    A listing has one entry per line, categories with a slash at the end.
    """
    node: str | Tree = tree
    for part in filter(None, path.split("/")):
        if isinstance(node, str) or part not in node:
            return None
        node = node[part]
    if isinstance(node, str):
        return node
    return _lines(name if isinstance(child, str) else f"{name}/" for name, child in sorted(node.items()))


def _metadata(view: ImdsView, now_s: float) -> Tree:
    primary = view.enis[0]
    hostname = _hostname(view, primary)
    return {
        "ami-id": view.instance.image_id,
        "ami-launch-index": "0",
        "ami-manifest-path": "(unknown)",
        "hostname": hostname,
        "iam": {
            "info": _iam_info(view, now_s),
            "security-credentials": {ROLE: _credentials(view.instance.instance_id, now_s)},
        },
        "instance-action": "none",
        "instance-id": view.instance.instance_id,
        "instance-life-cycle": "on-demand",
        "instance-type": view.instance.instance_type,
        **({"ipv6": str(primary.ipv6_addresses[0])} if primary.ipv6_addresses else {}),
        "local-hostname": hostname,
        "local-ipv4": str(primary.primary_address),
        "mac": primary.mac,
        "network": {"interfaces": {"macs": {eni.mac: _interface(view, eni) for eni in view.enis}}},
        "placement": {
            "availability-zone": view.instance.availability_zone,
            "availability-zone-id": view.subnets[view.instance.subnet_id].availability_zone_id,
            "region": view.vpc.region,
        },
        "profile": "default-hvm",
        "reservation-id": "r-" + view.instance.instance_id.removeprefix("i-"),
        "security-groups": _lines(view.security_group_names[g] for g in primary.security_group_ids),
        "services": {"domain": _ACCOUNT_DOMAIN, "partition": "aws"},
        "system": "nitro",
    }


def _interface(view: ImdsView, eni: EniRecord) -> Tree:
    """One entry of `network/interfaces/macs/`; an item without a value is not listed, as on a real instance."""
    subnet = view.subnets[eni.subnet_id]
    at = eni.attachment
    items = {
        "device-number": str(at.device_index) if at else "",
        "interface-id": eni.eni_id,
        "ipv4-prefix": _lines(eni.ipv4_prefixes),
        "ipv6-prefix": _lines(eni.ipv6_prefixes),
        "ipv6s": _lines(eni.ipv6_addresses),
        "local-hostname": _hostname(view, eni),
        "local-ipv4s": _lines((eni.primary_address, *eni.secondary_addresses)),
        "mac": eni.mac,
        "network-card": str(at.network_card_index) if at else "",
        "owner-id": view.vpc.account_id,
        "security-group-ids": _lines(eni.security_group_ids),
        "security-groups": _lines(view.security_group_names[g] for g in eni.security_group_ids),
        "subnet-id": eni.subnet_id,
        "subnet-ipv4-cidr-block": str(subnet.cidr),
        "subnet-ipv6-cidr-blocks": str(subnet.ipv6_cidr) if subnet.ipv6_cidr else "",
        "vpc-id": eni.vpc_id,
        "vpc-ipv4-cidr-block": str(view.vpc.cidrs[0]),
        "vpc-ipv4-cidr-blocks": _lines(view.vpc.cidrs),
        "vpc-ipv6-cidr-blocks": _lines(view.vpc.ipv6_cidrs),
    }
    return {name: value for name, value in items.items() if value}


def _identity_document(view: ImdsView) -> str:
    document = {
        "accountId": view.vpc.account_id,
        "architecture": "x86_64",
        "availabilityZone": view.instance.availability_zone,
        "billingProducts": None,
        "devpayProductCodes": None,
        "imageId": view.instance.image_id,
        "instanceId": view.instance.instance_id,
        "instanceType": view.instance.instance_type,
        "kernelId": None,
        "marketplaceProductCodes": None,
        "pendingTime": _timestamp(view.instance.launch_time_s),
        "privateIp": str(view.enis[0].primary_address),
        "ramdiskId": None,
        "region": view.vpc.region,
        "version": "2017-09-30",
    }
    return json.dumps(document, indent=2)


def _iam_info(view: ImdsView, now_s: float) -> str:
    info = {
        "Code": "Success",
        "LastUpdated": _timestamp(_rotated_s(now_s)),
        "InstanceProfileArn": f"arn:aws:iam::{view.vpc.account_id}:instance-profile/{ROLE}",
        "InstanceProfileId": "AIPA" + _secret(ROLE)[:17].upper(),
    }
    return json.dumps(info, indent=2)


def _credentials(instance_id: str, now_s: float) -> str:
    since_s = _rotated_s(now_s)
    seed = f"{instance_id} {since_s}"
    credentials = {
        "Code": "Success",
        "LastUpdated": _timestamp(since_s),
        "Type": "AWS-HMAC",
        "AccessKeyId": "ASIA" + _secret(f"{seed} id")[:16].upper(),
        "SecretAccessKey": _secret(f"{seed} key")[:40],
        "Token": _secret(f"{seed} token") * 4,
        "Expiration": _timestamp(since_s + CREDENTIAL_LIFE_S),
    }
    return json.dumps(credentials, indent=2)


def _rotated_s(now_s: float) -> float:
    return now_s - now_s % CREDENTIAL_ROTATION_S


def _secret(seed: str) -> str:
    return hashlib.sha256(seed.encode()).hexdigest()


def _timestamp(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _hostname(view: ImdsView, eni: EniRecord) -> str:
    """EC2 User Guide, "EC2 instance hostnames and domains"; us-east-1 alone has a domain of its own."""
    region = view.vpc.region
    domain = "ec2.internal" if region == "us-east-1" else f"{region}.compute.internal"
    return f"ip-{str(eni.primary_address).replace('.', '-')}.{domain}"


def _lines(items: Iterable[object]) -> str:
    return "\n".join(map(str, items))
