"""What the routes outside `/v1/cni` answer. Frozen values: the service builds them, FastAPI renders them."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Scalar = str | int | float


def shown(example: dict[str, Any]) -> ConfigDict:
    """The configuration of a view with an example for the document."""
    return ConfigDict(json_schema_extra={"example": example})


class View(BaseModel):
    """Base of all answers: immutable, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ConditionView(View):
    """Something that keeps the agent from doing what it should, by the name of its cause."""

    cause: str
    """One of the closed set of causes, for example `subnet_exhausted`."""
    message: str
    """What was attempted, on which object, and what came back."""
    evidence: dict[str, str | int | float] = {}
    """Numbers and ids that prove the cause."""
    remedy: str = ""
    """What a person can do; empty when waiting is the remedy."""
    retry_after_s: Seconds | None = None
    """Seconds until the next try; null when there will be none."""


class AddressCounts(View):
    """Addresses by state. Only `free_count` can be handed out now."""

    free_count: Count = 0
    """Can be given to a pod now."""
    held_count: Count = 0
    """A pod has it."""
    cooling_count: Count = 0
    """A pod had it a moment ago; it rests until nobody on the network takes it for that pod any more."""
    retiring_count: Count = 0
    """On its way back to EC2."""
    quarantined_count: Count = 0
    """A pod has it and EC2 does not list it on this node: neither given to others nor back."""


class AddressStateName(StrEnum):
    """Where an address is in its life; see AddressCounts for what each state means."""

    FREE = "free"
    HELD = "held"
    COOLING = "cooling"
    RETIRING = "retiring"
    QUARANTINED = "quarantined"


class AddressView(View):
    """One address of the pool."""

    address: Address
    """An address for pods, as EC2 granted it to the ENI."""
    state: AddressStateName
    """Where it is in its life."""


class PoolEniView(View):
    """One ENI's share of the pool."""

    eni_id: str
    """EC2's id of the network interface."""
    counts: AddressCounts
    """Its addresses by state."""
    addresses: list[AddressView]
    """In the order of the addresses."""


class PoolView(View):
    """The pool of pod addresses by state and by ENI."""

    model_config = shown(
        {
            "counts": {"free_count": 1, "held_count": 1},
            "waiter_count": 0,
            "enis": [
                {
                    "eni_id": "eni-0123456789abcdef0",
                    "counts": {"free_count": 1, "held_count": 1},
                    "addresses": [
                        {"address": "10.0.1.9", "state": "held"},
                        {"address": "10.0.1.10", "state": "free"},
                    ],
                }
            ],
            "reason": "as it should be: 1 free",
            "conditions": [],
        }
    )

    counts: AddressCounts
    """The sum over all ENIs."""
    waiter_count: Count
    """ADD requests that wait for an address now."""
    enis: list[PoolEniView]
    """Share of each ENI whose addresses pods may have."""
    reason: str = ""
    """Why the pool's last turn did what it did."""
    conditions: list[ConditionView] = []
    """What keeps the pool from its targets; empty when nothing does."""


class EniView(View):
    """A network interface attached to this node."""

    model_config = shown(
        {
            "eni_id": "eni-0123456789abcdef0",
            "mac": "0e:00:0a:00:01:05",
            "card": 0,
            "device": 0,
            "subnet_id": "subnet-0123456789abcdef0",
            "subnet_cidr": "10.0.1.0/24",
            "primary_address": "10.0.1.5",
            "table_id": 254,
            "managed": True,
            "slot_count": 9,
            "blocks": ["10.0.1.9/32", "10.0.1.16/28"],
            "counts": {"free_count": 16, "held_count": 1},
        }
    )

    eni_id: str
    """EC2's id of the network interface."""
    mac: str
    """Its MAC address: by it the ENI's link is found on the node."""
    card: Count
    """Network card index."""
    device: Count
    """Device index on the card; card 0, device 0 is the primary ENI."""
    subnet_id: str
    """EC2's id of its subnet."""
    subnet_cidr: IPv4Network
    """The subnet's range."""
    primary_address: IPv4Address
    """The ENI's own address; never given to a pod."""
    table_id: int | None
    """Routing table of traffic that leaves by this ENI; 254 is the main table; null until the link is set up."""
    managed: bool
    """False for an ENI that belongs to somebody else: counted, never touched."""
    interface_type: str = "interface"
    """EC2's InterfaceType: `interface`, `trunk`, `efa`, ..."""
    excluded: bool = False
    """Its subnet is not for pods (any more): no new pod gets an address from it."""
    slot_count: Count
    """Blocks (addresses or prefixes) the ENI can have beside its own address."""
    blocks: list[Network]
    """What EC2 granted: single addresses and prefixes."""
    counts: AddressCounts
    """The addresses in them by state."""


