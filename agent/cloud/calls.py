"""One request to EC2: its deadline, its count, its line in the log, its error in our words."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable
from time import monotonic
from typing import TypeVar

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from agent.cloud.errors import translate
from agent.errors import Evidence
from agent.runtime.log import event_logger

_log = event_logger(__name__)

Answer = TypeVar("Answer")

DEADLINE_S = 20.0
"""For one request, connecting and credentials included. EC2 answers a describe within 0.1 to 1 s and a create within 1
to 5 s; twenty means something is wrong."""


class CallLedger:
    """Every request goes through `run`. `counts` is by (action, outcome): "ok", or the cause's value."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    async def run(self, action: str, request: Awaitable[Answer], ids: Evidence | None = None) -> Answer:
        """Await `request`, an EC2 `action` on the objects named in `ids`.

        Raises: AgentError, as agent/cloud/errors.py says. A request botocore finds malformed is a bug and stays one.
        Cancel: EC2 may or may not have carried the request out; the count and the log say "cancelled".
        """
        started_s = monotonic()
        outcome = "cancelled"
        fields: dict[str, str | int | float] = dict(ids or {})
        try:
            async with asyncio.timeout(DEADLINE_S):
                answer = await request
            outcome = "ok"
        except ParamValidationError:
            outcome = "malformed"
            raise
        except (ClientError, BotoCoreError, TimeoutError) as foreign:
            error = translate(action, foreign, ids or {})
            outcome = error.cause
            fields = error.evidence
            raise error from foreign
        else:
            fields["aws_request_id"] = _request_id(answer)
            return answer
        finally:
            self.counts[action, str(outcome)] += 1
            fields = {
                "action": action,
                **fields,
                "outcome": str(outcome),
                "duration_s": round(monotonic() - started_s, 3),
            }
            if outcome == "ok":
                _log.info("ec2_call", **fields)
            else:
                _log.warning("ec2_call", **fields)


def _request_id(answer: object) -> str:
    metadata = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
    return str(metadata.get("RequestId", ""))
