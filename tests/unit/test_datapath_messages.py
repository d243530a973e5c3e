"""The struct templates say what pyroute2's message classes read, and read what those write."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from agent.datapath import cold, messages
from agent.datapath.desired import RuleSpec
from agent.datapath.messages import PodRouteSeen, VethEnd
from agent.datapath.netlink import HEADER, Message, attribute, attributes, parse_error, split
from agent.ipam.model import Address, Mac

HOST = VethEnd(ifindex=100007, ifname="eni0123456789a", mac=Mac("02:00:00:00:00:07"), mtu=9001)
POD = VethEnd(ifindex=3, ifname="eth0", mac=Mac("02:00:00:00:00:08"), mtu=9001)
V4, V6 = IPv4Address("10.0.0.7"), IPv6Address("2001:db8::7")

REQUEST, ACK, REPLACE, EXCL, CREATE = 1, 4, 0x100, 0x200, 0x400


def _decoded(shape: Any, encoded: bytes) -> Any:
    decoded = shape(encoded)
    decoded.decode()
    assert decoded["header"]["length"] == len(encoded)
    return decoded


def _encoded(shape: Any, fields: dict[str, Any], attrs: list[tuple[str, Any]]) -> Message:
    made = shape()
    for name, value in fields.items():
        made[name] = value
    made["attrs"] = attrs
    made.encode()
    return Message(kind=0, payload=memoryview(bytes(made.data))[HEADER.size :])


def test_create_veth() -> None:
    seen = _decoded(ifinfmsg, messages.create_veth(HOST, 20002, POD, 9))
    assert (seen["header"]["type"], seen["header"]["flags"]) == (16, REQUEST | CREATE | EXCL)
    assert (seen["index"], seen["flags"]) == (HOST.ifindex, 0)
    assert seen.get("IFLA_IFNAME") == HOST.ifname
    assert seen.get("IFLA_ADDRESS") == HOST.mac
    assert (seen.get("IFLA_MTU"), seen.get("IFLA_GROUP")) == (9001, 20002)
    info = seen.get("IFLA_LINKINFO")
    assert info.get("IFLA_INFO_KIND") == "veth"
    peer = info.get("IFLA_INFO_DATA").get("VETH_INFO_PEER")
    assert (peer["index"], peer["flags"]) == (POD.ifindex, 0)
    assert (peer.get("IFLA_IFNAME"), peer.get("IFLA_ADDRESS"), peer.get("IFLA_MTU")) == ("eth0", POD.mac, 9001)
    assert peer.get("IFLA_NET_NS_FD") == 9


def test_link_changes() -> None:
    alias = _decoded(ifinfmsg, messages.set_alias(5, "enoki c eth0 a/b"))
    assert (alias["header"]["type"], alias["index"], alias.get("IFLA_IFALIAS")) == (19, 5, "enoki c eth0 a/b")
    up = _decoded(ifinfmsg, messages.set_up(5))
    assert (up["flags"], up["change"]) == (1, 1)
    leaving = _decoded(ifinfmsg, messages.set_leaving(5))
    assert (leaving["flags"], leaving["change"], leaving.get("IFLA_GROUP")) == (0, 1, 20099)
    mtu = _decoded(ifinfmsg, messages.set_mtu_up(5, 1500))
    assert (mtu["flags"], mtu["change"], mtu.get("IFLA_MTU")) == (1, 1, 1500)


def test_link_deletions_name_one_link_or_one_group_and_never_all() -> None:
    one = _decoded(ifinfmsg, messages.delete_link(5))
    assert (one["header"]["type"], one["index"], one["attrs"]) == (17, 5, [])
    group = _decoded(ifinfmsg, messages.delete_leaving())
    assert (group["header"]["type"], group["index"]) == (17, 0)
    assert [tuple(each) for each in group["attrs"]] == [("IFLA_GROUP", 20099)]


def test_link_requests() -> None:
    get = _decoded(ifinfmsg, messages.get_link("eth0"))
    assert (get["header"]["type"], get["header"]["flags"], get.get("IFLA_IFNAME")) == (18, REQUEST, "eth0")
    settle = _decoded(ifinfmsg, messages.settle_link(7))
    assert (settle["header"]["type"], settle["header"]["flags"], settle["index"]) == (18, REQUEST, 7)
    dump = _decoded(ifinfmsg, messages.dump_links("veth"))
    assert dump["header"]["flags"] == REQUEST | 0x300
    assert dump.get("IFLA_LINKINFO").get("IFLA_INFO_KIND") == "veth"
    assert _decoded(ifinfmsg, messages.dump_links()).get("IFLA_LINKINFO") is None


@pytest.mark.parametrize(
    ("address", "gateway", "family", "bits"), [(V4, "169.254.1.1", 2, 32), (V6, "fe80::1", 10, 128)], ids=["v4", "v6"]
)
def test_pod_side(address: Address, gateway: str, family: int, bits: int) -> None:
    next_hop = type(address)(gateway)
    near, far = (_decoded(rtmsg, each) for each in messages.pod_routes(3, next_hop, table_id=7, metric=1007))
    assert (near["family"], near["dst_len"], near["scope"], near["type"]) == (family, bits, 253, 1)
    assert (near.get("RTA_DST"), near.get("RTA_OIF"), near.get("RTA_GATEWAY")) == (gateway, 3, None)
    assert (far["family"], far["dst_len"], far["scope"], far["type"]) == (family, 0, 0, 1)
    assert (far.get("RTA_DST"), far.get("RTA_OIF"), far.get("RTA_GATEWAY")) == (None, 3, gateway)
    assert {(each.get("RTA_TABLE"), each.get("RTA_PRIORITY")) for each in (near, far)} == {(7, 1007)}

    added = _decoded(ifaddrmsg, messages.add_pod_address(3, address))
    assert (added["family"], added["prefixlen"], added["index"], added["scope"]) == (family, bits, 3, 0)
    assert (added.get("IFA_LOCAL"), added.get("IFA_ADDRESS")) == (str(address), str(address))
    assert added["flags"] == (2 if family == 10 else 0)

    neighbour = _decoded(ndmsg, messages.set_neighbour(3, address, POD.mac))
    assert (neighbour["family"], neighbour["ifindex"], neighbour["state"]) == (family, 3, 0x80)
    assert (neighbour.get("NDA_DST"), neighbour.get("NDA_LLADDR")) == (str(address), POD.mac)


@pytest.mark.parametrize(("address", "family", "bits"), [(V4, 2, 32), (V6, 10, 128)], ids=["v4", "v6"])
def test_pod_routes_on_the_host_are_exclusive_and_ours(address: Address, family: int, bits: int) -> None:
    add, delete = messages.add_pod_route(7, address), messages.delete_pod_route(7, address)
    for encoded, kind, flags in ((add, 24, REQUEST | CREATE | EXCL), (delete, 25, REQUEST)):
        seen = _decoded(rtmsg, encoded)
        assert (seen["header"]["type"], seen["header"]["flags"]) == (kind, flags)
        assert (seen["family"], seen["dst_len"], seen["proto"], seen["scope"]) == (family, bits, 205, 253)
        assert (seen.get("RTA_TABLE"), seen.get("RTA_OIF"), seen.get("RTA_DST")) == (20512, 7, str(address))
    assert messages.parse_pod_route(next(_received(add))) == PodRouteSeen(address=address, ifindex=7)


def test_foreign_routes_in_the_pods_table_are_not_read() -> None:
    ours: dict[str, Any] = {"family": 2, "dst_len": 32, "proto": 205, "type": 1}
    attrs: list[tuple[str, Any]] = [("RTA_DST", "10.0.0.7"), ("RTA_OIF", 7)]
    assert messages.parse_pod_route(_encoded(rtmsg, ours, attrs)) is not None
    assert messages.parse_pod_route(_encoded(rtmsg, ours | {"proto": 4}, attrs)) is None
    assert messages.parse_pod_route(_encoded(rtmsg, ours | {"dst_len": 24}, attrs)) is None
    assert messages.parse_pod_route(_encoded(rtmsg, ours, attrs[:1])) is None


def test_a_link_is_read_as_pyroute2_writes_it() -> None:
    info = {"attrs": [("IFLA_INFO_KIND", "veth")]}
    seen = messages.parse_link(
        _encoded(
            ifinfmsg,
            {"index": 100007, "flags": 0x1043},
            [
                ("IFLA_IFNAME", "eni0123456789a"),
                ("IFLA_TXQLEN", 1000),
                ("IFLA_MTU", 9001),
                ("IFLA_GROUP", 20002),
                ("IFLA_ADDRESS", "02:00:00:00:00:07"),
                ("IFLA_IFALIAS", "enoki c eth0 a/b"),
                ("IFLA_LINKINFO", info),
            ],
        ).payload
    )
    assert (seen.ifindex, seen.ifname, seen.kind, seen.group) == (100007, "eni0123456789a", "veth", 20002)
    assert (seen.mac, seen.mtu, seen.up) == ("02:00:00:00:00:07", 9001, True)
    assert seen.alias == "enoki c eth0 a/b"


# Cold messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        RuleSpec(pref=512, table_id=20512),
        RuleSpec(family=10, pref=512, table_id=20512),
        RuleSpec(pref=1536, table_id=2, mark=2, mark_mask=0x3F),
        RuleSpec(pref=32765, table_id=2, source=IPv4Address("10.0.0.20")),
    ],
)
def test_a_rule_reads_back_as_it_was_written(rule: RuleSpec) -> None:
    assert cold.parse_rule(next(_received(cold.add_rule(rule)))) == rule
    assert _decoded(fibmsg, cold.delete_rule(rule))["header"]["type"] == 33


def test_rules_of_others_are_not_read() -> None:
    ours: list[tuple[str, Any]] = [("FRA_PRIORITY", 512), ("FRA_TABLE", 20512), ("FRA_PROTOCOL", 205)]
    fields = {"family": 2, "action": 1}
    assert cold.parse_rule(_encoded(fibmsg, fields, ours)) == RuleSpec(pref=512, table_id=20512)
    assert cold.parse_rule(_encoded(fibmsg, fields, [*ours[:2], ("FRA_PROTOCOL", 3)])) is None
    assert cold.parse_rule(_encoded(fibmsg, fields, ours[:2])) is None
    assert cold.parse_rule(_encoded(fibmsg, fields, [*ours, ("FRA_IIFNAME", "eth0")])) is None
    assert cold.parse_rule(_encoded(fibmsg, fields | {"action": 6}, ours)) is None


# The envelope ---------------------------------------------------------------------------------------------------------


def _received(*encoded: bytes) -> Any:
    for kind, _, _, payload in split(b"".join(each + b"\0" * (-len(each) % 4) for each in encoded)):
        yield Message(kind=kind, payload=payload)


def test_split_ends_at_a_message_that_is_cut_or_lies_about_its_length() -> None:
    whole = messages.set_up(1)
    assert [kind for kind, *_ in split(whole + whole[:-4])] == [19]
    assert [kind for kind, *_ in split(whole + struct.pack("=IHHII", 4, 9, 0, 0, 0))] == [19]
    assert list(split(b"")) == []


def test_attributes_end_at_one_that_lies_about_its_length() -> None:
    good = attribute(1, b"abc")
    assert [(kind, bytes(value)) for kind, value in attributes(memoryview(good + good))] == [(1, b"abc")] * 2
    assert len(list(attributes(memoryview(good + struct.pack("=HH", 200, 1))))) == 1
    assert len(list(attributes(memoryview(good + struct.pack("=HH", 0, 1))))) == 1


def test_the_kernels_explanation_is_preferred_to_the_errno() -> None:
    echoed = HEADER.pack(200, 16, 0, 1, 0)
    text = attribute(1, b"veth: peer is not there\0")
    capped = struct.pack("=i", -22) + echoed + text
    assert parse_error(0x300, memoryview(capped)) == (22, "veth: peer is not there")
    whole = struct.pack("=i", -22) + HEADER.pack(20, 16, 0, 1, 0) + b"body" + text
    assert parse_error(0x200, memoryview(whole)) == (22, "veth: peer is not there")
    assert parse_error(0x100, memoryview(capped)) == (22, "Invalid argument")
    assert parse_error(0x100, memoryview(struct.pack("=i", 0) + echoed))[0] == 0
