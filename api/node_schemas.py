"""What the routes about the node answer: the plan, the settings, the EC2 budget."""

from __future__ import annotations

from datetime import datetime

from api.schemas import Count, Seconds, View, shown


class ActionView(View):
    """One thing the pool asks of EC2."""

    action: str
    """What: for example `assign_addresses`, `unassign_addresses`, `create_eni` or `release_eni`."""
    reason: str
    """Why, in one sentence with the numbers."""
    arguments: dict[str, str | int | list[str] | None]
    """On what, and how much: for example `eni_id`, `count`, `subnet_id`, `addresses`."""


class PlanView(View):
    """What the pool would do now, worked out from what it knows at this moment. Nothing is started by asking."""

    model_config = shown(
        {
            "actions": [
                {
                    "action": "assign_addresses",
                    "reason": "3 addresses short of the targets",
                    "arguments": {"eni_id": "eni-0123456789abcdef0", "count": 3},
                }
            ],
            "reason": "demand 7, free 2, target 5: grow by 3",
            "short_count": 3,
            "recheck_after_s": 12.5,
            "in_flight": [],
        }
    )

    actions: list[ActionView]
    """What it would start; independent of one another. Empty when the pool is as it should be."""
    reason: str
    """Why, in one sentence with the numbers; explains an empty plan too."""
    short_count: Count
    """Addresses that are missing, those on their way counted as there."""
    recheck_after_s: Seconds | None
    """Seconds until time alone may change the plan; null when only an event can."""
    in_flight: list[ActionView]
    """What has been started already and has not ended."""


class SettingView(View):
    """One setting and where its value comes from."""

    name: str
    """Name of the environment variable."""
    value: str | int | bool | list[str] | dict[str, str] | None
    """What the agent works with; null for unset. A secret is shown as `(left out)`."""
    default: str
    """What it is without the variable, as one would write it there; empty for unset."""
    provenance: str
    """Who set it: `default` nobody, `environment` the environment variable, `argument` the command line."""
    allowed: str
    """Which values are allowed."""
    description: str
    """What the setting does."""


class ConfigView(View):
    """The settings this agent runs with. They are read once, at its start."""

    model_config = shown(
        {
            "version": "0.1.0",
            "settings": [
                {
                    "name": "WARM_IP_TARGET",
                    "value": 5,
                    "default": "0",
                    "provenance": "environment",
                    "allowed": "an integer from 0 to 10000",
                    "description": "How many free addresses to hold.",
                }
            ],
            "notices": [],
        }
    )

    version: str
    """Version of the agent."""
    settings: list[SettingView]
    """All there are, in the order of `docs/configuration.md`."""
    notices: list[str]
    """Sentences about names that are set and have no effect."""


class CallCount(View):
    """Requests of one kind to EC2, since the agent started."""

    reason: str
    """What they were made for, for example `start`, `grow` or `shrink`."""
    outcome: str
    """`ok`, the name of a cause (`ec2_throttled`, `iam_denied`, ...), `withheld` (not sent) or `cancelled`."""
    count: Count
    """How many there were."""


class ActionBudgetView(View):
    """One EC2 action: the account's published token bucket, and what this node takes of it."""

    action: str
    """Name of the EC2 action, for example `AssignPrivateIpAddresses`."""
    bucket_size: Seconds
    """Tokens the account's bucket holds, as EC2 publishes it."""
    refill_per_s: Seconds
    """Tokens it gets back each second, for all callers of the account together."""
    rate_per_s: Seconds
    """Requests a second this node allows itself; less than the above once EC2 has throttled it."""
    level: float
    """Requests it may send at once now; below 0 while some wait."""
    throttled_count: Count
    """Requests EC2 answered with "slow down"."""
    withheld_count: Count
    """Requests that were not sent because no token would have come in time."""
    waited_s: Seconds
    """Seconds that requests have waited for tokens, in all."""
    calls: list[CallCount]
    """Requests so far, by reason and outcome."""


class BudgetView(View):
    """What this node has asked of EC2."""

    model_config = shown(
        {
            "since": "2026-11-24T09:30:00Z",
            "call_count": 5,
            "throttled_count": 1,
            "actions": [
                {
                    "action": "AssignPrivateIpAddresses",
                    "bucket_size": 100,
                    "refill_per_s": 5,
                    "rate_per_s": 0.25,
                    "level": 0,
                    "throttled_count": 1,
                    "withheld_count": 0,
                    "waited_s": 2.5,
                    "calls": [
                        {"reason": "grow", "outcome": "ec2_throttled", "count": 1},
                        {"reason": "grow", "outcome": "ok", "count": 4},
                    ],
                }
            ],
        }
    )

    since: datetime
    """When this agent started to count."""
    call_count: Count
    """All requests together."""
    throttled_count: Count
    """Those EC2 answered with "slow down"."""
    actions: list[ActionBudgetView]
    """In the order of their names."""
