"""The EC2 endpoint: an ASGI application at `/` that speaks the Query API, version 2016-11-15.

One request goes: credential (present and readable; signatures are not verified) -> action -> token bucket -> scripted
fault -> latency -> the action itself -> answer. Unmodified SDKs and the AWS CLI use it through `AWS_ENDPOINT_URL_EC2`.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from sim.ec2 import change, describe, render
from sim.ec2.budget import Budget
from sim.ec2.call import Call, Handler
from sim.ec2.calls import OK, CallLog, CallRecord
from sim.ec2.latency import Latency
from sim.ec2.parameters import Parameters
from sim.faults import DelayEffect, DropEffect, Effect, ErrorEffect, Faults, HangEffect, PartialEffect
from sim.model.errors import Ec2Error
from sim.model.vpc import Vpc

VERSION = "2016-11-15"
ACTIONS: Mapping[str, Handler] = {**describe.ACTIONS, **change.ACTIONS}

_CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256\s+Credential=([^/,\s]+)/\d{8}/([^/]+)/ec2/aws4_request")
_MOST_SKEW_S = 15 * 60
"""EC2 Developer Guide, "Error codes for the Amazon EC2 API", RequestExpired."""
_UNANSWERED = "dropped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ec2:
    """The parts behind the endpoint.

    clock: seconds since the Unix epoch.
    budget: None for no throttling.
    """

    vpc: Vpc
    clock: Callable[[], float]
    faults: Faults
    budget: Budget | None
    latency: Latency
    calls: CallLog
    alarm: Alarm


class Alarm:
    """Has the VPC complete attachments when they are due: one timer on the running event loop, or none."""

    def __init__(self, vpc: Vpc, clock: Callable[[], float]) -> None:
        self._vpc = vpc
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    def set(self) -> None:
        """Something may be under way since the last time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_s = self._vpc.next_due_s()
        if due_s is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due_s - self._clock()), self._ring)

    def _ring(self) -> None:
        self._vpc.advance(self._clock())
        self.set()


def create_app(
    vpc: Vpc,
    *,
    clock: Callable[[], float],
    faults: Faults,
    budget: Budget | None,
    latency: Latency,
    calls: CallLog,
) -> ASGIApp:
    """The application. It completes attachments on its own event loop while it serves."""
    alarm = Alarm(vpc, clock)
    ec2 = Ec2(vpc=vpc, clock=clock, faults=faults, budget=budget, latency=latency, calls=calls, alarm=alarm)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await _serve(ec2, scope, receive, send)

    return app


@dataclass(slots=True, kw_only=True)
class _Answer:
    """What goes back; body None leaves the client without an answer, by closing or by waiting for it to hang up."""

    outcome: str
    http_status: int
    body: bytes | None
    hang: bool = False


async def _serve(ec2: Ec2, scope: Scope, receive: Receive, send: Send) -> None:
    request = Request(scope, receive)
    started_s = ec2.clock()
    request_id = str(uuid.uuid4())
    text = request.url.query if request.method == "GET" else (await request.body()).decode("utf-8", "replace")
    form = dict(parse_qsl(text, keep_blank_values=True))
    access_key_id = ""
    try:
        access_key_id, region, sent_s = _credential(request, form)
        _check_signer(ec2, region, sent_s)
        answer = await _answer(ec2, form, request_id)
    except Ec2Error as refused:
        answer = _refusal(refused, request_id)
    ec2.calls.record(
        CallRecord(
            time_s=started_s,
            duration_s=max(0.0, ec2.clock() - started_s),
            request_id=request_id,
            action=form.get("Action", ""),
            access_key_id=access_key_id,
            outcome=answer.outcome,
            http_status=answer.http_status,
            parameters={k: v for k, v in form.items() if k not in {"Action", "Version"}},
        )
    )
    await _send(answer, request_id, receive, send)


async def _answer(ec2: Ec2, form: Mapping[str, str], request_id: str) -> _Answer:
    """Raises: Ec2Error before the call reaches its action; afterwards errors are answers."""
    action = form.get("Action", "")
    handler = _handler(action, form)
    filtered = any(name.startswith("Filter.") or name in {"MaxResults", "NextToken"} for name in form)
    if ec2.budget is not None and not ec2.budget.take(action, filtered=filtered, now_s=ec2.clock()):
        raise Ec2Error("RequestLimitExceeded", "Request limit exceeded.", http_status=503)
    effect = ec2.faults.take(action)
    delay_s = ec2.latency.of(action) + (effect.delay_s if isinstance(effect, DelayEffect) else 0.0)
    if delay_s > 0:
        await asyncio.sleep(delay_s)
    unmade = _scripted(effect, request_id, after=False)
    if unmade is not None:
        return unmade
    try:
        body = _act(ec2, handler, action, form, effect)
    except Ec2Error as refused:
        return _refusal(refused, request_id)
    lied = _scripted(effect, request_id, after=True)
    return lied or _Answer(outcome=OK, http_status=200, body=render.answer(action, body, request_id))


