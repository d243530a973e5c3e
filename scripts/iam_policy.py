"""Write deploy/iam/policy.json from the EC2 calls that agent/cloud makes, or check that it is what they need.

.venv/bin/python -m scripts.iam_policy --write
.venv/bin/python -m scripts.iam_policy --check

The calls are found in the source: every attribute that is called and is named like a method of botocore's EC2 client.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import botocore.session
from botocore import xform_name

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "agent" / "cloud"
TARGET = ROOT / "deploy" / "iam" / "policy.json"

TAGGING_REQUEST = "TagSpecifications"
"""A request with this member needs ec2:CreateTags as well (EC2 User Guide, "Grant permission to tag resources during
creation")."""

RESOURCES = {
    "AssignIpv6Addresses": ("network-interface",),
    "AssignPrivateIpAddresses": ("network-interface",),
    "AttachNetworkInterface": ("instance", "network-interface"),
    "CreateNetworkInterface": ("network-interface", "security-group", "subnet"),
    "CreateTags": ("network-interface",),
    "DeleteNetworkInterface": ("network-interface",),
    "DetachNetworkInterface": ("instance", "network-interface"),
    "ModifyNetworkInterfaceAttribute": ("instance", "network-interface", "security-group"),
    "UnassignIpv6Addresses": ("network-interface",),
    "UnassignPrivateIpAddresses": ("network-interface",),
}
"""What each action can be restricted to (Service Authorization Reference, "Actions, resources, and condition keys for
Amazon EC2"). Describe actions know no resources."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """actions: EC2 actions that the code calls. tags_on_creation: what it creates is created with tags."""

    actions: frozenset[str]
    tags_on_creation: bool


def needs(source: Path = SOURCE) -> Needs:
    """What the code below `source` calls."""
    model = botocore.session.get_session().get_service_model("ec2")
    by_method = {xform_name(name): str(name) for name in model.operation_names}
    found: set[str] = set()
    tags = False
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            found.update(by_method[name] for name in _methods(node) if name in by_method)
            tags = tags or (isinstance(node, ast.Constant) and node.value == TAGGING_REQUEST)
    return Needs(actions=frozenset(found), tags_on_creation=tags)


def _methods(node: ast.AST) -> Iterator[str]:
    """Names of client methods that a node of the syntax tree calls, by themselves or as a paginator or waiter."""
    match node:
        case ast.Call(func=ast.Attribute(attr="get_paginator"), args=[ast.Constant(value=str(name))]):
            yield name
        case ast.Call(func=ast.Attribute(attr=name)):
            yield name


def policy(found: Needs, *, partition: str = "aws") -> dict[str, Any]:
    """The document: what is read, and what is changed and on which kinds of things."""
    reads = sorted(name for name in found.actions if name.startswith("Describe"))
    changes = found.actions - set(reads)
    if unknown := changes - set(RESOURCES):
        raise ValueError(f"scripts/iam_policy.py does not know which resources belong to {', '.join(sorted(unknown))}")
    by_resources: dict[tuple[str, ...], list[str]] = {}
    for name in sorted(changes):
        by_resources.setdefault(RESOURCES[name], []).append(name)
    statements: list[dict[str, Any]] = [_statement("Read", reads, ["*"])]
    for kinds, names in sorted(by_resources.items()):
        sid = "Change" + "".join(part.capitalize() for kind in kinds for part in kind.split("-"))
        statements.append(_statement(sid, names, [f"arn:{partition}:ec2:*:*:{kind}/*" for kind in kinds]))
    if found.tags_on_creation and "CreateTags" not in changes:
        tags = _statement("TagOnCreation", ["CreateTags"], [f"arn:{partition}:ec2:*:*:network-interface/*"])
        statements.append({**tags, "Condition": {"StringEquals": {"ec2:CreateAction": "CreateNetworkInterface"}}})
    return {"Version": "2012-10-17", "Statement": statements}


def _statement(sid: str, names: list[str], resources: list[str]) -> dict[str, Any]:
    return {"Sid": sid, "Effect": "Allow", "Action": [f"ec2:{name}" for name in names], "Resource": resources}


def render() -> str:
    """The file's content."""
    return json.dumps(policy(needs()), indent=2) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.add_mutually_exclusive_group(required=True)
    chosen.add_argument("--write", action="store_true")
    chosen.add_argument("--check", action="store_true")
    if parser.parse_args().write:
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(render())
    elif not TARGET.exists() or TARGET.read_text() != render():
        sys.stderr.write(f"{TARGET.relative_to(ROOT)} is not what the code calls; run this with --write\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
