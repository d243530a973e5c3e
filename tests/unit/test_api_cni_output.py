"""Results and errors, byte for byte as each spec version has them."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from api.cni_output import render_error, render_result
from api.problems import CniError
from api.service import Address, AddResult


def result(*addresses: Address) -> AddResult:
    return AddResult(
        host_ifname="eni2b7c0f3a1d4",
        host_mac="02:00:0a:00:01:09",
        pod_mac="06:00:0a:00:01:09",
        netns="/run/netns/x",
        ifname="eth0",
        addresses=addresses,
        mtu=9001,
    )


def rendered(version: str, *addresses: Address) -> Any:
    return json.loads(render_result(result(*addresses), version))


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0"])
def test_old_versions_name_the_family(version: str) -> None:
    assert rendered(version, IPv4Address("10.0.1.9")) == {
        "cniVersion": version,
        "interfaces": [
            {"name": "eni2b7c0f3a1d4", "mac": "02:00:0a:00:01:09"},
            {"name": "eth0", "mac": "06:00:0a:00:01:09", "sandbox": "/run/netns/x"},
        ],
        "ips": [{"version": "4", "address": "10.0.1.9/32", "gateway": "169.254.1.1", "interface": 1}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
        "dns": {},
    }


def test_1_0_0() -> None:
    body = rendered("1.0.0", IPv4Address("10.0.1.9"))
    assert body["ips"] == [{"address": "10.0.1.9/32", "gateway": "169.254.1.1", "interface": 1}]
    assert all("mtu" not in interface for interface in body["interfaces"])


def test_1_1_0_has_the_mtu() -> None:
    body = rendered("1.1.0", IPv4Address("10.0.1.9"))
    assert [interface["mtu"] for interface in body["interfaces"]] == [9001, 9001]


def test_both_families() -> None:
    body = rendered("0.4.0", IPv4Address("10.0.1.9"), IPv6Address("2001:db8::9"))
    assert body["ips"][1] == {"version": "6", "address": "2001:db8::9/128", "gateway": "fe80::1", "interface": 1}
    assert body["routes"] == [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}, {"dst": "::/0", "gw": "fe80::1"}]


def test_one_default_route_for_two_addresses_of_a_family() -> None:
    assert len(rendered("1.0.0", IPv4Address("10.0.1.9"), IPv4Address("10.0.1.10"))["routes"]) == 1


def test_an_error_object() -> None:
    error = CniError(11, "pool_empty: no free address", "ünï")
    assert json.loads(render_error(error, "1.0.0")) == {
        "cniVersion": "1.0.0",
        "code": 11,
        "msg": "pool_empty: no free address",
        "details": "ünï",
    }
    assert b"details" not in render_error(CniError(4, "x"), "1.0.0")
