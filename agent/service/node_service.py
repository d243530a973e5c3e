"""What the API asks of a node, answered by its parts. Translates both ways and decides nothing.

The one table that turns an `AgentError` into what the runtime reads is here; `docs/` and tests follow it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

from agent.attachments import AttachRequest, stopping
from agent.errors import AgentError, Cause, CloudFailed, Conflict, InvalidRequest, KernelFailed, TryAgain
from agent.events.model import Kind, Scalar
from agent.ipam.model import AttachmentKey, Holder
from agent.ipam.pool import as_failure
from agent.node import Node, Parts
from agent.ports.cluster import Site
from agent.ports.datapath import PortMapping, Shaping, Transport
from agent.recorder import holder_fields
from agent.runtime.log import bind_request, event_logger
from agent.runtime.reconciler import Reconciler
from agent.service.operators import AgentOperators, Desk
from agent.service.views import condition, eni_view, pool_eni_view, sum_counts
from api.problems import CniCode, CniError
from api.schemas import (
    AddressCounts,
    AllocationView,
    EniView,
    HealthView,
    LoopView,
    PoolView,
    StageState,
    StageView,
    StartupView,
)
from api.service import Address, AddResult, CniCall, RateLimit, RefusedCall, Verb
from api.service import Attachment as AttachmentId

log = event_logger(__name__)

_CODE_OF_CAUSE = {
    Cause.NETNS_INVALID: CniCode.ENVIRONMENT_INVALID,
    Cause.ATTACHMENT_MISSING: CniCode.CONTAINER_UNKNOWN,
    Cause.ATTACHMENT_DRIFTED: CniCode.DRIFTED,
}


def cni_error(error: AgentError) -> CniError:
    """The CNI error object of an expected failure: cause and message, with evidence and remedy as details."""
    match error:
        case InvalidRequest():
            code = _CODE_OF_CAUSE.get(error.cause, CniCode.NETWORK_CONFIG_INVALID)
        case Conflict():
            code = CniCode.SUPERSEDED
        case TryAgain() | CloudFailed():
            code = CniCode.TRY_AGAIN_LATER
        case KernelFailed():
            code = CniCode.KERNEL_REFUSED
        case _:
            code = CniCode.INTERNAL
    return CniError(code, f"{error.cause}: {error.message}", _details(error))


def _details(error: AgentError) -> str:
    parts = [", ".join(f"{name}={value}" for name, value in error.evidence.items()), error.remedy]
    if error.retry_after_s is not None:
        parts.append(f"next try in {math.ceil(error.retry_after_s)} s")
    return "; ".join(part for part in parts if part)


class AgentService(AgentOperators):
    """`api.service.NodeService` for a `Node`."""

    def __init__(self, node: Node, desk: Desk) -> None:
        super().__init__(node, desk)

    def refused(self, call: RefusedCall, cause: str, message: str) -> None:
        """As for a call that failed here: an event, a log line, a metric."""
        key = AttachmentKey(container_id=call.container_id, ifname=call.ifname)
        with bind_request(call.request_id):
            remedy = "" if cause == Cause.REQUEST_INVALID else "correct the network configuration: /etc/cni/net.d"
            error = InvalidRequest(Cause(cause), message, remedy=remedy)
            self._tell(call.verb, Holder(key=key, namespace=call.pod_namespace, pod=call.pod_name), error)
            self._desk.metrics.called(call.verb, 0.0, ok=False)

    async def add(self, call: CniCall) -> AddResult:
        """See `Attachments.add`. While the agent starts, the wait for it counts against the ADD's deadline."""
        with self._answering(call):
            parts, left_s = await self._started(self._node.add_deadline_s)
            attached = await parts.attachments.add(_request(call), deadline_s=max(0.0, left_s))
        return AddResult(
            host_ifname=attached.wired.host_ifname,
            host_mac=attached.wired.host_mac,
            pod_mac=attached.wired.pod_mac,
            netns=call.netns,
            ifname=call.ifname,
            addresses=attached.addresses,
            mtu=attached.mtu,
        )

    async def delete(self, call: CniCall) -> None:
        """See `Attachments.delete`. Works in every stage: before the ledger exists the kernel alone is asked."""
        key = AttachmentKey(container_id=call.container_id, ifname=call.ifname)
        with self._answering(call):
            if self._node.parts is None:
                await self._node.detach_by_kernel(key)
            else:
                await self._node.parts.attachments.delete(key)

    async def check(self, call: CniCall) -> None:
        """See `Attachments.check`."""
        with self._answering(call):
            parts, _ = await self._started(0.0)
            await parts.attachments.check(_request(call))

    async def status(self, call: CniCall) -> None:
        """Whether this node can serve pods at all (docs/decisions/0009)."""
        del call
        failure = self._node.unavailable()
        if failure is not None:
            raise CniError(CniCode.NOT_AVAILABLE, f"{failure.cause}: {failure.message}", _details(failure))

    async def gc(self, call: CniCall, valid: frozenset[AttachmentId]) -> None:
        """See `Attachments.keep_only`."""
        keep = frozenset(AttachmentKey(container_id=container_id, ifname=ifname) for container_id, ifname in valid)
        with self._answering(call):
            parts, _ = await self._started(0.0)
            await parts.attachments.keep_only(keep)

    def pool(self) -> PoolView:
        """Empty while the agent starts."""
        parts = self._node.parts
        if parts is None:
            return PoolView(counts=AddressCounts(), waiter_count=0, enis=[], reason=self._node.startup.waits_for())
        view, now_s = parts.pool.view(), self._node.clock()
        return PoolView(
            counts=sum_counts(view.enis),
            waiter_count=view.waiter_count,
            enis=[pool_eni_view(usage, view.addresses) for usage in view.enis],
            reason=view.reason,
            conditions=[condition(as_failure(one, now_s)) for one in view.troubles],
        )

    def enis(self) -> list[EniView]:
        """As the last describe and our own changes since left them."""
        parts = self._node.parts
        if parts is None:
            return []
        addresses = parts.ledger.addresses()
        return [eni_view(usage, addresses, parts) for usage in parts.ledger.enis()]

    def allocations(
        self, *, namespace: str | None = None, pod: str | None = None, address: Address | None = None
    ) -> list[AllocationView]:
        """From the ledger; ordered by first address."""
        parts = self._node.parts
        if parts is None:
            return []
        views = [
            AllocationView(
                addresses=list(held.addresses),
                eni_id=held.eni_id or "",
                container_id=held.holder.key.container_id,
                ifname=held.holder.key.ifname,
                namespace=held.holder.namespace,
                pod=held.holder.pod,
                pod_uid=self._pod_uid(held.holder),
                host_ifname=self._node.host_ifname(held.holder),
                since=self.wall(held.since_s),
            )
            for held in parts.ledger.attachments()
            if namespace in {None, held.holder.namespace}
            and pod in {None, held.holder.pod}
            and (address is None or address in held.addresses)
        ]
        return sorted(views, key=lambda view: (view.addresses[0].version, int(view.addresses[0])))

    def eni_config(self) -> str | None:
        """See `Cluster.site`."""
        site = self._node.cluster.site()
        return site.name if isinstance(site, Site) else None

    def _pod_uid(self, holder: Holder) -> str:
        facts = self._node.cluster.pod(holder.namespace, holder.pod)
        return "" if facts is None else facts.uid

    def health(self) -> HealthView:
        """Healthy whenever it answers: a turn has a deadline, a failing one is tried again, and a bug ends the process.

        What would need a restart is an event loop that hangs, and that does not answer. Failing loops are named.
        """
        return HealthView(healthy=True, loops=[_loop_view(loop) for loop in self._node.loops()])

    def startup(self) -> StartupView:
        """The stages of `Node`, in order."""
        stages = self._node.startup.status()
        return StartupView(
            ready=self._node.startup.ready.is_set(),
            stages=[
                StageView(name=one.name, state=StageState(one.state.value), since=one.since, reason=one.reason)
                for one in stages
            ],
        )

    @contextmanager
    def _answering(self, call: CniCall) -> Iterator[None]:
        """Around one call: its time, and its failure as what the runtime reads, an event, a log line and a metric."""
        began_s, ok = self._node.clock(), False
        with bind_request(call.request_id):
            try:
                yield
                ok = True
            except AgentError as exc:
                self._tell(call.verb, _holder(call), exc)
                raise cni_error(exc) from exc
            finally:
                self._desk.metrics.called(call.verb, self._node.clock() - began_s, ok=ok)

    def _tell(self, verb: Verb, holder: Holder, error: AgentError) -> None:
        fields: dict[str, Scalar] = {
            "verb": str(verb),
            "cause": str(error.cause),
            "message": error.message,
            "remedy": error.remedy,
        }
        if error.retry_after_s is not None:
            fields["retry_after_s"] = round(error.retry_after_s, 3)
        fields |= holder_fields(holder)
        self._node.publish(Kind.CNI_FAILED, **error.evidence | fields)
        log.warning("cni_failed", **error.evidence | fields)

    async def _started(self, patience_s: float) -> tuple[Parts, float]:
        """The parts once the agent is ready, and what is left of `patience_s`.

        Raises: TryAgain: agent_starting that names the stage it hangs in, or agent_stopping.
        """
        node, loop = self._node, asyncio.get_running_loop()
        began_s = loop.time()
        if not node.startup.ready.is_set():
            waits = [loop.create_task(event.wait()) for event in (node.startup.ready, node.stop)]
            try:
                await asyncio.wait(waits, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
        parts = node.parts
        if parts is None or not node.startup.ready.is_set():
            if node.stop.is_set():
                raise stopping()
            raise TryAgain(Cause.AGENT_STARTING, node.startup.waits_for(), retry_after_s=1.0)
        return parts, patience_s - (loop.time() - began_s)


def _loop_view(loop: Reconciler) -> LoopView:
    return LoopView(
        name=loop.name,
        healthy=loop.failure_count == 0,
        seconds_since_good_turn_s=round(loop.seconds_since_good_turn(), 3),
        reason=loop.last_error,
    )


def _request(call: CniCall) -> AttachRequest:
    return AttachRequest(
        holder=_holder(call),
        netns=call.netns,
        request_id=call.request_id,
        mtu=call.mtu,
        port_mappings=tuple(
            PortMapping(
                host_port=one.host_port,
                container_port=one.container_port,
                transport=Transport(one.protocol),
                host_address=one.host_address,
            )
            for one in call.port_mappings
        ),
        ingress=_shaping(call.ingress),
        egress=_shaping(call.egress),
    )


def _shaping(limit: RateLimit | None) -> Shaping | None:
    if limit is None:
        return None
    return Shaping(rate_bits_per_s=limit.rate_bits_per_s, burst_bits=limit.burst_bits)


def _holder(call: CniCall) -> Holder:
    key = AttachmentKey(container_id=call.container_id, ifname=call.ifname)
    return Holder(key=key, namespace=call.pod_namespace, pod=call.pod_name)
