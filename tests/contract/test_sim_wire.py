"""The Query API below the SDK: authentication, versions, unknown things, time, throttling, and scripted faults."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import botocore.exceptions
import httpx
import pytest

from sim.ec2.budget import Budget
from sim.model.config import Timings
from tests.contract.sim_endpoint import Endpoint, running_sim, signed

VPCS = {"Action": "DescribeVpcs"}


@pytest.fixture(scope="module")
def shared() -> Iterator[Endpoint]:
    """For requests that change nothing."""
    with running_sim() as endpoint:
        yield endpoint


@pytest.fixture
def sim() -> Iterator[Endpoint]:
    with running_sim() as endpoint:
        yield endpoint


def ask(sim: Endpoint, form: dict[str, str], headers: dict[str, str] | None = None) -> tuple[int, str]:
    """HTTP status and error code (or `ok`) of a hand-written request."""
    answer = httpx.post(
        sim.url, data={"Version": "2016-11-15", **form}, headers=signed() if headers is None else headers, timeout=60
    )
    found = re.search("<Code>(.*?)</Code>", answer.text)
    return answer.status_code, found[1] if found else "ok"


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"Action": "DescribeVpcs"}, (200, "ok")),
        ({"Action": "RebootInstances"}, (400, "InvalidAction")),
        ({}, (400, "MissingAction")),
        ({"Action": "DescribeVpcs", "Version": "2006-06-26"}, (400, "NoSuchVersion")),
        ({"Action": "DescribeVpcs", "Colour": "red"}, (400, "UnknownParameter")),
        ({"Action": "DescribeVpcs", "VpcId.x": "vpc-1"}, (400, "UnknownParameter")),
        ({"Action": "DescribeVpcs", "MaxResults": "many"}, (400, "InvalidParameterValue")),
        ({"Action": "DescribeVpcs", "MaxResults": "4"}, (400, "InvalidParameterValue")),
        ({"Action": "DescribeVpcs", "DryRun": "perhaps"}, (400, "InvalidParameterValue")),
        ({"Action": "DescribeVpcs", "Filter.1.Name": "vpc-id"}, (400, "InvalidParameterValue")),
        ({"Action": "CreateNetworkInterface"}, (400, "MissingParameter")),
        ({"Action": "AttachNetworkInterface", "NetworkInterfaceId": "eni-1"}, (400, "MissingParameter")),
        ({"Action": "AssignPrivateIpAddresses", "NetworkInterfaceId": "eni-1"}, (400, "MissingParameter")),
        (
            {
                "Action": "AssignPrivateIpAddresses",
                "NetworkInterfaceId": "eni-1",
                "SecondaryPrivateIpAddressCount": "1",
                "Ipv4PrefixCount": "1",
            },
            (400, "InvalidParameterCombination"),
        ),
        (
            {
                "Action": "AssignPrivateIpAddresses",
                "NetworkInterfaceId": "eni-1",
                "SecondaryPrivateIpAddressCount": "0",
            },
            (400, "InvalidParameterValue"),
        ),
        (
            {"Action": "AssignPrivateIpAddresses", "NetworkInterfaceId": "eni-1", "PrivateIpAddress.1": "10.0.0.300"},
            (400, "InvalidParameterValue"),
        ),
    ],
)
def test_requests_by_hand(shared: Endpoint, form: dict[str, str], expected: tuple[int, str]) -> None:
    assert ask(shared, form) == expected


def test_get_is_as_good_as_post(shared: Endpoint) -> None:
    answer = httpx.get(
        shared.url, params={"Action": "DescribeVpcs", "Version": "2016-11-15"}, headers=signed(), timeout=60
    )
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/xml")


def test_a_credential_is_required_and_its_key_is_logged(sim: Endpoint) -> None:
    assert ask(sim, VPCS, {}) == (403, "MissingAuthenticationToken")
    assert ask(sim, VPCS, {"Authorization": "Basic x"}) == (400, "IncompleteSignature")
    assert ask(sim, VPCS) == (200, "ok")
    log = sim.control.get("/calls").json()
    assert log["counts"] == {"DescribeVpcs": {"MissingAuthenticationToken": 1, "IncompleteSignature": 1, "ok": 1}}
    assert [call["access_key_id"] for call in log["calls"]] == ["", "", "AKIDWIRE"]


def without(part: str) -> dict[str, str]:
    headers = signed()
    return {**headers, "Authorization": re.sub(rf", {part}=[^,]*", "", headers["Authorization"])}


@pytest.mark.parametrize(
    ("sign", "expected"),
    [
        (partial(without, "Signature"), (400, "IncompleteSignature")),
        (partial(without, "SignedHeaders"), (400, "IncompleteSignature")),
        (lambda: {"Authorization": signed()["Authorization"]}, (400, "IncompleteSignature")),
        (lambda: {**signed(), "X-Amz-Date": "yesterday"}, (400, "IncompleteSignature")),
        (partial(signed, region="eu-west-1"), (401, "AuthFailure")),
        (partial(signed, ago_s=16 * 60), (400, "RequestExpired")),
        (partial(signed, ago_s=-16 * 60), (400, "RequestExpired")),
        (partial(signed, ago_s=10 * 60), (200, "ok")),
    ],
    ids=["no signature", "no headers", "no date", "bad date", "other Region", "clock behind", "clock ahead", "in time"],
)
def test_who_signs_for_another_region_or_with_a_wrong_clock_is_refused(
    shared: Endpoint, sign: Callable[[], dict[str, str]], expected: tuple[int, str]
) -> None:
    assert ask(shared, VPCS, sign()) == expected


def test_answers_carry_the_request_id_of_the_log(sim: Endpoint) -> None:
    answer = sim.boto3().describe_vpcs()
    logged = sim.control.get("/calls", params={"action": "DescribeVpcs"}).json()["calls"][0]
    assert answer["ResponseMetadata"]["RequestId"] == logged["request_id"]
    sim.control.delete("/calls").raise_for_status()
    assert sim.control.get("/calls").json() == {"counts": {}, "calls": []}


def test_a_scripted_error_strikes_when_and_as_often_as_it_should(sim: Endpoint) -> None:
    ec2 = sim.boto3()
    sim.script(
        "DescribeVpcs",
        {"kind": "error", "code": "UnauthorizedOperation", "message": "You are not authorized", "http_status": 403},
        skip_count=1,
        times=2,
    )
    outcomes = []
    for _ in range(4):
        try:
            ec2.describe_vpcs()
            outcomes.append("ok")
        except botocore.exceptions.ClientError as refused:
            outcomes.append(refused.response["Error"]["Code"])
        ec2.describe_subnets()
    assert outcomes == ["ok", "UnauthorizedOperation", "UnauthorizedOperation", "ok"]
    fault = sim.control.get("/faults").json()[0]
    assert (fault["hit_count"], fault["times"]) == (2, 0)
    assert sim.control.delete(f"/faults/{fault['fault_id']}").status_code == 204
    assert sim.control.delete(f"/faults/{fault['fault_id']}").status_code == 404


@pytest.mark.parametrize(("after", "enis"), [(False, 0), (True, 1)])
def test_an_error_before_or_after_the_effect(sim: Endpoint, *, after: bool, enis: int) -> None:
    ec2: Any = sim.boto3()
    sim.script("CreateNetworkInterface", {"kind": "error", "code": "InternalError", "http_status": 500, "after": after})
    with pytest.raises(botocore.exceptions.ClientError, match="InternalError"):
        ec2.create_network_interface(SubnetId=sim.subnets[0])
    assert len(sim.state()["enis"]) == enis


def test_a_dropped_connection_leaves_the_client_without_an_answer(sim: Endpoint) -> None:
    ec2: Any = sim.boto3()
    sim.script("CreateNetworkInterface", {"kind": "drop", "after": True})
    with pytest.raises(botocore.exceptions.HTTPClientError):
        ec2.create_network_interface(SubnetId=sim.subnets[0])
    assert len(sim.state()["enis"]) == 1
    assert sim.control.get("/calls").json()["counts"] == {"CreateNetworkInterface": {"dropped": 1}}
    assert ec2.describe_vpcs()["Vpcs"]


def test_a_hanging_call_ends_with_the_client(sim: Endpoint) -> None:
    sim.script("DescribeVpcs", {"kind": "hang"})
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(sim.url, data={"Action": "DescribeVpcs", "Version": "2016-11-15"}, headers=signed(), timeout=0.3)
    assert ask(sim, VPCS) == (200, "ok")


def test_a_partial_grant(sim: Endpoint) -> None:
    ec2: Any = sim.boto3()
    eni_id = ec2.create_network_interface(SubnetId=sim.subnets[0])["NetworkInterface"]["NetworkInterfaceId"]
    sim.script("AssignPrivateIpAddresses", {"kind": "partial", "grant_count": 2})
    answer = ec2.assign_private_ip_addresses(NetworkInterfaceId=eni_id, SecondaryPrivateIpAddressCount=5)
    assert len(answer["AssignedPrivateIpAddresses"]) == 2


def test_latency_and_delay_are_waited_for(sim: Endpoint) -> None:
    ec2: Any = sim.boto3()
    sim.control.put("/latency", json={"by_action_s": {"DescribeVpcs": 0.1}}).raise_for_status()
    sim.script("DescribeVpcs", {"kind": "delay", "delay_s": 1.0})
    ec2.describe_vpcs()
    ec2.describe_vpcs()
    first, second = (call["duration_s"] for call in sim.control.get("/calls").json()["calls"])
    assert first >= 1.09
    assert 0.09 <= second < first
    assert sim.control.get("/latency").json()["by_action_s"] == {"DescribeVpcs": 0.1}


def test_timings_can_be_changed_while_it_runs(sim: Endpoint) -> None:
    sim.control.put("/latency", json={"timings": {"attach_s": 100.0}}).raise_for_status()
    ec2: Any = sim.boto3()
    eni_id = ec2.create_network_interface(SubnetId=sim.subnets[0])["NetworkInterface"]["NetworkInterfaceId"]
    ec2.attach_network_interface(NetworkInterfaceId=eni_id, InstanceId=sim.launch(), DeviceIndex=1)
    state = sim.state()
    assert state["enis"][eni_id]["attachment"]["status"] == "attaching"
    assert len(state["transitions"]) == 1


def test_the_state_tells_fragmentation(sim: Endpoint) -> None:
    subnet = sim.state()["subnets"][sim.subnets[0]]
    assert (subnet["free_address_count"], subnet["free_prefix_count"]) == (251, 14)
    ec2: Any = sim.boto3()
    ec2.create_network_interface(SubnetId=sim.subnets[0], PrivateIpAddress="10.0.0.40")
    subnet = sim.state()["subnets"][sim.subnets[0]]
    assert (subnet["free_address_count"], subnet["free_prefix_count"]) == (250, 13)


def test_errors_of_the_control_endpoint_name_their_cause(sim: Endpoint) -> None:
    answer = sim.control.post("/instances", json={"instance_type": "m5.huge"})
    assert (answer.status_code, answer.json()["code"]) == (400, "InvalidInstanceType")
    assert sim.control.post("/faults", json={"action": "X", "effect": {"kind": "magic"}}).status_code == 422
    assert sim.control.put(f"/tags/{sim.subnets[0]}", json={"a": "b"}).status_code == 204
    assert sim.state()["subnets"][sim.subnets[0]]["tags"] == {"a": "b"}


def test_attachments_complete_by_themselves() -> None:
    now_s = time.time()
    with running_sim(timings=Timings(attach_s=3.0, detach_s=3.0), clock=lambda: now_s) as sim:
        ec2, instance_id = sim.boto3(), sim.launch()
        eni_id = ec2.create_network_interface(SubnetId=sim.subnets[0])["NetworkInterface"]["NetworkInterfaceId"]
        attachment = ec2.attach_network_interface(NetworkInterfaceId=eni_id, InstanceId=instance_id, DeviceIndex=1)

        def describe() -> Any:
            return ec2.describe_network_interfaces(NetworkInterfaceIds=[eni_id])["NetworkInterfaces"][0]

        seen = describe()
        assert (seen["Status"], seen["Attachment"]["Status"]) == ("in-use", "attaching")
        now_s += 3.0
        assert describe()["Attachment"]["Status"] == "attached"
        ec2.detach_network_interface(AttachmentId=attachment["AttachmentId"])
        assert describe()["Attachment"]["Status"] == "detaching"
        now_s += 3.0
        assert describe()["Status"] == "available"
        ec2.delete_network_interface(NetworkInterfaceId=eni_id)


def test_the_published_bucket_runs_dry() -> None:
    began_s = time.time()
    with running_sim(budget=Budget(), clock=lambda: began_s) as sim:  # nothing comes back meanwhile
        ec2 = sim.boto3()
        codes = []
        for _ in range(60):
            try:
                ec2.attach_network_interface(
                    NetworkInterfaceId="eni-0123456789abcdef0", InstanceId="i-0123456789abcdef0", DeviceIndex=1
                )
            except botocore.exceptions.ClientError as refused:
                codes.append(
                    (refused.response["Error"]["Code"], refused.response["ResponseMetadata"]["HTTPStatusCode"])
                )
        assert codes[:50] == [("InvalidNetworkInterfaceID.NotFound", 400)] * 50
        assert codes[50:] == [("RequestLimitExceeded", 503)] * 10
