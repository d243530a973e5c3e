"""Which states of the pool become events, once when they begin and once when they end."""

from __future__ import annotations

from typing import Any

import pytest

from agent.errors import AgentError, Cause, CloudDenied, CloudFailed, CloudLimit, TryAgain
from agent.ipam.model import InstanceLimits
from agent.ipam.trouble import Trouble
from agent.kube.notices import AGAIN_S, Key, Reported, of_repair, pod_capacity, states
from agent.ports.cluster import Notice, NoticeKind

M5_LARGE = InstanceLimits(instance_type="m5.large", eni_count=3, addresses_per_eni=10)


def a_trouble(error: AgentError, *, scope: str = "grow", failure_count: int = 1) -> Trouble:
    return Trouble(scope=scope, error=error, failure_count=failure_count, since_s=0.0, next_try_s=9.0)


def kinds(*troubles: Trouble, **kwargs: Any) -> list[Key]:
    return list(states(troubles=troubles, **{"exhausted": None, "max_pods": None, "capacity": 29, **kwargs}))


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        (
            a_trouble(CloudLimit(Cause.SUBNET_EXHAUSTED, "full", evidence={"subnet": "subnet-1"})),
            [(NoticeKind.SUBNET_EXHAUSTED, "subnet-1")],
        ),
        (
            a_trouble(CloudDenied(Cause.IAM_DENIED, "no", evidence={"action": "CreateNetworkInterface"})),
            [(NoticeKind.IAM_DENIED, "CreateNetworkInterface")],
        ),
        (
            a_trouble(CloudFailed(Cause.EC2_REFUSED, "no", evidence={"action": "AttachNetworkInterface"})),
            [(NoticeKind.ENI_FAILED, "AttachNetworkInterface")],
        ),
        (
            a_trouble(AgentError(Cause.ENI_LINK_MISSING, "no link"), scope="eni eni-1"),
            [(NoticeKind.ENI_FAILED, "eni eni-1")],
        ),
        (a_trouble(CloudFailed(Cause.EC2_UNAVAILABLE, "late")), []),
        (
            a_trouble(CloudFailed(Cause.EC2_UNAVAILABLE, "late"), failure_count=3),
            [(NoticeKind.EC2_FAILING, "ec2_unavailable")],
        ),
    ],
)
def test_a_trouble_has_one_notice_or_none(trouble: Trouble, expected: list[Key]) -> None:
    assert kinds(trouble) == expected


def test_pods_that_wait_in_vain_are_told_with_their_cause() -> None:
    exhausted = TryAgain(Cause.INSTANCE_LIMIT, "all 29 addresses are in use", evidence={"waiting": 3})

    found = states(troubles=(), exhausted=exhausted, max_pods=None, capacity=29)

    (notice,) = found.values()
    assert notice.message == "pods wait for an address: instance_limit: all 29 addresses are in use"
    assert notice.evidence == {"waiting": 3}


def test_a_kubelet_that_takes_more_pods_than_there_are_addresses() -> None:
    assert kinds(max_pods=110) == [(NoticeKind.MAX_PODS_TOO_HIGH, "")]
    assert kinds(max_pods=29) == []


def test_capacity_is_that_of_the_eks_user_guide() -> None:
    assert pod_capacity(M5_LARGE, per_slot=1, eni_count=3, custom_networking=False) == 29
    assert pod_capacity(M5_LARGE, per_slot=1, eni_count=3, custom_networking=True) == 20
    assert pod_capacity(M5_LARGE, per_slot=16, eni_count=3, custom_networking=False) == 434


def test_only_changes_are_reported_and_what_lasts_from_time_to_time() -> None:
    reported = Reported()
    key: Key = (NoticeKind.SUBNET_EXHAUSTED, "subnet-1")
    notice = Notice(kind=key[0], subject=key[1], message="full")

    assert reported.changes({key: notice}, 0.0) == [notice]
    assert reported.changes({key: notice}, 1.0) == []
    assert reported.changes({key: notice}, AGAIN_S) == [notice]
    (end,) = reported.changes({}, AGAIN_S + 1)
    assert end.over
    assert reported.changes({}, AGAIN_S + 2) == []


def test_a_repair_says_what_was_found_and_who_keeps_doing_it() -> None:
    notice = of_repair("route 10.0.0.11", "missing", contested=True)

    assert (notice.kind, notice.subject) == (NoticeKind.DRIFT_REPAIRED, "route 10.0.0.11")
    assert notice.message == ("route 10.0.0.11 was put right; found: missing; something on this node keeps changing it")
    assert "could not be put right: EPERM" in of_repair("table inet enoki", "missing", error="EPERM").message
