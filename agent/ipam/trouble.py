"""What fails, and how long to leave it alone. Pure.

A scope is what fails together: a kind of request (`GROW`, ...), one subnet, or one ENI.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.errors import AgentError, CloudDenied, CloudLimit, CloudThrottled
from agent.ipam.model import EniId, SubnetId

GROW = "grow"
CREATE_ENI = "create_eni"
SHRINK = "shrink"
DESCRIBE_ENIS = "describe_enis"
DESCRIBE_SUBNETS = "describe_subnets"
SITE = "site"


def subnet_scope(subnet_id: SubnetId) -> str:
    return f"subnet {subnet_id}"


def prefix_scope(subnet_id: SubnetId) -> str:
    return f"prefixes of {subnet_id}"


def eni_scope(eni_id: EniId) -> str:
    return f"eni {eni_id}"


def align_scope(eni_id: EniId) -> str:
    return f"align {eni_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """One scope that fails: its last error, how often in a row, since when, and when the next try may come."""

    scope: str
    error: AgentError
    failure_count: int
    since_s: float
    next_try_s: float


def longest_wait_s(scope: str, error: AgentError, failure_count: int) -> float:
    """The upper end of the wait after the n-th failure in a row (n >= 1); full jitter draws below it.

    EC2's buckets refill every second (EC2 API reference, "Request throttling"), so throttling starts short. A full
    subnet or a missing permission waits for a person or another node, and every try is a refused call: a few an hour.
    """
    match error:
        case CloudThrottled():
            first_s, last_s = 1.0, 60.0
        case CloudLimit() if scope == GROW:
            # An ENI is fuller than we thought: after another look the plan is a different one.
            first_s, last_s = 1.0, 120.0
        case CloudLimit():
            first_s, last_s = 60.0, 1800.0
        case CloudDenied():
            first_s, last_s = 30.0, 1200.0
        case _:
            first_s, last_s = 1.0, 120.0
    return min(last_s, first_s * float(2 ** min(failure_count - 1, 16)))
