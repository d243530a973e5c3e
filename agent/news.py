"""What happens on the node and concerns others, told to Kubernetes, the journal and the log. Nobody waits for it."""

from __future__ import annotations

from collections.abc import Callable

from agent.errors import AgentError, Cause
from agent.events.model import Kind, Publish
from agent.ipam.account import eni_limit
from agent.ipam.ledger import Ledger
from agent.ipam.model import InstanceLimits
from agent.ipam.plan import PoolPolicy
from agent.ipam.pool import Pool
from agent.kube import notices
from agent.ports.cluster import Cluster
from agent.ports.datapath import Repair
from agent.runtime.log import event_logger

log = event_logger(__name__)

EVERY_S = 30.0
"""How often what Kubernetes is to know is compared, beside every change of the pool or of Kubernetes."""


class News:
    """Knows what was told already: of each state its beginning, its end, and that it lasts."""

    def __init__(self, cluster: Cluster, *, publish: Publish, clock: Callable[[], float]) -> None:
        """clock: monotonic seconds."""
        self._cluster = cluster
        self._publish = publish
        self._clock = clock
        self._reported = notices.Reported()
        self._findings: frozenset[str] = frozenset()
        self._failure: Cause | None = None
        self.cluster_changed()

    def repaired(self, repair: Repair) -> None:
        """The kernel was put right."""
        self._publish(
            Kind.REPAIR,
            object=repair.subject,
            reason=repair.difference,
            strikes=repair.strike_count,
            contested=repair.contested,
            error=repair.error,
        )
        self._cluster.report(
            notices.of_repair(repair.subject, repair.difference, contested=repair.contested, error=repair.error)
        )

    def cluster_failure(self) -> AgentError | None:
        """Why the agent does not know what Kubernetes should tell it; None when it does. Pods start all the same."""
        site = self._cluster.site()
        return self._cluster.view().failure or (site if isinstance(site, AgentError) else None)

    def cluster_changed(self) -> None:
        """Whatever Kubernetes says is something else now; so may be whether it says anything."""
        failure = self.cluster_failure()
        before, self._failure = self._failure, None if failure is None else failure.cause
        if failure is not None and failure.cause is not before:
            told = {"cause": str(failure.cause), "message": failure.message}
            log.warning("kubernetes_degraded", **failure.evidence | told)
            self._publish(Kind.KUBERNETES_FAILED, **failure.evidence | told)
        elif failure is None and before is not None:
            self._publish(Kind.KUBERNETES_RECOVERED, cause=str(before))

    async def tell(self, pool: Pool, ledger: Ledger, limits: InstanceLimits, policy: PoolPolicy) -> float:
        """Tell Kubernetes what has changed; when to look again, in seconds.

        policy: as it is on this instance.
        Raises: AgentError of the cluster's, which the loop retries.
        """
        now = notices.states(
            troubles=pool.troubles(),
            exhausted=pool.exhausted(),
            max_pods=self._cluster.max_pods,
            capacity=notices.pod_capacity(
                limits,
                per_slot=policy.kind.address_count,
                eni_count=eni_limit(limits, policy),
                custom_networking=policy.custom_networking,
            ),
        )
        for notice in self._reported.changes(now, self._clock()):
            self._cluster.report(notice)
        attachments = ledger.attachments()
        findings = {str(one.evidence["container_id"]): one for one in self._cluster.findings(attachments)}
        for container_id in findings.keys() - self._findings:
            one = findings[container_id]
            log.warning("finding", kind=one.kind, message=one.message, **one.evidence)
        self._findings = frozenset(findings)
        await self._cluster.settle(attachments)
        return EVERY_S
