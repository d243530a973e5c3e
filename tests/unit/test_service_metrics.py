"""The metrics: every name of the AWS plugin is served, or the runbook says why not; ours count what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.errors import Cause
from agent.events.model import Kind
from agent.ipam.plan import PoolPolicy
from agent.service.metrics import repaired
from sim.faults import Fault
from tests.served_node import ServedNode
from tests.unit.test_cloud_fault_matrix import ASSIGN, refused
from tests.virtual_node import virtual_node
from tests.virtual_time import virtual_time

RUNBOOK = (Path(__file__).resolve().parents[2] / "docs" / "operations.md").read_text()
NOT_SERVED_SECTION = RUNBOOK.partition("Not served, because")[2].partition("With `DISABLE_INTROSPECTION")[0]
AWS_NAMES = {
    f"awscni_{name}"
    for name in [
        "add_ip_req_count",
        "assigned_ip_addresses",
        "assigned_ip_per_cidr",
        "assigned_ip_per_eni",
        "aws_api_error_count",
        "aws_api_latency_ms",
        "aws_utils_error_count",
        "build_info",
        "connmark_backend",
        "connmark_reconcile_total",
        "del_ip_req_count",
        "ec2api_error_count",
        "ec2api_req_count",
        "eni_allocated",
        "eni_max",
        "force_removed_enis",
        "force_removed_ips",
        "ip_max",
        "ipamd_action_inprogress",
        "ipamd_error_count",
        "ipamd_node_initialization_duration_seconds",
        "ipamd_startup_duration_seconds",
        "no_available_ip_addresses",
        "pod_eni_error_count",
        "reconcile_count",
        "total_ip_addresses",
        "total_ipv4_prefixes",
    ]
}
"""Of v1.23 (`utils/prometheusmetrics` and `cmd/aws-k8s-agent` there)."""


def families(metrics: str) -> set[str]:
    return set(re.findall(r"^# TYPE (\S+) ", metrics, re.MULTILINE))


@virtual_time
async def test_every_name_of_the_aws_plugin_is_served_or_explained() -> None:
    async with virtual_node(PoolPolicy(warm_ip_target=2, minimum_ip_target=2)) as node:
        await node.start()
        served = ServedNode(node)
        assert await served.add("pod-1") == ""
        metrics = served.service.metrics().decode()
        told = {name for name in families(metrics) if name.startswith("awscni_")}
        explained = set(re.findall(r"^\| `(awscni_\w+)`", NOT_SERVED_SECTION, re.MULTILINE))
        assert told | explained == AWS_NAMES
        assert not told & explained
        assert told <= set(re.findall(r"`(awscni_\w+)`", RUNBOOK))
        ours = {name for name in families(metrics) if name.startswith("enoki_")}
        documented = set(re.findall(r"`(enoki_\w+)", RUNBOOK))
        assert {re.sub(r"_created$", "", name) for name in ours} - documented <= {"enoki_build_info"}


@virtual_time
async def test_calls_take_time_and_fail_by_cause() -> None:
    async with virtual_node(PoolPolicy(warm_ip_target=1, minimum_ip_target=1)) as node:
        await node.start()
        served = ServedNode(node)
        assert await served.add("pod-0") == ""
        node.client.faults.add(Fault(action=ASSIGN, effect=refused("UnauthorizedOperation", 403), times=None))
        assert [bool(await served.add(f"pod-{number}")) for number in range(1, 10)][-1]
        metrics = served.service.metrics().decode()
        assert re.search(
            r'awscni_aws_api_latency_ms_count\{api="DescribeNetworkInterfaces",error="false",status="ok"\} [1-9]',
            metrics,
        )
        denied = f'{{api="{ASSIGN}",error="true",status="{Cause.IAM_DENIED}"}}'
        assert f"awscni_aws_api_latency_ms_count{denied}" in metrics
        assert f'awscni_aws_api_error_count{{api="{ASSIGN}",error="iam_denied"}}' in metrics
        assert 'awscni_ipamd_startup_duration_seconds_count{failure_reason="",success="true"' in metrics
        assert re.search(r'awscni_assigned_ip_per_cidr\{cidr="[\d.]+/32"\} 1.0', metrics)


@virtual_time
async def test_subnets_show_what_ec2_last_said() -> None:
    async with virtual_node(PoolPolicy(warm_eni_target=2)) as node:
        await node.start()
        served = ServedNode(node)
        assert await served.add("pod-1") == ""
        await node.alive.pool.step()
        [subnet] = node.alive.pool.view().subnets
        line = f'enoki_subnet_free_addresses{{subnet="{subnet.subnet_id}"}} {subnet.free_address_count}.0'
        assert line in served.service.metrics().decode()


@pytest.mark.parametrize(
    ("subject", "kind"),
    [
        ("route 10.0.0.11", "route"),
        ("link eni0123456789a", "link"),
        ("eni0123456789a", "link"),
        ("table inet enoki", "table"),
        ("rp_filter of eth1", "sysctl"),
        ("net.ipv4.ip_forward", "sysctl"),
    ],
)
@virtual_time
async def test_repairs_are_counted_by_what_they_put_right(subject: str, kind: str) -> None:
    assert repaired(subject) == kind
    async with virtual_node(PoolPolicy(warm_ip_target=1)) as node:
        await node.start()
        served = ServedNode(node)
        served.publish(Kind.REPAIR, object=subject, reason="it was missing")
        assert f'enoki_repairs_total{{object="{kind}"}} 1.0' in served.service.metrics().decode()
