"""How long each EC2 call takes to answer.

AWS publishes no figures. The realistic ones are of the size that amazon-vpc-cni-k8s logs and its histogram
`awscni_aws_api_latency_ms` show on quiet accounts: reads below 200 ms, writes some hundred, a create or attach near a
second. They shape what a client must live with; nothing is proven by their digits.
"""

from __future__ import annotations

from collections.abc import Mapping

REALISTIC_S: Mapping[str, float] = {
    "CreateNetworkInterface": 0.6,
    "AttachNetworkInterface": 0.9,
    "DetachNetworkInterface": 0.5,
    "DeleteNetworkInterface": 0.4,
    "AssignPrivateIpAddresses": 0.5,
    "UnassignPrivateIpAddresses": 0.4,
    "AssignIpv6Addresses": 0.5,
    "UnassignIpv6Addresses": 0.4,
    "ModifyNetworkInterfaceAttribute": 0.3,
    "CreateTags": 0.3,
    "DeleteTags": 0.3,
}
REALISTIC_DEFAULT_S = 0.15


class Latency:
    """Seconds by action, and for all others. Both may be changed while the simulator runs."""

    def __init__(self, by_action_s: Mapping[str, float] | None = None, *, default_s: float = 0.0) -> None:
        self.by_action_s: dict[str, float] = dict(by_action_s or {})
        self.default_s = default_s

    @classmethod
    def realistic(cls) -> Latency:
        return cls(REALISTIC_S, default_s=REALISTIC_DEFAULT_S)

    def of(self, action: str) -> float:
        return self.by_action_s.get(action, self.default_s)
