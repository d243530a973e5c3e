"""What `/v1/doctor` answers."""

from __future__ import annotations

from enum import StrEnum

from api.schemas import Scalar, View, shown


class VerdictName(StrEnum):
    """What a check found. `warning`: pods start, and something will hurt. `failing`: pods do not start, or lose
    packets. `skipped`: it could not be looked at from where the agent runs, or does not apply."""

    OK = "ok"
    WARNING = "warning"
    FAILING = "failing"
    SKIPPED = "skipped"


class CheckView(View):
    """One check."""

    name: str
    """Its name; the same in every answer."""
    title: str
    """What is so when the check is ok."""
    verdict: VerdictName
    """What it found."""
    message: str
    """What was found, in one sentence."""
    fix: str
    """What to do; empty when there is nothing to do."""
    evidence: dict[str, Scalar]
    """Numbers and ids behind it."""


class DoctorView(View):
    """Every check, in a fixed order."""

    model_config = shown(
        {
            "verdict": "failing",
            "checks": [
                {
                    "name": "ip_forward",
                    "title": "The kernel forwards packets between pods and ENIs",
                    "verdict": "failing",
                    "message": "net.ipv4.ip_forward is 0: no packet of a pod leaves the node",
                    "fix": "sysctl -w net.ipv4.ip_forward=1",
                    "evidence": {},
                }
            ],
        }
    )

    verdict: VerdictName
    """The worst of all checks that could be made."""
    checks: list[CheckView]
    """All of them, also those that are ok."""
