"""One request to EC2: its token, its deadline, its count, its line in the log, its error in our words."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from inspect import iscoroutine
from typing import TypeVar

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from agent.cloud.budget import WITHHELD, Budget
from agent.cloud.errors import translate
from agent.errors import Cause, CloudThrottled, Evidence
from agent.runtime.log import event_logger
from agent.runtime.purpose import current_purpose

_log = event_logger(__name__)

Answer = TypeVar("Answer")

DEADLINE_S = 20.0
"""For one request, connecting and credentials included. EC2 answers a describe within 0.1 to 1 s and a create within 1
to 5 s; twenty means something is wrong."""
TOKEN_DEADLINE_S = 10.0
"""For a token of the budget. A request that would wait longer is not sent, and fails as if EC2 had throttled it."""


class CallLedger:
    """Every request goes through `run`. clock: monotonic seconds; the running event loop's when none is given."""

    __slots__ = ("_clock", "budget")

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self.budget = Budget(clock=self._clock)

    async def run(self, action: str, request: Awaitable[Answer], ids: Evidence | None = None) -> Answer:
        """Wait for a token, then await `request`, an EC2 `action` on the objects named in `ids`.

        Raises: AgentError, as agent/cloud/errors.py says; CloudThrottled also when no token comes in time. A request
        botocore finds malformed is a bug and stays one.
        Cancel: EC2 may or may not have carried the request out; the count and the log say "cancelled".
        """
        ids = ids or {}
        try:
            waited_s = await self._admit(action, ids)
        except BaseException:
            if iscoroutine(request):
                request.close()
            raise
        return await self._send(action, request, ids, waited_s)

    async def _admit(self, action: str, ids: Evidence) -> float:
        wait_s = self.budget.wait_s(action)
        if wait_s > TOKEN_DEADLINE_S:
            self.budget.note(action, current_purpose(), WITHHELD)
            raise CloudThrottled(
                Cause.EC2_THROTTLED,
                f"{action} is not sent: EC2 throttled it before, and the next one may go out in {wait_s:.1f} s",
                evidence={**ids, "action": action, "withheld": True, "next_token_s": round(wait_s, 1)},
                remedy="the account's request quota for this action is shared by all its nodes",
                retry_after_s=wait_s,
            )
        wait_s = self.budget.take(action)
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        return wait_s

    async def _send(self, action: str, request: Awaitable[Answer], ids: Evidence, waited_s: float) -> Answer:
        started_s = self._clock()
        outcome = "cancelled"
        fields: dict[str, str | int | float] = dict(ids)
        try:
            async with asyncio.timeout(DEADLINE_S):
                answer = await request
            outcome = "ok"
        except ParamValidationError:
            outcome = "malformed"
            raise
        except (ClientError, BotoCoreError, TimeoutError) as foreign:
            error = translate(action, foreign, ids)
            outcome = error.cause
            fields = error.evidence
            if isinstance(error, CloudThrottled):
                # EC2's own hint, if there is one, is a lower bound.
                error.retry_after_s = max(self.budget.throttled(action), error.retry_after_s or 0.0)
            raise error from foreign
        else:
            self.budget.allowed(action)
            fields["aws_request_id"] = _request_id(answer)
            return answer
        finally:
            duration_s = self._clock() - started_s
            self.budget.note(action, current_purpose(), str(outcome), duration_s)
            fields = {
                "action": action,
                "reason": current_purpose(),
                **fields,
                "outcome": str(outcome),
                "duration_s": round(duration_s, 3),
            }
            if waited_s:
                fields["waited_s"] = round(waited_s, 3)
            if outcome == "ok":
                _log.info("ec2_call", **fields)
            else:
                _log.warning("ec2_call", **fields)


def _request_id(answer: object) -> str:
    metadata = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
    return str(metadata.get("RequestId", ""))
