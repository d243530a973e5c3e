"""EC2's answers as errors of ours: the table covers what the actions document, and each row reacts as it should."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ReadTimeoutError,
)

import sim
from agent.cloud.errors import REACTIONS, says_in_use, says_not_assigned, translate
from agent.errors import Cause, CloudDenied, CloudFailed, CloudGone, CloudLimit, CloudThrottled

# EC2 API Reference, "Error codes for the Amazon EC2 API": those that any action may answer with ...
COMMON = """AuthFailure Blocked DryRunOperation IdempotentParameterMismatch IncompleteSignature InternalError
    InternalFailure InvalidAction InvalidClientTokenId InvalidPaginationToken InvalidParameter
    InvalidParameterCombination InvalidParameterValue InvalidQueryParameter MalformedQueryString MissingAction
    MissingAuthenticationToken MissingParameter OptInRequired PendingVerification RequestExpired RequestLimitExceeded
    ServiceUnavailable Unavailable UnauthorizedOperation UnknownParameter UnsupportedOperation ValidationError
    InvalidCharacter InvalidParameterDependency"""
# ... and those of the actions the adapter calls.
BY_ACTION = {
    "DescribeNetworkInterfaces": "InvalidNetworkInterfaceID.NotFound",
    "DescribeSubnets": "InvalidSubnetID.NotFound",
    "DescribeInstanceTypes": "InvalidInstanceType",
    "CreateNetworkInterface": """InsufficientFreeAddressesInSubnet InsufficientCidrBlocks InvalidGroup.NotFound
        InvalidSecurityGroupID.NotFound InvalidSubnetID.NotFound InvalidSubnet NetworkInterfaceLimitExceeded
        PrivateIpAddressLimitExceeded SecurityGroupsPerInterfaceLimitExceeded TagLimitExceeded InvalidTagKey.Malformed
        InvalidIPAddress.InUse ResourceLimitExceeded""",
    "AttachNetworkInterface": """AttachmentLimitExceeded InvalidInstanceID.NotFound InvalidNetworkInterface.InUse
        InvalidNetworkInterfaceID.NotFound IncorrectInstanceState IncorrectState""",
    "ModifyNetworkInterfaceAttribute": "InvalidAttachmentID.NotFound InvalidNetworkInterfaceID.NotFound",
    "DetachNetworkInterface": "InvalidAttachmentID.NotFound IncorrectState OperationNotPermitted",
    "DeleteNetworkInterface": """InvalidNetworkInterface.InUse InvalidNetworkInterfaceID.NotFound
        DependencyViolation OperationNotPermitted""",
    "AssignPrivateIpAddresses": """InsufficientFreeAddressesInSubnet PrivateIpAddressLimitExceeded
        InvalidNetworkInterfaceID.NotFound""",
    "UnassignPrivateIpAddresses": "InvalidNetworkInterfaceID.NotFound Resource.AlreadyAssociated",
}


def answered(code: str, message: str = "No.", status: int = 400, headers: dict[str, str] | None = None) -> ClientError:
    response: Any = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"RequestId": "r-1", "HTTPStatusCode": status, "HTTPHeaders": headers or {}},
    }
    return ClientError(response, "Whatever")


@pytest.mark.parametrize("action", BY_ACTION)
def test_the_table_has_every_code_the_action_documents(action: str) -> None:
    assert set(f"{COMMON} {BY_ACTION[action]}".split()) - REACTIONS.keys() == set()


@pytest.mark.parametrize(
    ("code", "cause", "kind"),
    [
        ("RequestLimitExceeded", Cause.EC2_THROTTLED, CloudThrottled),
        ("InsufficientFreeAddressesInSubnet", Cause.SUBNET_EXHAUSTED, CloudLimit),
        ("InsufficientCidrBlocks", Cause.SUBNET_FRAGMENTED, CloudLimit),
        ("PrivateIpAddressLimitExceeded", Cause.EC2_LIMIT, CloudLimit),
        ("AttachmentLimitExceeded", Cause.EC2_LIMIT, CloudLimit),
        ("InvalidNetworkInterfaceID.NotFound", Cause.EC2_GONE, CloudGone),
        ("UnauthorizedOperation", Cause.IAM_DENIED, CloudDenied),
        ("ExpiredToken", Cause.IAM_DENIED, CloudDenied),
        ("InvalidParameterValue", Cause.EC2_REFUSED, CloudFailed),
        ("InternalError", Cause.EC2_UNAVAILABLE, CloudFailed),
    ],
)
def test_a_code_becomes_its_cause_and_class(code: str, cause: Cause, kind: type[CloudFailed]) -> None:
    error = translate("AssignPrivateIpAddresses", answered(code), {"eni_id": "eni-1"})
    assert (error.cause, type(error)) == (cause, kind)


def test_every_throttle_limit_and_denial_says_when_to_try_again_or_that_waiting_is_no_use() -> None:
    never = {code for code, reaction in REACTIONS.items() if reaction.retry_after_s is None}
    # For a throttle the budget says it: tests/unit/test_cloud_budget.py.
    assert {REACTIONS[code].error for code in never} == {CloudGone, CloudLimit, CloudThrottled}
    assert {code for code in never if REACTIONS[code].error is CloudLimit} == {
        "PrivateIpAddressLimitExceeded",
        "InvalidInterface.IpAddressLimitExceeded",
        "AttachmentLimitExceeded",
    }


def test_the_table_has_every_code_the_simulator_can_answer() -> None:
    found: set[str] = set()
    for file in Path(sim.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="Ec2Error"), args=[ast.Constant(value=str(code)), *_]):
                    found.add(code)
                case ast.Constant(value=str(text)) if re.fullmatch(r"[A-Za-z]+\.(NotFound|Malformed|InUse)", text):
                    found.add(text)
    assert {"RequestLimitExceeded", "InvalidSubnetID.NotFound", "NoSuchVersion"} <= found
    assert found - REACTIONS.keys() == set()


def test_every_row_has_a_cause_of_ec2s_and_a_remedy_where_a_person_must_act() -> None:
    for code, reaction in REACTIONS.items():
        assert issubclass(reaction.error, CloudFailed), code
        assert reaction.remedy or reaction.error not in {CloudDenied, CloudThrottled}, code


def test_a_denial_names_the_permission_that_is_missing() -> None:
    error = translate("AttachNetworkInterface", answered("UnauthorizedOperation"), {})
    assert "ec2:AttachNetworkInterface" in error.remedy


def test_the_evidence_names_action_objects_code_and_request() -> None:
    error = translate("DeleteNetworkInterface", answered("IncorrectState", "Not now."), {"eni_id": "eni-1"})
    assert error.message == "DeleteNetworkInterface eni_id=eni-1: IncorrectState: Not now"
    assert error.evidence == {
        "action": "DeleteNetworkInterface",
        "eni_id": "eni-1",
        "code": "IncorrectState",
        "http_status": 400,
        "aws_request_id": "r-1",
    }


@pytest.mark.parametrize(
    ("status", "cause"), [(400, Cause.EC2_REFUSED), (500, Cause.EC2_UNAVAILABLE), (503, Cause.EC2_UNAVAILABLE)]
)
def test_an_unknown_code_is_judged_by_its_status(status: int, cause: Cause) -> None:
    assert translate("CreateNetworkInterface", answered("Brand.New", status=status), {}).cause is cause


@pytest.mark.parametrize(
    ("hint", "retry_after_s"), [("17", 17), ("Wed, 21 Oct 2026 07:28:00 GMT", 2), ("-3", 2), ("٣", 2)]
)
def test_the_servers_own_hint_wins_when_it_is_a_number(hint: str, retry_after_s: float) -> None:
    error = translate("CreateTags", answered("Unavailable", headers={"retry-after": hint}), {})
    assert error.retry_after_s == retry_after_s


@pytest.mark.parametrize(
    ("foreign", "cause"),
    [
        (TimeoutError(), Cause.EC2_UNAVAILABLE),
        (ConnectTimeoutError(endpoint_url="http://ec2"), Cause.EC2_UNAVAILABLE),
        (ReadTimeoutError(endpoint_url="http://ec2"), Cause.EC2_UNAVAILABLE),
        (EndpointConnectionError(endpoint_url="http://ec2"), Cause.EC2_UNAVAILABLE),
        (NoCredentialsError(), Cause.IAM_DENIED),
    ],
)
def test_no_answer_is_unavailable_and_no_credentials_are_a_denial(foreign: Any, cause: Cause) -> None:
    error = translate("DescribeSubnets", foreign, {"vpc_id": "vpc-1"})
    assert error.cause is cause
    assert error.retry_after_s
    assert error.message.startswith("DescribeSubnets vpc_id=vpc-1: ")
    assert not error.message.endswith(": ")


def test_both_spellings_of_in_use_are_understood_and_nothing_else() -> None:
    def in_use(code: str, message: str) -> bool:
        return says_in_use(translate("DeleteNetworkInterface", answered(code, message), {}))

    assert in_use("InvalidNetworkInterface.InUse", "Interface: [eni-1] in use.")
    assert in_use("InvalidParameterValue", "Network interface 'eni-1' is currently in use.")
    assert not in_use("InvalidParameterValue", "Value (x) for parameter y is invalid.")
    assert not in_use("InvalidIPAddress.InUse", "Address 10.0.0.1 is in use.")


def test_an_address_the_eni_does_not_have_is_told_apart_from_other_bad_values() -> None:
    def not_assigned(code: str, message: str) -> bool:
        return says_not_assigned(translate("UnassignPrivateIpAddresses", answered(code, message), {}))

    assert not_assigned("InvalidParameterValue", "Some of [10.0.0.9] are not assigned to interface eni-1")
    assert not not_assigned("InvalidParameterValue", "10.0.0.4 is the primary address")
    assert not not_assigned("InvalidNetworkInterfaceID.NotFound", "eni-1 is not assigned")
