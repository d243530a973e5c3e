"""`enokictl doctor` beside a real agent: what is broken on the node, or refused by EC2, is found by its check."""

from __future__ import annotations

from typing import Any

import pytest

from lab.lab import Lab, LabNode
from tests.system import three_truths as truths
from tests.system.conftest import LabFactory
from tests.system.test_operators import enokictl
from tests.system.vpc_control import VpcControl


@pytest.fixture(scope="module")
def vpc(lab: LabFactory) -> Lab:
    return lab(agent_environment={"WARM_IP_TARGET": "2"})


def doctor(node: LabNode) -> dict[str, dict[str, Any]]:
    _, answer = enokictl(node, "doctor")
    return {one["name"]: one for one in answer["checks"]}


def run(node: LabNode, *argv: str) -> None:
    truths.run_in(truths.netns(node), *argv)


def test_iam_is_asked_by_dry_run_and_changes_nothing(vpc: Lab, node: LabNode) -> None:
    refused: dict[str, Any] = {"kind": "error", "code": "UnauthorizedOperation", "http_status": 403}
    with VpcControl(vpc).fault("DetachNetworkInterface", **refused):
        found = doctor(node)
    assert (found["iam"]["verdict"], found["iam"]["evidence"]) == ("failing", {"denied": 1})
    assert "ec2:DetachNetworkInterface" in found["iam"]["fix"]
    assert found["ec2_reachable"]["verdict"] == "ok"
    assert found["imds_hop_limit"]["evidence"] == {"hop_limit": 2}
    assert found["imds"]["verdict"] == "ok"
    assert found["clock"]["verdict"] == "ok"
    assert found["leaked_enis"]["verdict"] == "ok"
    assert found["subnet_addresses"]["verdict"] == "ok"
    for action in (
        "CreateNetworkInterface",
        "AttachNetworkInterface",
        "DetachNetworkInterface",
        "DeleteNetworkInterface",
    ):
        calls = VpcControl(vpc).calls(action)
        assert calls, action
        assert all(one["parameters"]["DryRun"] == "true" and one["outcome"] != "ok" for one in calls)


def test_a_lab_node_has_nothing_that_fails(node: LabNode) -> None:
    found = doctor(node)
    # EC2's last answers count for 30 s; the rest is this machine's, not the lab's.
    expected = {"iam", "open_files", "networkd_foreign_rules", "networkd_foreign_routes", "nm_cloud_setup"}
    failing = {name: one["message"] for name, one in found.items() if one["verdict"] == "failing"}
    assert failing.keys() <= expected, failing
    assert found["kernel_features"]["verdict"] == "ok", found["kernel_features"]
    assert len(found) >= 40


def test_what_is_broken_in_the_kernel_is_found(node: LabNode) -> None:
    run(node, "ip", "rule", "add", "pref", "30000", "fwmark", "0x80/0xff", "lookup", "99")
    run(node, "ip", "route", "add", "192.0.2.9/32", "dev", "lo", "table", "20512")
    run(node, "nft", "add table ip other; add chain ip other f { type filter hook forward priority 0; policy drop; }")
    run(node, "nft", "add chain ip other m { type filter hook forward priority 1; }")
    run(node, "nft", "add rule ip other m meta mark set 0x1")
    try:
        found = doctor(node)
    finally:
        run(node, "nft", "delete table ip other")
        run(node, "ip", "route", "del", "192.0.2.9/32", "table", "20512")
        run(node, "ip", "rule", "del", "pref", "30000")
    for name in ("mark_bits", "table_ids", "forward_policy"):
        assert found[name]["verdict"] == "failing", found[name]
    assert "ip other" in found["forward_policy"]["message"]
    assert found["mark_bits"]["evidence"] == {"conflicts": 2}
    well = doctor(node)
    assert {well[name]["verdict"] for name in ("mark_bits", "table_ids", "forward_policy")} == {"ok"}
