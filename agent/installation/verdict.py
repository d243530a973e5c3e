"""When the network configuration should be on the host. Pure; docs/decisions/0061 has the reasons."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

START_GRACE_S = 60.0
"""How long a start may take before a node without pods says that it is not ready. A start takes seconds; what takes
longer waits for somebody (a permission, an endpoint)."""

UNDECIDED_S = 5.0
"""How long a started node without addresses waits for EC2's first answer. None by then and no failure either: the
targets ask for no address, and the first pod's ADD will."""


class Wish(StrEnum):
    """What to do with the file. LEAVE: whatever is there stays."""

    PUBLISH = "publish"
    WITHDRAW = "withdraw"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """What the wish depends on.

    started: every stage of the start is done.
    has_addresses: there are addresses for pods, held ones included.
    trouble: why no pod can be served although the start is done; empty when pods can be.
    from_before_boot: the file there is was written before this boot of the node.
    stage_s: how long the agent has been starting, or has been started.
    pod_count: pods that the kernel knows; None when nobody has looked.
    """

    started: bool
    has_addresses: bool
    trouble: str
    from_before_boot: bool
    stage_s: float
    pod_count: int | None


def decide(situation: Situation) -> Wish:
    """A file that goes makes the node NotReady, and five minutes later Kubernetes evicts every pod on it.

    So it never goes while pods run, nor during the seconds of an upgrade.
    """
    if situation.started:
        if situation.has_addresses:
            return Wish.PUBLISH
        if situation.trouble:
            return Wish.WITHDRAW
        return Wish.LEAVE if situation.stage_s < UNDECIDED_S else Wish.PUBLISH
    if situation.from_before_boot:
        # No pod has been served since; the node must not look ready because it once was.
        return Wish.WITHDRAW
    if situation.stage_s > START_GRACE_S and situation.pod_count == 0:
        return Wish.WITHDRAW
    return Wish.LEAVE
