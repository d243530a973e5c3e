"""The IAM policy follows the code."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.iam_policy import RESOURCES, TARGET, Needs, needs, policy, render


def test_the_committed_policy_is_what_the_code_calls() -> None:
    assert TARGET.read_text() == render(), "run `python -m scripts.iam_policy --write`"


def test_calls_are_found_however_they_are_made(tmp_path: Path) -> None:
    (tmp_path / "calls.py").write_text(
        """
await self._client.create_network_interface(TagSpecifications=[])
async for page in client.get_paginator("describe_subnets").paginate(): ...
other.describe_something_else()
"""
    )
    wanted = frozenset({"CreateNetworkInterface", "DescribeSubnets"})
    assert needs(tmp_path) == Needs(actions=wanted, tags_on_creation=False)
    (tmp_path / "calls.py").write_text('request["TagSpecifications"] = []')
    assert needs(tmp_path) == Needs(actions=frozenset(), tags_on_creation=True)


def test_what_is_changed_is_restricted_and_tags_come_at_creation_only() -> None:
    found = policy(Needs(actions=frozenset(RESOURCES) - {"CreateTags"}, tags_on_creation=True), partition="aws-cn")
    for statement in found["Statement"][1:]:
        assert all(resource.startswith("arn:aws-cn:ec2:*:*:") for resource in statement["Resource"])
    assert found["Statement"][-1]["Condition"] == {"StringEquals": {"ec2:CreateAction": "CreateNetworkInterface"}}


def test_code_that_tags_by_itself_may() -> None:
    found = policy(Needs(actions=frozenset({"CreateTags"}), tags_on_creation=True))
    (tags,) = (one for one in found["Statement"] if "ec2:CreateTags" in one["Action"])
    assert "Condition" not in tags


def test_an_action_nobody_has_looked_up_is_refused() -> None:
    with pytest.raises(ValueError, match="TerminateInstances"):
        policy(Needs(actions=frozenset({"TerminateInstances"}), tags_on_creation=False))
