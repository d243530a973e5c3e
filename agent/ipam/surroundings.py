"""What the pool must know of its node that neither EC2 nor the kernel says. Values only; others fill them in."""

from __future__ import annotations

from dataclasses import dataclass

from agent.ipam.plan import EniSite


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The node's standing, at one moment. The defaults hold while nobody has said anything else.

    is_schedulable: False for a cordoned node and for an agent that is about to end: nothing is attached or detached.
    is_provisioning: False when somebody else gives the node its ENIs and addresses: EC2 is observed, never changed.
    site: where new ENIs go with custom networking.
    max_pods: what the kubelet takes; None when unknown.
    announced_count: pods bound to the node which have not asked for an address yet.
    """

    is_schedulable: bool = True
    is_provisioning: bool = True
    site: EniSite | None = None
    max_pods: int | None = None
    announced_count: int = 0
