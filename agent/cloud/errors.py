"""What an answer of EC2 that is not success means to us: one table.

Codes and meanings: EC2 API Reference, "Error codes for the Amazon EC2 API" (common client errors, client errors for
specific actions, server errors). The reaction is the class (agent/errors.py draws the tree), the reason is the cause.
A code that is not in the table is `ec2_refused` when its HTTP status says 4xx, and `ec2_unavailable` otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
)

from agent.errors import (
    AgentError,
    Cause,
    CloudDenied,
    CloudFailed,
    CloudGone,
    CloudLimit,
    CloudThrottled,
    Evidence,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaction:
    """One row: how to say it, what a person can do, and when another try may help (None: not by waiting)."""

    cause: Cause
    error: type[AgentError]
    remedy: str = ""
    retry_after_s: float | None = None


_THROTTLED = Reaction(
    cause=Cause.EC2_THROTTLED,
    error=CloudThrottled,
    remedy="the account's request quota for this action is shared by all its nodes; "
    "ask AWS for a higher one if this goes on",
    # When to try again is the budget's to say (agent/cloud/budget.py): a fixed time would bring all nodes back at once.
)
_EXHAUSTED = Reaction(
    cause=Cause.SUBNET_EXHAUSTED,
    error=CloudLimit,
    remedy="free addresses in the subnet, or tag another subnet of the zone kubernetes.io/role/cni=1",
    retry_after_s=120,
)
_FRAGMENTED = Reaction(
    cause=Cause.SUBNET_FRAGMENTED,
    error=CloudLimit,
    remedy="reserve a part of the subnet for prefixes (subnet CIDR reservation), or use another subnet",
    retry_after_s=120,
)
_ENI_FULL = Reaction(cause=Cause.EC2_LIMIT, error=CloudLimit)
_INSTANCE_FULL = Reaction(
    cause=Cause.EC2_LIMIT,
    error=CloudLimit,
    remedy="the instance type allows no more network interfaces; detach those that others attached, or set MAX_ENI",
)
_ACCOUNT_FULL = Reaction(
    cause=Cause.EC2_LIMIT,
    error=CloudLimit,
    remedy="ask AWS for a higher quota, or delete network interfaces that nobody uses",
    retry_after_s=120,
)
_GONE = Reaction(cause=Cause.EC2_GONE, error=CloudGone)
_NOT_ALLOWED = Reaction(
    cause=Cause.IAM_DENIED,
    error=CloudDenied,
    remedy="allow {iam_action} in the IAM policy of the agent's role",
    retry_after_s=300,
)
_NOT_KNOWN = Reaction(
    cause=Cause.IAM_DENIED,
    error=CloudDenied,
    remedy="check the instance profile, or the role of the service account",
    # The role may only just have been attached; asking again is cheap.
    retry_after_s=30,
)
_CLOCK_WRONG = Reaction(
    cause=Cause.IAM_DENIED,
    error=CloudDenied,
    remedy="check the node's clock: EC2 takes requests that are at most five minutes off",
    retry_after_s=30,
)
_ACCOUNT_BLOCKED = Reaction(
    cause=Cause.IAM_DENIED, error=CloudDenied, remedy="ask AWS Support what blocks the account", retry_after_s=300
)
_UNAVAILABLE = Reaction(cause=Cause.EC2_UNAVAILABLE, error=CloudFailed, retry_after_s=2)
_BUSY = Reaction(cause=Cause.EC2_REFUSED, error=CloudFailed, retry_after_s=5)
_REFUSED = Reaction(cause=Cause.EC2_REFUSED, error=CloudFailed, retry_after_s=60)

REACTIONS: Mapping[str, Reaction] = {
    # Slow down. EC2 itself says RequestLimitExceeded; the others come from the layers in front of it and from quotas
    # on creating many of a thing at once.
    "RequestLimitExceeded": _THROTTLED,
    "Throttling": _THROTTLED,
    "ThrottlingException": _THROTTLED,
    "ThrottledException": _THROTTLED,
    "RequestThrottled": _THROTTLED,
    "RequestThrottledException": _THROTTLED,
    "EC2ThrottledException": _THROTTLED,
    "TooManyRequestsException": _THROTTLED,
    "SlowDown": _THROTTLED,
    "BandwidthLimitExceeded": _THROTTLED,
    "ResourceLimitExceeded": _ACCOUNT_FULL,
    # Full
    "InsufficientFreeAddressesInSubnet": _EXHAUSTED,
    "InsufficientCidrBlocks": _FRAGMENTED,
    "PrivateIpAddressLimitExceeded": _ENI_FULL,
    "InvalidInterface.IpAddressLimitExceeded": _ENI_FULL,
    "AttachmentLimitExceeded": _INSTANCE_FULL,
    "NetworkInterfaceLimitExceeded": _ACCOUNT_FULL,
    "SecurityGroupsPerInterfaceLimitExceeded": _ACCOUNT_FULL,
    "TagLimitExceeded": Reaction(
        cause=Cause.EC2_LIMIT, error=CloudLimit, remedy="shorten ADDITIONAL_ENI_TAGS", retry_after_s=300
    ),
    # Gone. EC2 spells some of these in two ways.
    "InvalidNetworkInterfaceID.NotFound": _GONE,
    "InvalidNetworkInterfaceId.NotFound": _GONE,
    "InvalidNetworkInterface.NotFound": _GONE,
    "InvalidAttachmentID.NotFound": _GONE,
    "InvalidNetworkInterfaceAttachmentId.NotFound": _GONE,
    "InvalidAttachment.NotFound": _GONE,
    "InvalidInstanceID.NotFound": _GONE,
    "InvalidSubnetID.NotFound": _GONE,
    "InvalidSubnetId.NotFound": _GONE,
    "InvalidSubnet": _GONE,
    "InvalidGroup.NotFound": _GONE,
    "InvalidSecurityGroupID.NotFound": _GONE,
    "InvalidVpcID.NotFound": _GONE,
    "InvalidInstanceType": _GONE,
    # Not allowed, not known
    "UnauthorizedOperation": _NOT_ALLOWED,
    "AccessDenied": _NOT_ALLOWED,
    "AccessDeniedException": _NOT_ALLOWED,
    "OperationNotPermitted": _REFUSED,
    "AuthFailure": _NOT_KNOWN,
    "InvalidClientTokenId": _NOT_KNOWN,
    "ExpiredToken": _NOT_KNOWN,
    "ExpiredTokenException": _NOT_KNOWN,
    "InvalidToken": _NOT_KNOWN,
    "UnrecognizedClientException": _NOT_KNOWN,
    "MissingAuthenticationToken": _NOT_KNOWN,
    "IncompleteSignature": _NOT_KNOWN,
    "SignatureDoesNotMatch": _NOT_KNOWN,
    "RequestExpired": _CLOCK_WRONG,
    "Blocked": _ACCOUNT_BLOCKED,
    "OptInRequired": _ACCOUNT_BLOCKED,
    "PendingVerification": _ACCOUNT_BLOCKED,
    # Ours to ask again soon: the object is on its way from one state to another.
    "IncorrectState": _BUSY,
    "IncorrectInstanceState": _BUSY,
    "InvalidNetworkInterface.InUse": _BUSY,
    "DependencyViolation": _BUSY,
    "ConcurrentTagAccess": _BUSY,
    "InvalidState": _BUSY,
    # Refused: asking the same again gives the same answer.
    "DryRunOperation": _REFUSED,
    "IdempotentParameterMismatch": _REFUSED,
    "InvalidAction": _REFUSED,
    "InvalidIPAddress.InUse": _REFUSED,
    "InvalidParameter": _REFUSED,
    "InvalidParameterCombination": _REFUSED,
    "InvalidParameterValue": _REFUSED,
    "InvalidNetworkInterfaceID.Malformed": _REFUSED,
    "InvalidNetworkInterfaceId.Malformed": _REFUSED,
    "InvalidNetworkInterfaceAttachmentID.MalformedId": _REFUSED,
    "InvalidInstanceID.Malformed": _REFUSED,
    "InvalidSubnetID.Malformed": _REFUSED,
    "InvalidVpcID.Malformed": _REFUSED,
    "InvalidGroupId.Malformed": _REFUSED,
    "InvalidSecurityGroupId.Malformed": _REFUSED,
    "InvalidID": _REFUSED,
    "InvalidCharacter": _REFUSED,
    "InvalidFilter": _REFUSED,
    "FilterLimitExceeded": _REFUSED,
    "InvalidParameterDependency": _REFUSED,
    "InvalidRequest": _REFUSED,
    "RequestResourceCountExceeded": _REFUSED,
    "NoSuchVersion": _REFUSED,
    "InvalidPaginationToken": _REFUSED,
    "InvalidQueryParameter": _REFUSED,
    "InvalidSecurity.RequestHasExpired": _CLOCK_WRONG,
    "InvalidTagKey.Malformed": _REFUSED,
    "MalformedQueryString": _REFUSED,
    "MissingAction": _REFUSED,
    "MissingParameter": _REFUSED,
    "Resource.AlreadyAssociated": _REFUSED,
    "ResourceCountExceeded": _REFUSED,
    "UnknownParameter": _REFUSED,
    "UnsupportedOperation": _REFUSED,
    "Unsupported": _REFUSED,
    "ValidationError": _REFUSED,
    # EC2's own trouble
    "InternalError": _UNAVAILABLE,
    "InternalFailure": _UNAVAILABLE,
    "RequestTimeout": _UNAVAILABLE,
    "ServiceUnavailable": _UNAVAILABLE,
    "Unavailable": _UNAVAILABLE,
}


def translate(action: str, error: ClientError | BotoCoreError | TimeoutError, ids: Evidence) -> AgentError:
    """The error of ours for a failed call of `action` on `ids`; the caller raises it `from` the foreign one.

    Evidence: the ids, the action, and, when EC2 answered, its code, HTTP status and request id.
    """
    if isinstance(error, ClientError):
        return _answered(action, error, ids)
    evidence = {**ids, "action": action}
    match error:
        case NoCredentialsError() | PartialCredentialsError() | CredentialRetrievalError():
            reaction = _NOT_KNOWN
        case _:
            reaction = _UNAVAILABLE
    said = str(error) or "no answer before the deadline"
    return _build(reaction, action, f"{_subject(action, ids)}: {said}", evidence, reaction.retry_after_s)


def _answered(action: str, error: ClientError, ids: Evidence) -> AgentError:
    answer = error.response
    metadata = answer.get("ResponseMetadata", {})
    code = str(answer.get("Error", {}).get("Code", "Unknown"))
    status = int(metadata.get("HTTPStatusCode", 0))
    said = str(answer.get("Error", {}).get("Message", "")).rstrip(". ")
    reaction = REACTIONS.get(code) or (_REFUSED if 400 <= status < 500 else _UNAVAILABLE)
    if _says_no_room(code, said):
        reaction = _FRAGMENTED
    evidence: dict[str, str | int | float] = {
        **ids,
        "action": action,
        "code": code,
        "http_status": status,
        "aws_request_id": str(metadata.get("RequestId", "")),
    }
    # RFC 9110 10.2.3; EC2 rarely sends it, and a date in it is not worth parsing.
    hint = str(metadata.get("HTTPHeaders", {}).get("retry-after", ""))
    retry_after_s = float(hint) if hint.isascii() and hint.isdigit() else reaction.retry_after_s
    return _build(reaction, action, f"{_subject(action, ids)}: {code}: {said}", evidence, retry_after_s)


def _build(
    reaction: Reaction, action: str, message: str, evidence: Evidence, retry_after_s: float | None
) -> AgentError:
    return reaction.error(
        reaction.cause,
        message,
        evidence=evidence,
        remedy=reaction.remedy.format(iam_action=f"ec2:{action}"),
        retry_after_s=retry_after_s,
    )


def _subject(action: str, ids: Evidence) -> str:
    return f"{action} {' '.join(f'{key}={value}' for key, value in ids.items())}".rstrip()


def says_in_use(error: AgentError) -> bool:
    """EC2 refused because the ENI is still attached: the documented code, or the older one it also answers with."""
    code = error.evidence.get("code")
    return code == "InvalidNetworkInterface.InUse" or (
        code == "InvalidParameterValue" and "in use" in error.message.lower()
    )


def _says_no_room(code: str, message: str) -> bool:
    """EC2's other way to refuse prefixes: in a subnet that has fewer free addresses than they take."""
    return code == "InvalidParameterValue" and "sufficient free ipv4 addresses or prefixes" in message.lower()


def says_not_assigned(error: AgentError) -> bool:
    """EC2 refused to unassign because the ENI does not have (all of) the addresses."""
    return error.evidence.get("code") == "InvalidParameterValue" and "not assigned" in error.message.lower()
