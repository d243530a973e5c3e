"""The errors EC2 answers with: code, HTTP status, message, and when the simulator raises it.

Codes are those of the EC2 Developer Guide, "Error codes for the Amazon EC2 API" (tables "Common client error codes",
"Client error codes for specific actions", "Server error codes"). Where the guide and what users report from the real
service differ, the report wins and is named.

| code | status | when |
|---|---|---|
| MissingAuthenticationToken, IncompleteSignature | 403, 400 | no credential in the request; one that cannot be read |
| AuthFailure | 401 | the credential is for another Region |
| RequestExpired | 400 | the request's date and the server's are more than 15 minutes apart |
| InvalidAction, MissingAction, NoSuchVersion | 400 | what is asked is not simulated; nothing is asked; API version |
| MissingParameter, UnknownParameter | 400 | a parameter is required; is not known |
| InvalidParameterValue, InvalidParameterCombination | 400 | a value, or values together, cannot be |
| InvalidPaginationToken | 400 | `NextToken` was not given out by this action |
| IdempotentParameterMismatch | 400 | the client token was used before with other parameters |
| DryRunOperation | 412 | `DryRun` was set and the request would have succeeded |
| RequestLimitExceeded | 503 | the action's token bucket is empty (`sim.ec2.budget`) |
| InvalidInstanceID.NotFound, .Malformed | 400 | |
| InvalidSubnetID.NotFound, .Malformed, InvalidVpcID.NotFound, .Malformed | 400 | |
| InvalidGroup.NotFound, InvalidGroupId.Malformed | 400 | |
| TagLimitExceeded | 400 | more than 50 tags on a resource |
| InvalidInstanceType | 400 | the type is not in the catalogue |
| InvalidNetworkInterfaceID.NotFound | 400 | names the first unknown ENI only |
| InvalidNetworkInterfaceId.Malformed | 400 | not `eni-` and 8 or 17 hex digits |
| InvalidAttachmentID.NotFound | 400 | |
| InvalidNetworkInterface.InUse | 400 | AttachNetworkInterface of an ENI that is attached |
| InvalidParameterValue: Network interface '...' is currently in use. | 400 | DeleteNetworkInterface of such an ENI. The
  guide lists InvalidNetworkInterface.InUse for it; the service answers this (reports against many tools) |
| AttachmentLimitExceeded | 400 | the instance type, or its network card, has no place for one more ENI |
| InvalidParameterValue: ... already has an interface attached at device index | 400 | the place is taken |
| PrivateIpAddressLimitExceeded | 400 | more IPv4 addresses and prefixes than the type allows per interface |
| InvalidIPAddress.InUse | 400 | CreateNetworkInterface with an address somebody has |
| InsufficientFreeAddressesInSubnet | 400 | fewer free addresses than asked for |
| InvalidParameterValue: There aren't sufficient free Ipv4 addresses or prefixes | 400 | prefixes asked for and fewer
  than 16 free addresses for each of them (amazon-vpc-cni-k8s 3105, cilium 31016) |
| InsufficientCidrBlocks | 400 | enough addresses are free, but not in aligned blocks of 16: fragmented (same sources) |
| OperationNotPermitted | 400 | detaching the primary ENI |
| UnauthorizedOperation, InternalError, Unavailable, ... | | only by a scripted fault (`sim.faults`) |
"""

from __future__ import annotations


class Ec2Error(Exception):
    """One answer of the kind above; nothing has changed in the VPC."""

    def __init__(self, code: str, message: str, *, http_status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.http_status = http_status


def invalid_value(message: str) -> Ec2Error:
    return Ec2Error("InvalidParameterValue", message)


def invalid_combination(message: str) -> Ec2Error:
    return Ec2Error("InvalidParameterCombination", message)
