"""How long EC2 and IMDS take for the model of the AWS plugin's pool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sim.ec2.latency import Latency
from sim.model.config import REALISTIC_TIMINGS


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsDelays:
    """How long the outside world takes.

    call_s: by EC2 action. visible_s: from the end of AttachNetworkInterface until IMDS shows the ENI.
    detached_s: from the end of DetachNetworkInterface until EC2 accepts the delete. imds_read_s: one read.
    """

    call_s: Mapping[str, float]
    visible_s: float
    detached_s: float
    imds_read_s: float = 0.003


ASSUMED_DELAYS = AwsDelays(
    call_s={
        "AssignPrivateIpAddresses": 0.5,
        "UnassignPrivateIpAddresses": 0.4,
        "DescribeSubnets": 0.15,
        "CreateNetworkInterface": 0.6,
        "DescribeInstances": 0.15,
        "AttachNetworkInterface": 0.8,
        "ModifyNetworkInterfaceAttribute": 0.25,
        "DescribeNetworkInterfaces": 0.15,
        "DetachNetworkInterface": 0.4,
        "DeleteNetworkInterface": 0.3,
        "CreateTags": 0.2,
    },
    visible_s=3.0,
    detached_s=5.0,
)
"""Assumptions, not measurements: the ones the plugin's figures in the tests hold for."""


def simulator_delays() -> AwsDelays:
    """Those of the simulator, which our own pool meets too."""
    latency = Latency.realistic()
    return AwsDelays(
        call_s={action: latency.of(action) for action in ASSUMED_DELAYS.call_s},
        visible_s=REALISTIC_TIMINGS.attach_s + REALISTIC_TIMINGS.imds_lag_s,
        detached_s=REALISTIC_TIMINGS.detach_s,
    )
