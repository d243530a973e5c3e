"""`/v1/doctor` for a `Node`: looks, judges, answers. Imported when somebody asks."""

from __future__ import annotations

import asyncio

from agent.doctor import checks
from agent.doctor.collect import Places, host_facts
from agent.doctor.facts import EniFacts, Facts, NodeFacts
from agent.errors import AgentError
from agent.ipam.account import eni_limit
from agent.ipam.model import AddressState
from agent.kube.notices import pod_capacity
from agent.node import Node
from agent.settings import Settings
from agent.surveyed import CloudFacts, KernelFacts
from api.doctor_schemas import CheckView, DoctorView, VerdictName

EC2_EVERY_S = 30.0
"""EC2 is asked a dozen requests at most that often: whoever may read could spend the account's budget otherwise."""


class Examiner:
    """One node. Keeps EC2's last answers for `EC2_EVERY_S`."""

    def __init__(self, node: Node, chosen: Settings) -> None:
        self._node = node
        self._chosen = chosen
        self._asking = asyncio.Lock()
        self._asked_s = float("-inf")
        self._cloud: CloudFacts | None = None

    async def examine(self) -> DoctorView:
        """Every check, on facts that are seconds old."""
        kernel, kernel_error = await self._kernel()
        enis = self._enis()
        macs = {one.mac for one in enis}
        ifnames = [one.ifname for one in kernel.links if one.mac in macs and not one.kind] if kernel else []
        facts = Facts(
            host=await asyncio.to_thread(host_facts, _places(self._chosen), ifnames),
            kernel=kernel,
            kernel_error=kernel_error,
            cloud=await self._ask_ec2(),
            node=await self._facts(enis),
        )
        found = checks.examine(facts)
        return DoctorView(
            verdict=VerdictName(checks.worst(found)),
            checks=[
                CheckView(
                    name=one.name,
                    title=one.title,
                    verdict=VerdictName(one.judgement.verdict),
                    message=one.judgement.message,
                    fix=one.judgement.fix,
                    evidence=dict(one.judgement.evidence),
                )
                for one in found
            ],
        )

    async def _kernel(self) -> tuple[KernelFacts | None, str]:
        try:
            return await self._node.datapath.survey(), ""
        except AgentError as exc:
            return None, str(exc)

    async def _ask_ec2(self) -> CloudFacts | None:
        async with self._asking:
            if self._node.clock() - self._asked_s >= EC2_EVERY_S:
                self._cloud = await self._node.rehearse()
                self._asked_s = self._node.clock()
        return self._cloud

    def _enis(self) -> tuple[EniFacts, ...]:
        parts = self._node.parts
        if parts is None:
            return ()
        return tuple(
            EniFacts(
                eni_id=one.eni.eni_id,
                mac=one.eni.mac,
                is_primary=one.eni.is_primary,
                managed=one.eni.managed,
                is_set_up=one.ready,
                delete_on_termination=one.eni.delete_on_termination,
                security_groups=one.eni.security_groups,
                subnet_id=one.eni.subnet_id,
            )
            for one in parts.ledger.enis()
        )

    async def _facts(self, enis: tuple[EniFacts, ...]) -> NodeFacts:
        node, parts = self._node, self._node.parts
        cluster, failure = node.cluster.view(), node.news.cluster_failure()
        view = None if parts is None else parts.pool.view()
        policy = node.pool_policy
        capacity = None
        if parts is not None:
            capacity = pod_capacity(
                parts.limits,
                per_slot=policy.on(parts.limits).kind.address_count,
                eni_count=eni_limit(parts.limits, policy),
                custom_networking=policy.custom_networking,
            )
        return NodeFacts(
            ready="" if node.startup.ready.is_set() else node.startup.waits_for(),
            imds=await node.imds_failure(),
            enis=enis,
            troubles=() if view is None else tuple(f"{one.scope}: {one.error}" for one in view.troubles),
            quarantined=()
            if view is None
            else tuple(one.address for one in view.addresses if one.state is AddressState.QUARANTINED),
            capacity=capacity,
            max_pods=cluster.max_pods,
            prefix_delegation=policy.prefix_delegation,
            is_nitro=parts is None or parts.limits.is_nitro,
            kubernetes_configured=cluster.configured,
            kubernetes="" if failure is None else str(failure),
            follows_groups=not policy.custom_networking,
            failing_loops=tuple(f"{one.name}: {one.last_error}" for one in node.loops() if one.failure_count),
            primary_mark=self._chosen.connmark,
            eni_mtu=self._chosen.eni_mtu,
        )


def _places(chosen: Settings) -> Places:
    logs = (chosen.log_file.parent if chosen.log_file else None, chosen.event_log_directory)
    return Places(
        socket=chosen.socket,
        conf_directory=chosen.host_conf_directory,
        plugin_directory=chosen.host_bin_directory,
        sysctl_directory=chosen.sysctl_directory,
        log_directories=tuple(one for one in logs if one is not None),
        cni_version=chosen.cni_version,
        pod_mtu=chosen.pod_mtu,
        root=chosen.host_root,
    )
