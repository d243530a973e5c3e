"""Whose ENI, which tags, which subnets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from agent.cloud.policy import CloudPolicy
from agent.cloud.tags import for_new_eni, is_managed, subnet_is_excluded, subnet_is_usable

OURS = {"node.k8s.amazonaws.com/instance_id": "i-me"}
THEIRS = {"node.k8s.amazonaws.com/instance_id": "i-other"}


def no_manage(value: str) -> dict[str, str]:
    return {"node.k8s.amazonaws.com/no_manage": value}


@pytest.mark.parametrize(
    ("tags", "is_primary", "manage_untagged", "managed"),
    [
        ({}, False, True, True),
        ({}, False, False, False),
        ({"team": "net"}, False, False, False),
        (OURS, False, False, True),
        (THEIRS, False, True, False),
        (no_manage("true"), False, True, False),
        (no_manage("true") | OURS, False, True, False),
        (no_manage("false"), False, False, True),
        (no_manage("True"), False, False, True),
        (no_manage("true"), True, False, True),
        ({}, True, False, True),
    ],
)
def test_who_manages_an_eni(*, tags: dict[str, str], is_primary: bool, manage_untagged: bool, managed: bool) -> None:
    assert is_managed(tags, instance_id="i-me", is_primary=is_primary, manage_untagged=manage_untagged) is managed


NOW = datetime(2026, 3, 1, 13, 30, 5, 123456, tzinfo=timezone(timedelta(hours=1)))


def test_a_new_eni_says_whose_it_is_and_since_when() -> None:
    assert for_new_eni(CloudPolicy(), instance_id="i-me", now=NOW) == OURS | {
        "node.k8s.amazonaws.com/createdAt": "2026-03-01T12:30:05Z"
    }


def test_the_cluster_and_the_operators_tags_come_on_top() -> None:
    policy = CloudPolicy(cluster_name="blue", additional_eni_tags=(("team", "net"), ("eks:eni:owner", "us")))
    tags = for_new_eni(policy, instance_id="i-me", now=datetime(2026, 1, 1, tzinfo=UTC))
    assert tags["cluster.k8s.amazonaws.com/name"] == "blue"
    assert tags["team"] == "net"
    assert tags["eks:eni:owner"] == "us"
    assert for_new_eni(CloudPolicy(cluster_name="b"), instance_id="i", now=NOW)["eks:eni:owner"] == "amazon-vpc-cni"


ROLE = "kubernetes.io/role/cni"
BLUE, RED = "cni.networking.k8s.aws/cluster/blue", "cni.networking.k8s.aws/cluster/red"


@pytest.mark.parametrize(
    ("tags", "is_node_subnet", "cluster_name", "discovery", "usable"),
    [
        ({}, True, "", True, True),
        ({}, False, "", True, False),
        ({"kubernetes.io/role/cn": "1"}, False, "", True, False),
        ({ROLE: ""}, False, "", True, False),
        ({ROLE: ""}, True, "", True, True),
        ({ROLE: "1"}, False, "", True, True),
        ({ROLE: "yes"}, False, "", True, True),
        ({ROLE: "0"}, False, "", True, False),
        ({ROLE: "0"}, True, "", True, False),
        ({ROLE: "0"}, True, "", False, False),
        ({}, True, "", False, True),
        ({ROLE: "1"}, False, "", False, False),
        ({ROLE: "1", BLUE: ""}, False, "blue", True, True),
        ({ROLE: "1", RED: "owned"}, False, "blue", True, False),
        ({ROLE: "1", RED: "", BLUE: ""}, False, "blue", True, True),
        ({ROLE: "1", RED: ""}, False, "", True, True),
        ({ROLE: "1", RED: ""}, True, "blue", True, False),
        ({RED: ""}, True, "blue", True, True),
        ({ROLE: "1", "kubernetes.io/cluster/red": "owned"}, False, "blue", True, True),
    ],
)
def test_which_subnets_may_be_used(
    *, tags: dict[str, str], is_node_subnet: bool, cluster_name: str, discovery: bool, usable: bool
) -> None:
    policy = CloudPolicy(cluster_name=cluster_name, subnet_discovery=discovery)
    assert subnet_is_usable(tags, is_node_subnet=is_node_subnet, policy=policy) is usable


@pytest.mark.parametrize(
    ("tags", "cluster_name", "discovery", "excluded"),
    [
        ({}, "blue", True, False),
        ({ROLE: ""}, "blue", True, False),
        ({ROLE: "0"}, "", True, True),
        ({ROLE: "0"}, "", False, False),
        ({ROLE: "1"}, "blue", True, False),
        ({ROLE: "1", RED: ""}, "blue", True, True),
        ({ROLE: "1", RED: ""}, "", True, False),
        ({ROLE: "1", RED: "", BLUE: ""}, "blue", True, False),
        ({RED: ""}, "blue", True, False),
    ],
)
def test_which_subnets_are_closed_to_pods(
    *, tags: dict[str, str], cluster_name: str, discovery: bool, excluded: bool
) -> None:
    policy = CloudPolicy(cluster_name=cluster_name, subnet_discovery=discovery)
    assert subnet_is_excluded(tags, policy=policy) is excluded
