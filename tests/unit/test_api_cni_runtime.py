"""`runtimeConfig`: what a pod may ask, and what is refused."""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any

import pytest

from api.cni_runtime import NO_WISH, parse_runtime
from api.problems import CniError
from api.service import HostPort, RateLimit


def _parsed(**runtime: Any) -> Any:
    return parse_runtime({"runtimeConfig": runtime})


def test_nothing_asked_is_nothing_wished() -> None:
    assert parse_runtime({}) == NO_WISH
    assert _parsed() == NO_WISH
    assert _parsed(portMappings=None, bandwidth=None, ips=["10.0.0.9"]) == NO_WISH
    assert _parsed(bandwidth={"ingressRate": 0, "ingressBurst": 0}) == NO_WISH


def test_port_mappings_of_every_kind() -> None:
    wish = _parsed(
        portMappings=[
            {"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": ""},
            {"hostPort": 80, "containerPort": 8053, "protocol": "UDP"},
            {"hostPort": 81, "containerPort": 81, "protocol": "sctp", "hostIP": "10.0.0.10"},
            {"hostPort": 81, "containerPort": 81, "protocol": "sctp", "hostIP": "127.0.0.1"},
            {"hostPort": 82, "containerPort": 82, "hostIP": "::"},
            {"hostPort": 83, "containerPort": 83, "protocol": "tcp", "hostIP": "2001:db8::1"},
        ]
    )
    assert wish.port_mappings == (
        HostPort(host_port=80, container_port=8080, protocol="tcp"),
        HostPort(host_port=80, container_port=8053, protocol="udp"),
        HostPort(host_port=81, container_port=81, protocol="sctp", host_address=IPv4Address("10.0.0.10")),
        HostPort(host_port=81, container_port=81, protocol="sctp", host_address=IPv4Address("127.0.0.1")),
        HostPort(host_port=82, container_port=82, protocol="tcp"),
    )


def test_members_may_be_spelled_as_containerd_spells_them() -> None:
    wish = _parsed(
        portMappings=[{"HostPort": 80, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": "10.0.0.10"}],
        bandwidth={"IngressRate": 8, "IngressBurst": 9, "EgressRate": 0, "EgressBurst": 0},
    )
    bound = IPv4Address("10.0.0.10")
    assert wish.port_mappings == (HostPort(host_port=80, container_port=8080, protocol="tcp", host_address=bound),)
    assert (wish.ingress, wish.egress) == (RateLimit(rate_bits_per_s=8, burst_bits=9), None)


def test_bandwidth_is_in_bits() -> None:
    wish = _parsed(bandwidth={"ingressRate": 1_000_000, "ingressBurst": 80_000, "egressRate": 8, "egressBurst": 1})
    assert wish.ingress == RateLimit(rate_bits_per_s=1_000_000, burst_bits=80_000)
    assert wish.egress == RateLimit(rate_bits_per_s=8, burst_bits=1)


GOOD = {"hostPort": 80, "containerPort": 8080, "protocol": "tcp"}


@pytest.mark.parametrize(
    "runtime",
    [
        "x",
        {"portMappings": {}},
        {"portMappings": [GOOD] * 1001},
        {"portMappings": ["x"]},
        {"portMappings": [GOOD | {"hostPort": 0}]},
        {"portMappings": [GOOD | {"hostPort": 65536}]},
        {"portMappings": [GOOD | {"hostPort": True}]},
        {"portMappings": [GOOD | {"hostPort": "80"}]},
        {"portMappings": [GOOD | {"containerPort": None}]},
        {"portMappings": [GOOD | {"protocol": "icmp"}]},
        {"portMappings": [GOOD | {"protocol": 6}]},
        {"portMappings": [GOOD | {"hostIP": "localhost"}]},
        {"portMappings": [GOOD | {"hostIP": 7}]},
        {"portMappings": [GOOD, GOOD | {"containerPort": 9}]},
        {"portMappings": [GOOD, GOOD | {"hostIP": "10.0.0.10"}]},
        {"bandwidth": []},
        {"bandwidth": {"ingressRate": 1000}},
        {"bandwidth": {"egressBurst": 1000}},
        {"bandwidth": {"ingressRate": -1, "ingressBurst": 1}},
        {"bandwidth": {"ingressRate": 7, "ingressBurst": 1}},
        {"bandwidth": {"ingressRate": 1.5, "ingressBurst": 1}},
        {"bandwidth": {"ingressRate": 1000, "ingressBurst": 8 * 2**32}},
    ],
)
def test_what_makes_no_sense_is_refused(runtime: Any) -> None:
    with pytest.raises(CniError) as refused:
        parse_runtime({"runtimeConfig": runtime})
    assert refused.value.code == 7