def _act(ec2: Ec2, handler: Handler, action: str, form: Mapping[str, str], effect: Effect | None) -> render.Body:
    parameters = Parameters(form)
    dry_run = parameters.boolean("DryRun") or False
    call = Call(
        action=action,
        parameters=parameters,
        vpc=ec2.vpc,
        now_s=ec2.clock(),
        dry_run=dry_run,
        grant_limit_count=effect.grant_count if isinstance(effect, PartialEffect) else None,
    )
    body = handler(call)
    if dry_run:  # a describe: it changes nothing, so it has run
        raise Ec2Error("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", http_status=412)
    ec2.alarm.set()
    return body


def _handler(action: str, form: Mapping[str, str]) -> Handler:
    if not action:
        raise Ec2Error("MissingAction", "The request is missing an action or a required parameter.")
    if form.get("Version") != VERSION:
        raise Ec2Error("NoSuchVersion", f"The only version simulated is {VERSION}.")
    try:
        return ACTIONS[action]
    except KeyError:
        raise Ec2Error("InvalidAction", f"The action {action} is not valid for this web service.") from None


def _credential(request: Request, form: Mapping[str, str]) -> tuple[str, str, float]:
    """Whose credential signed the request, for which Region and when: Signature Version 4, in the header or the query.

    Raises: Ec2Error(MissingAuthenticationToken, IncompleteSignature).
    """
    header, date = request.headers.get("authorization"), request.headers.get("x-amz-date", "")
    if header is None and "X-Amz-Credential" in form:
        parts = {
            "Credential": "X-Amz-Credential",
            "SignedHeaders": "X-Amz-SignedHeaders",
            "Signature": "X-Amz-Signature",
        }
        said = ", ".join(f"{part}={form[name]}" for part, name in parts.items() if name in form)
        header, date = f"AWS4-HMAC-SHA256 {said}", form.get("X-Amz-Date", "")
    if header is None:
        raise Ec2Error("MissingAuthenticationToken", "Request is missing Authentication Token", http_status=403)
    found = _CREDENTIAL.match(header)
    sent_s = _moment_s(date, request.headers.get("date", ""))
    if found is None or sent_s is None or "SignedHeaders=" not in header or "Signature=" not in header:
        raise Ec2Error("IncompleteSignature", "The request signature does not conform to AWS standards.")
    return found[1], found[2], sent_s


def _moment_s(date: str, http_date: str) -> float | None:
    """Of `X-Amz-Date`, or else of the header `Date`; None when neither can be read."""
    try:
        if date:
            return datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        return parsedate_to_datetime(http_date).timestamp()
    except ValueError:
        return None


def _check_signer(ec2: Ec2, region: str, sent_s: float) -> None:
    """Raises: Ec2Error(AuthFailure, RequestExpired)."""
    if region != ec2.vpc.state.vpc.region:
        said = "AWS was not able to validate the provided access credentials"
        raise Ec2Error("AuthFailure", said, http_status=401)
    if abs(ec2.clock() - sent_s) > _MOST_SKEW_S:
        raise Ec2Error("RequestExpired", "Request has expired.")


def _scripted(effect: Effect | None, request_id: str, *, after: bool) -> _Answer | None:
    """The answer a scripted fault gives at this point, if it gives one."""
    match effect:
        case ErrorEffect() if effect.after == after:
            return _refusal(Ec2Error(effect.code, effect.message, http_status=effect.http_status), request_id)
        case DropEffect() if effect.after == after:
            return _Answer(outcome=_UNANSWERED, http_status=0, body=None)
        case HangEffect() if effect.after == after:
            return _Answer(outcome=_UNANSWERED, http_status=0, body=None, hang=True)
        case _:
            return None


def _refusal(refused: Ec2Error, request_id: str) -> _Answer:
    body = render.error(refused.code, refused.message, request_id)
    return _Answer(outcome=refused.code, http_status=refused.http_status, body=body)


async def _send(answer: _Answer, request_id: str, receive: Receive, send: Send) -> None:
    if answer.hang:
        while (await receive())["type"] != "http.disconnect":
            pass
        return
    headers = [(b"content-type", b"text/xml;charset=UTF-8"), (b"x-amzn-requestid", request_id.encode())]
    if answer.body is None:
        # A chunked answer without its last chunk: the server closes the connection, and no client takes it for whole.
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        return
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.http_status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
