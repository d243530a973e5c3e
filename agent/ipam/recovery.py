"""The ledger after a start: what the kernel shows, entered into what EC2 lists. Pure.

There is no journal. An attachment exists exactly if its pod route does (the route is made last in ADD and removed first
in DEL), so a host link of ours without one is a torn ADD and goes. An address that has a pod route is held, whatever
EC2 says: where EC2 does not list it, it is quarantined and reported, never taken from the pod.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.errors import Cause, CloudGone
from agent.ipam.ledger import DENSEST, Ledger
from agent.ipam.model import Eni, Finding, FindingKind
from agent.ipam.placement import PlacementPolicy
from agent.ports.datapath import AttachmentSeen, KernelSeen

PRIMARY_AGAIN_S = 1.0
"""When to describe again after one that lacked the primary ENI: a new instance shows up within seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscardLink:
    """Delete a host link of ours: nobody holds an address through it."""

    host_ifname: str
    reason: str


Repair = DiscardLink
"""What must be put right in the kernel after a start. A union of one, for now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """The ledger, what to repair, and what a person may want to know. ENIs are not ready yet: set them up."""

    ledger: Ledger
    repairs: tuple[Repair, ...]
    findings: tuple[Finding, ...]


def recover(seen: KernelSeen, enis: Sequence[Eni], now_s: float, placement: PlacementPolicy = DENSEST) -> Recovery:
    """Build the ledger. The observation of the kernel must be younger than that of EC2.

    Two links with the same attachment key cannot both be right: the one made last (the higher interface index) stays.

    Raises: CloudGone when `enis` lacks the primary ENI. Every instance has one, so the describe is older than the
    instance (EC2 is eventually consistent): ask again.
    """
    if not any(eni.is_primary for eni in enis):
        raise CloudGone(
            Cause.EC2_GONE,
            "EC2 does not list this instance's primary ENI yet",
            evidence={"eni_count": len(enis)},
            retry_after_s=PRIMARY_AGAIN_S,
        )
    ledger = Ledger(placement)
    findings = list(ledger.observe_enis(enis, now_s))
    repairs: list[Repair] = []
    newest = {one.holder.key: one.host_ifname for one in sorted(seen.attachments, key=_made) if one.addresses}
    for attachment in sorted(seen.attachments, key=_made):
        fault = _fault(attachment, newest[attachment.holder.key]) if attachment.addresses else _NO_ROUTE
        if fault is None:
            findings.extend(ledger.adopt(attachment.holder, attachment.addresses, now_s))
        else:
            repairs.append(DiscardLink(host_ifname=attachment.host_ifname, reason=fault))
            findings.append(_torn(attachment, fault))
    for cooling in seen.cooling:
        ledger.rest(cooling.address, until_s=now_s + cooling.remaining_s, now_s=now_s)
    return Recovery(ledger=ledger, repairs=tuple(repairs), findings=tuple(findings))


_NO_ROUTE = "no pod route leads to it: its ADD never ended, or its DEL has begun"


def _made(attachment: AttachmentSeen) -> int:
    return attachment.host_ifindex


def _fault(attachment: AttachmentSeen, newest: str) -> str | None:
    return None if attachment.host_ifname == newest else f"the newer link {newest} has the same attachment"


def _torn(attachment: AttachmentSeen, fault: str) -> Finding:
    return Finding(
        kind=FindingKind.LINK_TORN,
        message=f"{attachment.host_ifname} of {attachment.holder} is discarded: {fault}",
        evidence={"host_ifname": attachment.host_ifname, "holder": str(attachment.holder)},
    )
