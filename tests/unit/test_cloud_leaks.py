"""What makes an ENI a leak: every condition on its own keeps it from being deleted."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from agent.cloud.leaks import GRACE_S, Standing, Stray, created_at, gone, judge
from agent.ipam.model import EniId

US, THEM = "i-0aaaaaaaaaaaaaaaa", "i-0bbbbbbbbbbbbbbbb"
ACCOUNT = "123456789012"
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
OLD, YOUNG = "2026-03-01T11:50:00Z", "2026-03-01T11:58:00Z"
INSTANCE, CREATED = "node.k8s.amazonaws.com/instance_id", "node.k8s.amazonaws.com/createdAt"
CLUSTER, NO_MANAGE = "cluster.k8s.amazonaws.com/name", "node.k8s.amazonaws.com/no_manage"


def a_stray(owner: str = US, created: str | None = OLD, **tags: str) -> Stray:
    own = {INSTANCE: owner, CLUSTER: "blue"} | ({} if created is None else {CREATED: created})
    return Stray(
        eni_id=EniId("eni-1"),
        account_id=ACCOUNT,
        description=f"aws-K8S-{owner}",
        tags=own | {key.replace("_", "/"): value for key, value in tags.items()},
    )


def standing(stray: Stray, *, cluster: str = "blue", seen_s: float | None = 0.0, now: datetime = NOW) -> Standing:
    return judge(stray, instance_id=US, account_id=ACCOUNT, cluster_name=cluster, now=now, seen_s=seen_s)[0]


def test_an_old_one_is_ours_or_its_owner_must_be_asked_for() -> None:
    assert standing(a_stray()) is Standing.OURS
    assert standing(a_stray(THEM)) is Standing.ASK


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "2026-13-01T00:00:00Z", "2026-03-01", "20260301T115000Z", "0", "2026-03-01T11:50:00", OLD + "x"],
)
def test_a_time_nobody_can_read_never_leads_to_deletion(text: str) -> None:
    stray = a_stray(created=text)
    for seen_s in (0.0, 1e9):
        assert standing(stray, seen_s=seen_s, now=datetime(2036, 1, 1, tzinfo=UTC)) is Standing.LEAVE


@pytest.mark.parametrize(
    "owner", ["", "i-", "i-xyz", "i-0aaaaaaaaaaaaaaa*", "eni-0aaaaaaaaaaaaaaaa", US + "\n", "true"]
)
def test_an_owner_that_is_no_instance_id_never_leads_to_deletion(owner: str) -> None:
    assert standing(a_stray(owner)) is Standing.LEAVE


def test_a_description_of_another_instance_does_not_count() -> None:
    for description in ("", "aws-K8S-", f"aws-K8S-{THEM}", f"prod aws-K8S-{US}"):
        assert standing(replace(a_stray(), description=description)) is Standing.LEAVE


def test_age_decides_and_a_time_to_come_is_no_age() -> None:
    assert standing(a_stray(created=YOUNG)) is Standing.WAIT
    assert standing(a_stray(created="2026-03-01T13:00:00Z")) is Standing.WAIT
    assert standing(a_stray(created="2026-03-01T12:50:00.5+01:00")) is Standing.OURS


def test_without_a_time_two_sightings_are_needed() -> None:
    stray = a_stray(created=None)
    assert standing(stray, seen_s=None) is Standing.WAIT
    assert standing(stray, seen_s=GRACE_S - 1) is Standing.WAIT
    assert standing(stray, seen_s=GRACE_S) is Standing.OURS


@pytest.mark.parametrize("account", ["210987654321", "", ACCOUNT + " "])
def test_what_another_account_owns_is_left_alone(account: str) -> None:
    for stray in (a_stray(), a_stray(THEM), a_stray(created=None)):
        assert standing(replace(stray, account_id=account), seen_s=1e9) is Standing.LEAVE


def test_another_cluster_another_use_and_no_manage_are_left_alone() -> None:
    stray = a_stray()
    assert standing(stray, cluster="green") is Standing.LEAVE
    assert standing(stray, cluster="") is Standing.OURS
    assert standing(replace(stray, in_use=True)) is Standing.LEAVE
    assert standing(replace(stray, tags={**stray.tags, NO_MANAGE: "true"})) is Standing.LEAVE
    assert standing(replace(stray, tags={**stray.tags, NO_MANAGE: "false"})) is Standing.OURS


def test_times_are_rfc_3339_with_an_offset() -> None:
    assert created_at("2026-03-01T12:50:00+01:00") == datetime(2026, 3, 1, 11, 50, tzinfo=UTC)
    assert created_at("9999-12-31T23:59:59-23:59") is None


def test_an_owner_is_gone_when_ec2_knows_none_or_a_terminated_one() -> None:
    states = {"i-1": "running", "i-2": "stopped", "i-3": "terminated", "i-4": "shutting-down", "i-5": "pending"}
    assert gone(["i-1", "i-2", "i-3", "i-4", "i-5", "i-6"], states) == {"i-3", "i-6"}
