"""The role of the manifests allows what the agent asks an API server for, and nothing else."""

from __future__ import annotations

import asyncio

import yaml

from agent.kube.cluster import KubeCluster
from agent.kube.policy import KubePolicy
from agent.ports.cluster import Notice, NoticeKind
from sim.kube.server import ApiServer, a_node, a_pod
from sim.kube.store import ENI_CONFIGS, KINDS, NODES, PODS
from sim.kube.users import Permission
from tests.contract.kube_access import access_to
from tests.contract.kube_role import DEPLOY, annotating_rules, base_role, permissions
from tests.contract.test_kube_cluster import an_attachment, an_eni_config, until

CHART = DEPLOY / "chart" / "templates" / "rbac.yaml"
HOUR_S = 3600.0


async def asked_for(policy: KubePolicy) -> set[Permission]:
    """What an agent asks for that lists, watches, tells of a state twice, and has a pod to annotate."""
    server, now_s = ApiServer(), [0.0]
    notice = Notice(kind=NoticeKind.SUBNET_EXHAUSTED, message="subnet-1 is full", subject="subnet-1")
    await server.start()
    await server.store.create(NODES, "", a_node("node-1", max_pods=29))
    await server.store.create(PODS, "default", a_pod("a", "node-1"))
    await server.store.create(ENI_CONFIGS, "", an_eni_config("default", "subnet-1"))
    made = KubeCluster(
        policy, version="test", find=lambda _: access_to(server.url), draw=lambda: 0.01, clock=lambda: now_s[0]
    )
    running = asyncio.create_task(made.run())
    watches = 3 if policy.custom_networking else 2
    try:
        await until(lambda: sum(count for (verb, _), count in server.requests.items() if verb == "watch") >= watches)
        await made.settle([an_attachment("a", "10.0.0.1")])
        made.report(notice)
        await until(lambda: server.requests["create", "events"])
        await until(lambda: all(one.name for one in made._outbox._states.values()))  # the answer has arrived
        now_s[0] = HOUR_S
        made.report(notice)
        await until(lambda: server.requests["patch", "events"])
    finally:
        running.cancel()
        await asyncio.wait([running])
        await server.stop()
    groups = {kind.plural: kind.api_version.rpartition("/")[0] for kind in KINDS}
    return {(groups[plural], plural, verb) for verb, plural in server.requests}


async def test_the_role_is_what_the_agent_asks_for() -> None:
    asked = await asked_for(KubePolicy(node_name="node-1", custom_networking=True))

    assert asked == permissions(base_role())


async def test_annotating_pods_needs_one_permission_more() -> None:
    asked = await asked_for(KubePolicy(node_name="node-1", custom_networking=True, annotate_pod_ip=True))

    assert asked == permissions(base_role()) | permissions(annotating_rules())
    assert permissions(annotating_rules()) == {("", "pods", "patch")}


def test_the_chart_has_the_same_rules() -> None:
    """Its template without the lines that are for Helm: every rule, also the one that a value asks for."""
    template = CHART.read_text().partition("---")[0]
    lines = [line for line in template.splitlines() if "{{" not in line]
    role = yaml.safe_load("\n".join(lines))

    assert permissions(role["rules"]) == permissions(base_role()) | permissions(annotating_rules())
    assert 'eq (toString .Values.env.ANNOTATE_POD_IP) "true"' in template
