"""The node's part of EC2's request budget: published buckets, cut by throttling, raised again by success."""

from __future__ import annotations

import asyncio

import pytest
from botocore.exceptions import ClientError

from agent.cloud.budget import LOWEST_RATE_PER_S, WITHHELD, Budget, CallCount, published
from agent.cloud.calls import CallLedger
from agent.errors import CloudThrottled
from agent.runtime.purpose import purpose
from sim.ec2.budget import Budget as AccountBudget
from tests.virtual_time import virtual_time

OURS = [
    "DescribeNetworkInterfaces",
    "DescribeSubnets",
    "DescribeInstances",
    "DescribeInstanceTypes",
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
    "DetachNetworkInterface",
    "DeleteNetworkInterface",
    "AssignPrivateIpAddresses",
    "UnassignPrivateIpAddresses",
    "CreateTags",
]


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def a_budget(draw: float = 0.5) -> tuple[Budget, Clock]:
    clock = Clock()
    return Budget(clock=clock, draw=lambda: draw), clock


@pytest.mark.parametrize("action", OURS)
def test_the_buckets_are_those_of_the_account(action: str) -> None:
    account = AccountBudget()
    granted = 0
    while account.take(action, filtered=True, now_s=0.0):
        granted += 1
    assert granted == published(action).size_count
    later_s = 1.0
    while account.take(action, filtered=True, now_s=later_s):
        granted += 1
    assert granted - published(action).size_count == published(action).refill_per_s


@pytest.mark.parametrize("action", OURS)
def test_a_node_alone_spends_the_whole_bucket_and_then_its_refill(action: str) -> None:
    budget, clock = a_budget()
    waits = [budget.take(action) for _ in range(int(published(action).size_count))]
    assert set(waits) == {0.0}
    refill_per_s = published(action).refill_per_s
    assert budget.take(action) == pytest.approx(1 / refill_per_s)
    assert budget.take(action) == pytest.approx(2 / refill_per_s)
    clock.now_s = 2 / refill_per_s
    assert budget.wait_s(action) == pytest.approx(1 / refill_per_s)


def test_throttles_cut_the_rate_down_to_one_a_minute() -> None:
    budget, clock = a_budget()
    pauses = []
    for _ in range(10):
        budget.take("AssignPrivateIpAddresses")
        pause_s = budget.throttled("AssignPrivateIpAddresses")
        pauses.append(pause_s)
        clock.now_s += pause_s
    expected = [min(4.0**n, 1 / LOWEST_RATE_PER_S) * 0.55 for n in range(1, 11)]
    assert pauses == pytest.approx(expected)


@pytest.mark.parametrize("draw", [0.0, 0.999])
def test_the_pause_is_drawn_from_almost_the_whole_interval(draw: float) -> None:
    budget, _ = a_budget(draw)
    budget.take("DescribeSubnets")
    expected_s = 4 * (0.1 + 0.9 * draw)
    assert budget.throttled("DescribeSubnets") == pytest.approx(expected_s)


def test_success_brings_the_published_rate_back_step_by_step() -> None:
    budget, clock = a_budget()
    budget.throttled("CreateNetworkInterface")
    rates = []
    for _ in range(30):
        clock.now_s += budget.take("CreateNetworkInterface")
        budget.allowed("CreateNetworkInterface")
        [view] = budget.view()
        rates.append(view.rate_per_s)
    assert rates[0] == pytest.approx(0.25 + 0.25)
    assert rates == sorted(rates)
    assert rates[-1] == published("CreateNetworkInterface").refill_per_s


def test_a_throttled_node_saves_no_bucketful_for_later() -> None:
    budget, clock = a_budget()
    budget.throttled("DescribeNetworkInterfaces")
    clock.now_s = 1e6
    assert budget.take("DescribeNetworkInterfaces") == 0.0  # a bucket of 100, at an eightieth of its rate: 1.25
    assert budget.take("DescribeNetworkInterfaces") > 0.0


def test_actions_do_not_share_a_bucket() -> None:
    budget, _ = a_budget()
    budget.throttled("AssignPrivateIpAddresses")
    assert budget.wait_s("UnassignPrivateIpAddresses") == 0.0


def throttle() -> ClientError:
    return ClientError(
        {"Error": {"Code": "RequestLimitExceeded", "Message": "."}, "ResponseMetadata": {"HTTPStatusCode": 503}}, "X"
    )


async def answer(error: Exception | None = None) -> dict[str, object]:
    if error is not None:
        raise error
    return {}


@virtual_time
async def test_a_request_waits_for_its_token_and_not_beyond_the_deadline() -> None:
    calls = CallLedger()
    now_s = asyncio.get_running_loop().time
    with purpose("grow"):
        for _ in range(3):
            with pytest.raises(CloudThrottled) as raised:
                await calls.run("AttachNetworkInterface", answer(throttle()))
            assert raised.value.retry_after_s
            began_s = now_s()
            await calls.run("DescribeSubnets", answer())
            assert now_s() == began_s
            await asyncio.sleep(raised.value.retry_after_s)
    before_s = now_s()
    calls.budget.throttled("AttachNetworkInterface")
    pause_s = calls.budget.throttled("AttachNetworkInterface")
    assert pause_s <= 60
    calls.budget._draw = lambda: 0.999
    for _ in range(6):
        calls.budget.throttled("AttachNetworkInterface")
    with pytest.raises(CloudThrottled) as withheld, purpose("leaks"):
        await calls.run("AttachNetworkInterface", answer())
    assert now_s() == before_s
    assert withheld.value.evidence["withheld"] is True
    assert 10 < (withheld.value.retry_after_s or 0) <= 60
    attach = next(one for one in calls.budget.view() if one.action == "AttachNetworkInterface")
    assert attach.withheld_count == 1
    assert CallCount(reason="grow", outcome="ec2_throttled", count=3) in attach.calls
    assert CallCount(reason="leaks", outcome=WITHHELD, count=1) in attach.calls
    assert calls.budget.counts() == {("AttachNetworkInterface", "ec2_throttled"): 3, ("DescribeSubnets", "ok"): 3}


@virtual_time
async def test_requests_that_wait_are_sent_in_order() -> None:
    calls = CallLedger()
    sent: list[int] = []

    async def note(number: int) -> dict[str, object]:
        sent.append(number)
        return {}

    calls.budget._draw = lambda: 0.5
    calls.budget.throttled("DeleteNetworkInterface")
    await asyncio.gather(*(calls.run("DeleteNetworkInterface", note(number)) for number in range(2)))
    assert sent == [0, 1]
