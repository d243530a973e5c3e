"""What the API asks of a node, answered by its parts. Translates both ways and decides nothing.

The one table that turns an `AgentError` into what the runtime reads is here; `docs/` and tests follow it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from ipaddress import ip_network

from agent.attachments import AttachRequest, stopping
from agent.errors import AgentError, Cause, CloudFailed, Conflict, InvalidRequest, KernelFailed, TryAgain
from agent.ipam.model import AddressView as OneAddress
from agent.ipam.model import AttachmentKey, EniUsage, Holder
from agent.node import Node, Parts
from agent.ports import PortMapping, Shaping, Transport
from agent.runtime.log import bind_request
from agent.runtime.reconciler import Reconciler
from api.problems import CniCode, CniError
from api.schemas import (
    AddressCounts,
    AddressStateName,
    AddressView,
    AllocationView,
    ConditionView,
    EniView,
    HealthView,
    LoopView,
    PoolEniView,
    PoolView,
    StageState,
    StageView,
    StartupView,
)
from api.service import Address, AddResult, CniCall, RateLimit
from api.service import Attachment as AttachmentId

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


class AgentService:
    """`api.service.NodeService` for a `Node`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def add(self, call: CniCall) -> AddResult:
        """See `Attachments.add`. While the agent starts, the wait for it counts against the ADD's deadline."""
        try:
            parts, left_s = await self._started(self._node.add_deadline_s)
            attached = await parts.attachments.add(_request(call), deadline_s=max(0.0, left_s))
        except AgentError as exc:
            raise cni_error(exc) from exc
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
        try:
            with bind_request(call.request_id):
                if self._node.parts is None:
                    await self._node.detach_by_kernel(key)
                else:
                    await self._node.parts.attachments.delete(key)
        except AgentError as exc:
            raise cni_error(exc) from exc

    async def check(self, call: CniCall) -> None:
        """See `Attachments.check`."""
        try:
            parts, _ = await self._started(0.0)
            await parts.attachments.check(_request(call))
        except AgentError as exc:
            raise cni_error(exc) from exc

    async def status(self, call: CniCall) -> None:
        """Whether this node can serve pods at all (docs/decisions/0009)."""
        del call
        failure = self._node.unavailable()
        if failure is not None:
            raise CniError(CniCode.NOT_AVAILABLE, f"{failure.cause}: {failure.message}", _details(failure))

    async def gc(self, call: CniCall, valid: frozenset[AttachmentId]) -> None:
        """See `Attachments.keep_only`."""
        del call
        keep = frozenset(AttachmentKey(container_id=container_id, ifname=ifname) for container_id, ifname in valid)
        try:
            parts, _ = await self._started(0.0)
            await parts.attachments.keep_only(keep)
        except AgentError as exc:
            raise cni_error(exc) from exc

    def pool(self) -> PoolView:
        """Empty while the agent starts."""
        parts = self._node.parts
        if parts is None:
            return PoolView(counts=AddressCounts(), waiter_count=0, enis=[], reason=self._node.startup.waits_for())
        view = parts.pool.view()
        return PoolView(
            counts=_sum(view.enis),
            waiter_count=view.waiter_count,
            enis=[_pool_eni_view(usage, view.addresses) for usage in view.enis],
            reason=view.reason,
            conditions=[] if view.failure is None else [_condition(view.failure)],
        )

    def enis(self) -> list[EniView]:
        """As the last describe and our own changes since left them."""
        parts = self._node.parts
        if parts is None:
            return []
        addresses = parts.ledger.addresses()
        return [_eni_view(usage, addresses, parts) for usage in parts.ledger.enis()]

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
            )
            for held in parts.ledger.attachments()
            if namespace in {None, held.holder.namespace}
            and pod in {None, held.holder.pod}
            and (address is None or address in held.addresses)
        ]
        return sorted(views, key=lambda view: (view.addresses[0].version, int(view.addresses[0])))

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
    key = AttachmentKey(container_id=call.container_id, ifname=call.ifname)
    return AttachRequest(
        holder=Holder(key=key, namespace=call.pod_namespace, pod=call.pod_name),
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


def _counts(usage: EniUsage) -> AddressCounts:
    return AddressCounts(
        free_count=len(usage.free),
        held_count=usage.held_count,
        cooling_count=usage.cooling_count,
        retiring_count=usage.retiring_count,
        quarantined_count=usage.quarantined_count,
    )


def _sum(usages: Sequence[EniUsage]) -> AddressCounts:
    each = [_counts(usage) for usage in usages]
    return AddressCounts(**{name: sum(getattr(one, name) for one in each) for name in AddressCounts.model_fields})


def _pool_eni_view(usage: EniUsage, addresses: Sequence[OneAddress]) -> PoolEniView:
    own = [one for one in addresses if one.eni_id == usage.eni.eni_id]
    return PoolEniView(
        eni_id=usage.eni.eni_id,
        counts=_counts(usage),
        addresses=[AddressView(address=one.address, state=AddressStateName(one.state)) for one in own],
    )


def _eni_view(usage: EniUsage, addresses: Sequence[OneAddress], parts: Parts) -> EniView:
    eni = usage.eni
    prefixes = [block.network for block in eni.blocks if block.is_prefix]
    # Not `eni.blocks`: those are of the last describe, and the ledger also knows what was granted since.
    singles = [ip_network(one.address) for one in addresses if one.eni_id == eni.eni_id and one.listed]
    return EniView(
        eni_id=eni.eni_id,
        mac=eni.mac,
        card=eni.card,
        device=eni.device,
        subnet_id=eni.subnet_id,
        subnet_cidr=eni.subnet_cidr,
        primary_address=eni.primary_address,
        table_id=parts.ledger.table_id(eni.eni_id),
        managed=eni.managed,
        slot_count=parts.limits.slots,
        blocks=[*prefixes, *singles],
        counts=_counts(usage),
    )


def _condition(failure: AgentError) -> ConditionView:
    return ConditionView(
        cause=failure.cause,
        message=failure.message,
        evidence=failure.evidence,
        remedy=failure.remedy,
        retry_after_s=failure.retry_after_s,
    )
