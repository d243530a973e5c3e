"""Taking an ENI away: two requests when all goes well, and no ENI left behind when it does not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import TypeVar

import pytest

from agent.cloud.removal import Patience, remove
from agent.errors import AgentError, Cause, CloudDenied, CloudFailed, CloudGone, CloudThrottled
from agent.ipam.model import EniId, Instance, Mac

MAC = Mac("02:00:00:00:00:02")
SOON = Patience(poll_s=0.001, unlisted_s=0.05, settle_s=0, retry_s=0.001, whole_s=5)

IN_USE = CloudFailed(
    Cause.EC2_REFUSED, "Network interface 'eni-1' is currently in use", evidence={"code": "InvalidParameterValue"}
)
UNANSWERED = CloudFailed(Cause.EC2_UNAVAILABLE, "no answer")
DETACHING = CloudFailed(Cause.EC2_REFUSED, "detaching", evidence={"code": "IncorrectState"})
REFUSED = CloudFailed(Cause.EC2_REFUSED, "no", evidence={"code": "InvalidParameterValue"})
THROTTLED = CloudThrottled(Cause.EC2_THROTTLED, "slower")
GONE = CloudGone(Cause.EC2_GONE, "no such thing")
DENIED = CloudDenied(Cause.IAM_DENIED, "no")
IMDS_DOWN = CloudFailed(Cause.IMDS_UNAVAILABLE, "no answer")

Step = AgentError | None
T = TypeVar("T")


@dataclass(kw_only=True)
class Scripted:
    """An EC2 and an IMDS that do what the script says, one step per call, the last for ever; and what was asked."""

    detach_steps: list[Step] = field(default_factory=lambda: [None])
    delete_steps: list[Step] = field(default_factory=lambda: [None])
    imds_steps: list[IPv4Network | AgentError | None] = field(default_factory=lambda: [None])
    asked: list[str] = field(default_factory=list)

    async def detach(self) -> None:
        self._do("detach", self.detach_steps)

    async def delete(self) -> None:
        self._do("delete", self.delete_steps)

    async def instance(self) -> Instance:
        raise NotImplementedError

    async def subnet_cidr(self, mac: Mac) -> IPv4Network | None:
        assert mac == MAC
        step = self._next("imds", self.imds_steps)
        if isinstance(step, AgentError):
            raise step
        return step

    def _do(self, name: str, steps: list[Step]) -> None:
        step = self._next(name, steps)
        if step is not None:
            raise step

    def _next(self, name: str, steps: list[T]) -> T:
        self.asked.append(name)
        return steps.pop(0) if len(steps) > 1 else steps[0]

    async def removed(self, *, attached: bool = True, patience: Patience = SOON) -> None:
        detach: Callable[[], Awaitable[None]] | None = self.detach if attached else None
        await remove(
            eni_id=EniId("eni-1"), mac=MAC, detach=detach, delete=self.delete, metadata=self, patience=patience
        )


CIDR = IPv4Network("10.0.0.0/24")


async def test_two_requests_once_imds_has_forgotten_the_eni() -> None:
    world = Scripted(imds_steps=[CIDR, CIDR, None])
    await world.removed()
    assert world.asked == ["detach", "imds", "imds", "imds", "delete"]


async def test_an_imds_that_never_forgets_or_never_answers_does_not_stop_it() -> None:
    for steps in ([CIDR], [IMDS_DOWN]):
        world = Scripted(imds_steps=list(steps))
        await world.removed()
        assert world.asked.count("delete") == 1
        assert world.asked.count("imds") > 1


async def test_a_hiccup_of_imds_is_not_an_answer() -> None:
    world = Scripted(imds_steps=[IMDS_DOWN, CIDR, None])
    await world.removed()
    assert world.asked == ["detach", "imds", "imds", "imds", "delete"]


@pytest.mark.parametrize("refusal", [IN_USE, THROTTLED, UNANSWERED], ids=str)
async def test_a_refused_delete_is_tried_again_because_nobody_else_would(refusal: AgentError) -> None:
    world = Scripted(delete_steps=[refusal, refusal, None])
    await world.removed()
    assert world.asked.count("delete") == 3


async def test_what_is_gone_already_is_success() -> None:
    await Scripted(detach_steps=[GONE], delete_steps=[GONE]).removed()


@pytest.mark.parametrize("doubt", [GONE, UNANSWERED, DETACHING], ids=str)
async def test_a_detach_that_may_have_happened_is_followed_by_the_delete(doubt: AgentError) -> None:
    world = Scripted(detach_steps=[doubt])
    await world.removed()
    assert world.asked[-1] == "delete"


@pytest.mark.parametrize("refusal", [THROTTLED, DENIED, REFUSED], ids=str)
async def test_a_refused_detach_is_the_callers_business(refusal: AgentError) -> None:
    world = Scripted(detach_steps=[refusal])
    with pytest.raises(CloudFailed) as raised:
        await world.removed()
    assert raised.value is refusal
    assert world.asked == ["detach"]


async def test_a_denied_delete_is_not_repeated() -> None:
    world = Scripted(delete_steps=[DENIED])
    with pytest.raises(CloudDenied):
        await world.removed()
    assert world.asked.count("delete") == 1


async def test_it_ends_with_the_last_refusal_as_the_reason() -> None:
    world = Scripted(delete_steps=[IN_USE])
    impatient = Patience(poll_s=0.001, unlisted_s=0.001, settle_s=0, retry_s=0.01, whole_s=0.1)
    with pytest.raises(CloudFailed) as raised:
        await world.removed(patience=impatient)
    assert raised.value.cause is Cause.EC2_REFUSED
    assert IN_USE.message in raised.value.message
    assert raised.value.evidence["waited_s"] == 0.1
    assert raised.value.evidence["eni_id"] == "eni-1"
    assert raised.value.__cause__ is IN_USE


async def test_an_eni_that_is_not_attached_needs_one_request() -> None:
    world = Scripted()
    await world.removed(attached=False)
    assert world.asked == ["delete"]
