"""`agent.ports.cluster.Cluster` on an API server: three collections, one outbox, one annotation.

Nothing here waits for the API server on behalf of anybody else. What has not been seen is not known (no demand
announced, schedulable, no ENIConfig); what has been seen is believed until something newer comes.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address
from time import monotonic
from typing import Any

from agent.errors import AgentError, Cause, ClusterConflict, ClusterFailed, ClusterGone
from agent.ipam.model import Attachment, Finding
from agent.kube import access, demand, objects, outbox, siting
from agent.kube.api import KubeApi
from agent.kube.objects import EniConfig, NodeFacts, Pod
from agent.kube.policy import KubePolicy
from agent.kube.reflector import Reflector, pause_s
from agent.ports.cluster import ClusterView, Notice, NoticeKind, PodFacts, PodName, Site
from agent.runtime.log import event_logger

log = event_logger(__name__)

POD_IPS = "vpc.amazonaws.com/pod-ips"
"""The annotation that Calico reads, as the AWS plugin writes it: the address; empty once it is released."""
ENI_CONFIGS = "/apis/crd.k8s.amazonaws.com/v1alpha1/eniconfigs"
AGENT_NAMESPACE = "kube-system"

Find = Callable[[KubePolicy], access.Access | None]


class KubeCluster:
    """Implements `agent.ports.cluster.Cluster`. `policy.node_name` must not be empty.

    find: where the API server is. clock: monotonic seconds. now: the wall clock, in UTC. draw: in [0, 1).
    """

    def __init__(
        self,
        policy: KubePolicy,
        *,
        version: str,
        find: Find = access.find,
        clock: Callable[[], float] = monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._policy = policy
        self._version = version
        self._find = find
        self._clock = clock
        self._now = now
        self._draw = draw
        self._api: KubeApi | None = None
        self._failure: AgentError | None = None
        self._mail_failure: AgentError | None = None
        self._wakes: list[Callable[[], None]] = []
        self._outbox = outbox.Outbox()
        self._mail = asyncio.Event()
        self._site: Site | AgentError | None = None
        self._missing: dict[PodName, float] = {}
        self._annotated: dict[str, str] = {}
        one_node = {"fieldSelector": f"metadata.name={policy.node_name}"}
        own_pods = {"fieldSelector": f"spec.nodeName={policy.node_name}"}
        self._pods = Reflector[Pod](
            "pods", path="/api/v1/pods", query=own_pods, parse=objects.pod, changed=self._wake, draw=draw
        )
        self._nodes = Reflector[NodeFacts](
            "node", path="/api/v1/nodes", query=one_node, parse=objects.node, changed=self._moved, draw=draw
        )
        self._configs = Reflector[EniConfig](
            "eniconfigs", path=ENI_CONFIGS, query={}, parse=objects.eni_config, changed=self._moved, draw=draw
        )

    # --- What is known -----------------------------------------------------------------------------------------------

    @property
    def schedulable(self) -> bool:
        node = self._node
        return node is None or not node.unschedulable

    @property
    def max_pods(self) -> int | None:
        return None if self._node is None else self._node.max_pods

    def announced(self) -> frozenset[PodName]:
        """See `Cluster.announced`."""
        return demand.announced(self._pods.items.values())

    def pod(self, namespace: str, name: str) -> PodFacts | None:
        """See `Cluster.pod`."""
        found = self._pods.items.get(f"{namespace}/{name}")
        return None if found is None else found.facts

    def site(self) -> Site | AgentError | None:
        """See `Cluster.site`."""
        if not self._policy.custom_networking:
            return None
        return siting.site(self._node, self._configs.items if self._configs.synced else None, self._policy)

    def findings(self, attachments: Sequence[Attachment]) -> tuple[Finding, ...]:
        """See `Cluster.findings`. Nothing is missed that the API server has not just had the chance to show."""
        if not self._pods.synced or self._pods.failure is not None:
            return ()
        now_s = self._clock()
        self._missing = demand.missing_since(attachments, self._pods.items, self._missing, now_s)
        return demand.findings(attachments, self._missing, now_s)

    def view(self) -> ClusterView:
        """See `Cluster.view`."""
        return ClusterView(
            configured=True,
            synced=self._pods.synced,
            pod_count=len(self._pods.items),
            schedulable=self.schedulable,
            max_pods=self.max_pods,
            failure=self._failure
            or self._pods.failure
            or self._nodes.failure
            or self._configs.failure
            or self._mail_failure,
        )

    def subscribe(self, wake: Callable[[], None]) -> None:
        """See `Cluster.subscribe`."""
        self._wakes.append(wake)

    @property
    def _node(self) -> NodeFacts | None:
        return self._nodes.items.get(self._policy.node_name)

    # --- What is told ------------------------------------------------------------------------------------------------

    def report(self, notice: Notice) -> None:
        """See `Cluster.report`."""
        self._outbox.report(notice, self._clock())
        self._mail.set()

    async def settle(self, attachments: Sequence[Attachment]) -> None:
        """See `Cluster.settle`. Every pod is tried; the first failure is raised after that."""
        if not self._policy.annotate_pod_ip or self._api is None:
            return
        failure: AgentError | None = None
        for pod, value in self._wanted_annotations(attachments):
            try:
                await self._annotate(self._api, pod, value)
            except (ClusterGone, ClusterConflict):
                continue  # the pod has gone, or another one has its name: the watch will say
            except ClusterFailed as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _wanted_annotations(self, attachments: Sequence[Attachment]) -> list[tuple[PodFacts, str]]:
        addresses = {(one.holder.namespace, one.holder.pod): _first(one) for one in attachments if one.holder.pod}
        self._annotated = {
            one.facts.uid: self._annotated[one.facts.uid]
            for one in self._pods.items.values()
            if one.facts.uid in self._annotated
        }
        wanted = []
        for one in self._pods.items.values():
            has = self._annotated.get(one.facts.uid, one.facts.annotations.get(POD_IPS, ""))
            # A pod that is neither attached by us nor on its way out may be the plugin's before us: hands off.
            value = addresses.get(one.facts.full_name) or ("" if one.leaving else has)
            if value != has:
                wanted.append((one.facts, value))
        return wanted

    async def _annotate(self, api: KubeApi, pod: PodFacts, value: str) -> None:
        # The uid is a precondition: a StatefulSet's next pod has the same name.
        patch = {"metadata": {"uid": pod.uid, "annotations": {POD_IPS: value}}}
        await api.merge_patch(f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}", patch)
        self._annotated[pod.uid] = value

    # --- Loops -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """See `Cluster.run`. An API server that cannot be reached, or found, is tried again for ever."""
        failure_count = 0
        while True:
            try:
                found = self._find(self._policy)
                if found is None:
                    raise ClusterFailed(Cause.KUBERNETES_UNAVAILABLE, "nothing says where the API server is")
                async with KubeApi(found, user_agent=f"enoki/{self._version}") as api:
                    self._failure, self._api = None, api
                    log.info("kubernetes_configured", server=found.server, node=self._policy.node_name)
                    await self._watch_all(api)
            except ClusterFailed as error:
                failure_count += 1
                self._failure = error
                if failure_count == 1:
                    log.warning("kubernetes_unusable", cause=error.cause, error=error.message)
                    self._wake()
                await asyncio.sleep(pause_s(failure_count, self._draw()))
            finally:
                self._api = None

    async def _watch_all(self, api: KubeApi) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._pods.run(api), name="watch pods")
            group.create_task(self._nodes.run(api), name="watch node")
            if self._policy.custom_networking:
                group.create_task(self._configs.run(api), name="watch eniconfigs")
            group.create_task(self._tell(api), name="events")

    async def _tell(self, api: KubeApi) -> None:
        failure_count = 0
        while True:
            now_s = self._clock()
            sent = self._outbox.due(now_s)
            if sent is None:
                self._mail.clear()
                rest_s = self._outbox.rest_s(now_s)
                try:
                    async with asyncio.timeout(None if rest_s == float("inf") else rest_s):
                        await self._mail.wait()
                except TimeoutError:
                    pass
                continue
            try:
                await self._send(api, sent)
                failure_count = 0
                self._note_mail(None)
            except AgentError as error:
                failure_count += 1
                if failure_count == 1:
                    log.warning("kubernetes_event_failed", error=str(error))
                self._note_mail(error)
                await asyncio.sleep(max(pause_s(failure_count, self._draw()), error.retry_after_s or 0.0))

    def _note_mail(self, failure: AgentError | None) -> None:
        before, self._mail_failure = self._mail_failure, failure
        if (before and before.cause) != (failure and failure.cause):
            self._wake()

    async def _send(self, api: KubeApi, sent: outbox.Send) -> None:
        at = self._now()
        regarding = self._regarding(sent)
        events = f"/apis/events.k8s.io/v1/namespaces/{regarding.get('namespace') or 'default'}/events"
        name = sent.name if isinstance(sent, outbox.Repeat) else outbox.event_name(self._policy.node_name, sent.key, at)
        try:
            match sent:
                case outbox.Create():
                    body = outbox.event(
                        sent.notice, name=name, regarding=regarding, instance=self._policy.node_name, at=at
                    )
                    await api.create(events, body)
                case outbox.Repeat():
                    await api.merge_patch(f"{events}/{name}", outbox.series(sent.count, at))
        except ClusterGone:
            if isinstance(sent, outbox.Create):
                raise
            self._outbox.forgotten(sent)
        except ClusterFailed as error:
            if error.cause is not Cause.KUBERNETES_REFUSED:
                raise
            log.warning("kubernetes_event_refused", error=str(error))
            self._outbox.refused(sent)
        else:
            self._outbox.told(sent, name, self._clock())

    def _regarding(self, sent: outbox.Send) -> Mapping[str, str]:
        """The node; for a missing permission the agent's own pod, as the AWS plugin does, when it is known."""
        about_iam = sent.key.startswith(str(NoticeKind.IAM_DENIED))
        own = self.pod(AGENT_NAMESPACE, self._policy.pod_name) if about_iam and self._policy.pod_name else None
        if own is not None:
            return {
                "apiVersion": "v1",
                "kind": "Pod",
                "namespace": own.namespace,
                "name": own.name,
                "uid": own.uid,
            }
        # The kubelet's events about a node carry its name as the uid; `kubectl describe node` looks for both.
        uid = self._node.uid if self._node is not None else self._policy.node_name
        return {"apiVersion": "v1", "kind": "Node", "name": self._policy.node_name, "uid": uid}

    # --- Changes -----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        for wake in self._wakes:
            wake()

    def _moved(self) -> None:
        """The node or an ENIConfig has changed: tell what that means for new ENIs. Nothing that exists is touched."""
        site = self.site()
        before, self._site = self._site, site
        match site:
            case Site():
                self.report(
                    Notice(kind=NoticeKind.SITE_UNKNOWN, message=f"new ENIs go where {site.name} says", over=True)
                )
                if isinstance(before, Site) and before != site:
                    self.report(
                        Notice(
                            kind=NoticeKind.SITE_CHANGED,
                            subject=f"{site.name} {site.subnet_id} {','.join(site.security_groups)}",
                            message=f"new ENIs go to {site.subnet_id} by ENIConfig {site.name}; the ENIs there are stay"
                            " as they are, with their pods",
                            evidence=_evidence(site),
                        )
                    )
            case AgentError() if self._nodes.synced and self._configs.synced:
                self.report(
                    Notice(
                        kind=NoticeKind.SITE_UNKNOWN,
                        message=f"{site.message}: no ENI is made",
                        evidence=site.evidence,
                    )
                )
            case _:
                pass
        self._wake()


def _evidence(site: Site) -> dict[str, str | int | float]:
    found: dict[str, Any] = {"eni_config": site.name, "subnet": site.subnet_id}
    if site.security_groups:
        found["security_groups"] = ",".join(site.security_groups)
    return found


def _first(attachment: Attachment) -> str:
    """What the annotation says: the first IPv4 address, else the first."""
    four = next((one for one in attachment.addresses if isinstance(one, IPv4Address)), attachment.addresses[0])
    return str(four)
