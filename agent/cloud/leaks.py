"""Leaked ENIs: made for a node, attached to nothing, and nobody left who would delete them.

A leak comes of a node that died between two of EC2's steps, or of an instance that was terminated while an ENI had no
DeleteOnTermination yet. One describe finds those of the whole cluster; of an ENI in it, `judge` says what it is. It
is deleted only when its owner is proven gone: it is this instance, which makes no ENI that old, or EC2 knows no such
instance, or only a terminated one. Doubt is no proof: a tag that cannot be read never leads to deletion.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from agent.cloud import tags
from agent.ipam.model import EniId

GRACE_S = 300.0
"""How old a leak must be: an ENI is available, too, between its creation and its attachment, and EC2's answers lag. The
AWS plugin's figure; at most a few seconds are needed."""
DESCRIPTION_PREFIX = "aws-K8S-"
"""Then comes the instance's id. The AWS plugin's ENIs are described alike: on a node that changed over, so are its
leaks."""

_INSTANCE_ID = re.compile(r"i-[0-9a-f]{8}(?:[0-9a-f]{9})?")
# RFC 3339 with an offset or Z. The AWS plugin writes the node's local time.
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d)")


class Standing(StrEnum):
    """What to do with an ENI of the sweep's answer."""

    OURS = "ours"
    """A leak of this instance: delete it."""
    ASK = "ask"
    """A leak of another instance, if that is gone: ask EC2."""
    WAIT = "wait"
    """Too young, or seen for the first time."""
    LEAVE = "leave"
    """Not a leak, or a tag cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """An available ENI, as a describe shows it.

    account_id: whose it is; in a shared VPC not only ours are listed. in_use: EC2 says that it is attached or on its
    way.
    """

    eni_id: EniId
    account_id: str
    description: str
    tags: Mapping[str, str]
    in_use: bool = False

    @property
    def owner_id(self) -> str:
        """The instance it was made for."""
        return self.tags.get(tags.INSTANCE_ID, "")


def judge(
    stray: Stray, *, instance_id: str, account_id: str, cluster_name: str, now: datetime, seen_s: float | None
) -> tuple[Standing, str]:
    """What a stray is to the instance that asks, and why.

    account_id: the instance's. now: an aware time. seen_s: seconds since a sweep first saw it; None when this one is
    the first.
    """
    owner_id = stray.owner_id
    if stray.account_id != account_id:
        return Standing.LEAVE, f'it belongs to account "{stray.account_id}"'
    if stray.in_use:
        return Standing.LEAVE, "it is attached"
    if not _INSTANCE_ID.fullmatch(owner_id):
        return Standing.LEAVE, f'its tag {tags.INSTANCE_ID} is "{owner_id}", no instance id'
    if stray.description != f"{DESCRIPTION_PREFIX}{owner_id}":
        return Standing.LEAVE, "its description is not that of the instance it is tagged for"
    if stray.tags.get(tags.NO_MANAGE) == "true":
        return Standing.LEAVE, f"its tag {tags.NO_MANAGE} says so"
    if cluster_name and stray.tags.get(tags.CLUSTER) not in {cluster_name, None}:
        return Standing.LEAVE, "it belongs to another cluster"
    text = stray.tags.get(tags.CREATED_AT)
    if text is None:
        if seen_s is None or seen_s < GRACE_S:
            return Standing.WAIT, f"it has no tag {tags.CREATED_AT}, and was not seen {GRACE_S:g} s ago"
    else:
        created = created_at(text)
        if created is None:
            return Standing.LEAVE, f'its tag {tags.CREATED_AT} is "{text}", no time'
        if now - created < timedelta(seconds=GRACE_S):
            return Standing.WAIT, "it is too young"
    if owner_id == instance_id:
        return Standing.OURS, "this instance made it and does not use it"
    return Standing.ASK, f"it was made for {owner_id}"


def created_at(text: str) -> datetime | None:
    """The time a createdAt tag says (RFC 3339), or None."""
    if not _TIMESTAMP.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def gone(owner_ids: Iterable[str], states: Mapping[str, str]) -> frozenset[str]:
    """Owners that do not exist any more. states: by instance id, of those EC2 knows."""
    return frozenset(one for one in owner_ids if states.get(one, "terminated") == "terminated")
