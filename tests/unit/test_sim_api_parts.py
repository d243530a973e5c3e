"""The parts of the EC2 endpoint that need no network: buckets, faults, parameters, paging, XML."""

from __future__ import annotations

import asyncio
import base64
import time
from functools import partial

import pytest

from sim.ec2.app import Alarm
from sim.ec2.budget import Bucket, Budget
from sim.ec2.paging import Page, cut, read_page
from sim.ec2.parameters import Parameters
from sim.ec2.render import Body, answer, error, timestamp
from sim.faults import DelayEffect, ErrorEffect, Fault, Faults
from sim.model.attachments import AttachInterface, attach_interface
from sim.model.config import Timings, VpcConfig
from sim.model.errors import Ec2Error
from sim.model.interfaces import CreateInterface, create_interface
from sim.model.records import Change, EniAttached
from sim.model.vpc import Vpc

CREATE = "CreateNetworkInterface"


def burst(budget: Budget, action: str, *, filtered: bool = True, now_s: float = 0.0) -> int:
    """How many requests in a row are let through at one moment."""
    count = 0
    while budget.take(action, filtered=filtered, now_s=now_s):
        count += 1
    return count


@pytest.mark.parametrize(
    ("action", "filtered", "size_count", "refill_per_s"),
    [
        (CREATE, True, 100, 5),
        ("AssignPrivateIpAddresses", True, 100, 5),
        ("AttachNetworkInterface", True, 50, 5),
        ("CreateTags", True, 100, 10),
        ("DescribeNetworkInterfaces", True, 100, 20),
        ("DescribeNetworkInterfaces", False, 50, 10),
        ("DescribeSubnets", False, 100, 20),
    ],
)
def test_published_buckets(action: str, size_count: int, refill_per_s: int, *, filtered: bool) -> None:
    budget = Budget()
    assert burst(budget, action, filtered=filtered) == size_count
    assert burst(budget, action, filtered=filtered, now_s=2.0) == 2 * refill_per_s
    assert burst(budget, action, filtered=filtered, now_s=10_000.0) == size_count


def test_buckets_are_apart_and_a_clock_that_goes_back_fills_nothing() -> None:
    budget = Budget({"A": Bucket(size_count=1, refill_per_s=1)})
    assert burst(budget, "A", now_s=10.0) == 1
    assert burst(budget, CREATE, now_s=10.0) == 50
    assert not budget.take("A", filtered=True, now_s=5.0)
    assert budget.levels()["A"] == 0


def test_the_first_fault_that_matches_strikes() -> None:
    faults = Faults()
    narrow = faults.add(Fault(action=CREATE, effect=ErrorEffect(code="One"), skip_count=1))
    wide = faults.add(Fault(action="*", effect=DelayEffect(delay_s=1), times=None))
    assert [faults.take(CREATE), faults.take(CREATE), faults.take("CreateTags")] == [
        wide.effect,
        narrow.effect,
        wide.effect,
    ]
    assert [f.hit_count for f in faults.listed()] == [1, 2]
    assert faults.remove(wide.fault_id)
    assert faults.take("CreateTags") is None
    faults.clear()
    assert faults.listed() == ()


def test_parameters_are_read_by_name_and_position() -> None:
    parameters = Parameters(
        {
            "Action": "X",
            "Ids.10": "j",
            "Ids.2": "b",
            "Filter.1.Name": "n",
            "Filter.1.Value.1": "v",
            "Filter.1.Value.2": "w",
            "Block.1.Cidr": "10.0.0.16/28",
            "Block.2.Cidr": "10.0.0.16/28",
            "Flag": "True",
            "X-Amz-Date": "20260101T000000Z",
        }
    )
    assert parameters.texts("Ids") == ("b", "j")
    each = parameters.structures("Filter")[0]
    assert (each.text("Name"), each.texts("Value")) == ("n", ("v", "w"))
    assert [str(p) for p in parameters.prefixes4("Block", "Cidr")] == ["10.0.0.16/28"]
    assert parameters.structure("Absent") is None
    with pytest.raises(Ec2Error, match="UnknownParameter: The parameter Flag is not recognized"):
        parameters.finish()
    assert parameters.boolean("Flag") is True
    parameters.finish()


def test_pages_survive_what_comes_and_goes_between_them() -> None:
    page = Page(action="D", after="", size_count=2)
    shown, token = cut(page, ["c", "a", "b", "d"], str)
    assert (shown, token is None) == (["a", "b"], False)
    following = read_page(Parameters({"NextToken": token or ""}), "D")
    assert cut(following, ["a", "c", "d", "aa", "e"], str) == (["c", "d", "e"], None)
    with pytest.raises(Ec2Error, match="InvalidPaginationToken"):
        read_page(Parameters({"NextToken": token or ""}), "Other")
    with pytest.raises(Ec2Error, match="InvalidPaginationToken"):
        read_page(Parameters({"NextToken": base64.urlsafe_b64encode(b"\xff").decode()}), "D")


def test_answers_are_escaped_and_absent_things_left_out() -> None:
    body: Body = {"a": "<&>", "none": None, "no": False, "set": [{"n": 1}, "x"], "empty": []}
    assert answer("Do", body, "id").decode().split("\n")[1] == (
        '<DoResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>id</requestId><a>&lt;&amp;&gt;</a>'
        "<no>false</no><set><item><n>1</n></item><item>x</item></set><empty></empty></DoResponse>"
    )
    assert b"<Code>C</Code><Message>m &lt; n</Message>" in error("C", "m < n", "id")
    assert timestamp(0.0625) == "1970-01-01T00:00:00.062Z"


async def test_the_alarm_completes_attachments_without_any_request() -> None:
    vpc = Vpc(VpcConfig(), timings=Timings(attach_s=0.02))
    subnet_id = next(iter(vpc.state.subnets))
    now_s = time.time()
    instance_id = vpc.run_instance("m5.large", subnet_id, now_s=now_s).instance_id
    attached: list[str] = []
    both = asyncio.Event()

    def follow(change: Change) -> None:
        if isinstance(change, EniAttached):
            attached.append(change.eni_id)
        if len(attached) == 2:
            both.set()

    vpc.subscribe(follow)
    alarm = Alarm(vpc, time.time)
    enis = []
    for device, attach_s in ((1, 0.05), (2, 0.02)):
        vpc.timings = Timings(attach_s=attach_s)
        request = CreateInterface(subnet_id=subnet_id)
        eni = vpc.apply(partial(create_interface, request=request), now_s=now_s)
        attach = AttachInterface(eni_id=eni.eni_id, instance_id=instance_id, device_index=device)
        vpc.apply(partial(attach_interface, request=attach, now_s=now_s), now_s=now_s)
        alarm.set()
        enis.append(eni.eni_id)
    await asyncio.wait_for(both.wait(), timeout=10)
    assert attached == enis[::-1]
    assert vpc.next_due_s() is None
