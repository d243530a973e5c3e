"""What of the pool's state is worth a Kubernetes event. Pure.

Level-triggered: the loop asks what is so now, and what has begun or ended since is reported. So nothing that happens in
the pool depends on anybody listening, and a report that got lost is made up for by the next turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from agent.errors import AgentError, Cause
from agent.ipam.model import InstanceLimits
from agent.ipam.trouble import Trouble
from agent.ports.cluster import Notice, NoticeKind

Key = tuple[NoticeKind, str]

STEADY_COUNT = 3
"""Failures in a row after which EC2's not answering is more than a hiccup."""
AGAIN_S = 300.0
"""How often a lasting state is reported again, so that its event is not forgotten (they live for an hour)."""
_ATTACHING = frozenset({"CreateNetworkInterface", "AttachNetworkInterface", "ModifyNetworkInterfaceAttribute"})


def states(
    *, troubles: Sequence[Trouble], exhausted: AgentError | None, max_pods: int | None, capacity: int
) -> dict[Key, Notice]:
    """What is so now.

    exhausted: why requests wait in vain; None when none does. capacity: pods this instance can carry at most.
    """
    found = [one for one in map(_of_trouble, troubles) if one is not None]
    if exhausted is not None:
        found.append(
            Notice(
                kind=NoticeKind.POOL_EXHAUSTED,
                message=f"pods wait for an address: {exhausted.cause}: {exhausted.message}",
                evidence=exhausted.evidence,
            )
        )
    if max_pods is not None and max_pods > capacity:
        found.append(
            Notice(
                kind=NoticeKind.MAX_PODS_TOO_HIGH,
                message=f"the kubelet takes {max_pods} pods, and this instance can give {capacity} of them an address;"
                " the rest will stay in ContainerCreating",
                evidence={"max_pods": max_pods, "capacity": capacity},
            )
        )
    return {(one.kind, one.subject): one for one in found}


def _of_trouble(trouble: Trouble) -> Notice | None:
    error = trouble.error
    action = str(error.evidence.get("action", ""))
    match error.cause:
        case Cause.SUBNET_EXHAUSTED | Cause.SUBNET_FRAGMENTED:
            subject = str(error.evidence.get("subnet", trouble.scope))
            return _notice(NoticeKind.SUBNET_EXHAUSTED, subject, error)
        case Cause.IAM_DENIED:
            return _notice(NoticeKind.IAM_DENIED, action, error)
        case Cause.ENI_LINK_MISSING | Cause.KERNEL_REFUSED:
            return _notice(NoticeKind.ENI_FAILED, trouble.scope, error)
        case Cause.EC2_GONE | Cause.EC2_REFUSED | Cause.EC2_LIMIT if action in _ATTACHING:
            return _notice(NoticeKind.ENI_FAILED, action, error)
        case Cause.EC2_UNAVAILABLE | Cause.EC2_THROTTLED | Cause.EC2_REFUSED if trouble.failure_count >= STEADY_COUNT:
            return _notice(NoticeKind.EC2_FAILING, str(error.cause), error)
        case _:
            return None


def _notice(kind: NoticeKind, subject: str, error: AgentError) -> Notice:
    text = f"{error.message}; {error.remedy}" if error.remedy else error.message
    return Notice(kind=kind, subject=subject, message=text, evidence=error.evidence)


def of_repair(subject: str, difference: str, *, contested: bool = False, error: str = "") -> Notice:
    """Something of ours in the kernel that was not as it should be, and was put right (or was not: `error`).

    contested: somebody keeps changing it. Reported when it happens: there is no state to look for afterwards.
    """
    what = f"{subject} could not be put right: {error}" if error else f"{subject} was put right"
    again = "; something on this node keeps changing it" if contested else ""
    return Notice(
        kind=NoticeKind.DRIFT_REPAIRED,
        subject=subject,
        message=f"{what}; found: {difference}{again}",
        evidence={"object": subject, "difference": difference},
    )


class Reported:
    """What has been reported and not ended, and when."""

    def __init__(self) -> None:
        self._told: dict[Key, tuple[Notice, float]] = {}

    def changes(self, now: Mapping[Key, Notice], now_s: float) -> list[Notice]:
        """What to report: what is new, what lasts and was not mentioned for long, and what has ended."""
        fresh = {
            key: notice for key, notice in now.items() if key not in self._told or now_s - self._told[key][1] >= AGAIN_S
        }
        ended = [replace(notice, over=True) for key, (notice, _) in self._told.items() if key not in now]
        kept = {key: told for key, told in self._told.items() if key in now}
        self._told = kept | {key: (notice, now_s) for key, notice in fresh.items()}
        return [*fresh.values(), *ended]


def pod_capacity(limits: InstanceLimits, *, per_slot: int, eni_count: int, custom_networking: bool) -> int:
    """Pods that an instance can carry: an address each, and two on the host's network (kube-proxy and the agent).

    EKS User Guide, "Choose an EC2 instance type": ENIs x (IPv4 addresses per ENI - 1) + 2; with custom networking one
    ENI less, because the primary serves none.
    """
    serving = eni_count - 1 if custom_networking else eni_count
    return max(0, serving) * limits.slots * per_slot + 2