class AllocationView(View):
    """An attachment and the addresses it holds."""

    model_config = shown(
        {
            "addresses": ["10.0.1.9"],
            "eni_id": "eni-0123456789abcdef0",
            "container_id": "3f5a9c0e7d",
            "ifname": "eth0",
            "namespace": "default",
            "pod": "web-0",
            "host_ifname": "eni2b7c0f3a1d4",
            "since": "2026-11-24T09:30:00Z",
        }
    )

    addresses: list[Address]
    """What the pod's interface has."""
    eni_id: str
    """The ENI they belong to; empty when EC2 does not list it."""
    container_id: str
    """The runtime's id of the pod's sandbox."""
    ifname: str
    """Interface name inside the container."""
    namespace: str
    """Kubernetes namespace; empty when the runtime did not say."""
    pod: str
    """Pod name; empty when the runtime did not say."""
    pod_uid: str = ""
    """The pod's uid in Kubernetes; empty while Kubernetes is not known, or does not know the pod."""
    host_ifname: str
    """The host's end of the veth pair; empty while it is being made."""
    since: datetime
    """When it got its address; when the agent started, for one that was there already."""


class LoopView(View):
    """One of the agent's loops."""

    name: str
    """What it looks after, for example `pool` or `drift`."""
    healthy: bool
    """Its last turn was good. One that was not is tried again by itself."""
    seconds_since_good_turn_s: Seconds
    """Seconds since the loop last finished a turn without an error."""
    reason: str = ""
    """The last error; empty when the last turn was good."""


class HealthView(View):
    """Liveness. `healthy` is false only when a restart would help."""

    model_config = shown(
        {
            "healthy": True,
            "loops": [{"name": "pool", "healthy": True, "seconds_since_good_turn_s": 1.5, "reason": ""}],
        }
    )

    healthy: bool
    """False only when a restart would help."""
    loops: list[LoopView]
    """Every loop of the agent."""


class StageState(StrEnum):
    """How far a stage of the start is."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


class StageView(View):
    """One stage of the start."""

    name: str
    """What is found out or made in it, for example `identity`, `kernel` or `addresses`."""
    state: StageState
    """How far it is."""
    since: datetime | None = None
    """When the stage entered this state (with a time zone); null while pending."""
    reason: str = ""
    """Why it is where it is: what it waits for, or what failed."""


class StartupView(View):
    """Readiness, stage by stage, in the order they run."""

    model_config = shown(
        {
            "ready": False,
            "stages": [
                {"name": "identity", "state": "done", "since": "2026-11-24T09:30:00Z", "reason": ""},
                {
                    "name": "addresses",
                    "state": "failed",
                    "since": "2026-11-24T09:30:01Z",
                    "reason": "iam_denied: ec2:DescribeNetworkInterfaces is not allowed",
                },
            ],
        }
    )

    ready: bool
    """True once ADD can be served."""
    stages: list[StageView]
    """In the order in which they run."""


class ProblemView(BaseModel):
    """Problem details (RFC 9457); further members, such as `cause` or `remedy`, depend on the problem."""

    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        use_attribute_docstrings=True,
        json_schema_extra={
            "example": {
                "type": "about:blank",
                "title": "Unknown pod",
                "status": 404,
                "detail": "default/web-7 is not attached on this node",
            }
        },
    )

    type: str = "about:blank"
    """Always `about:blank`: `title` says it."""
    title: str
    """The kind of problem; the same words each time."""
    status: int
    """The HTTP status again."""
    detail: str | None = None
    """What happened this time."""
