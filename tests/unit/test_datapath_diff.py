"""Differences and their order, the damping of repairs, and what a notification says."""

from __future__ import annotations

import dataclasses
import math
from ipaddress import IPv4Address
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from agent.datapath import cold, damping, messages
from agent.datapath.damping import Damping
from agent.datapath.desired import Bucket, EniPlan, HostSide, NodeDesired, RuleSpec
from agent.datapath.diff import (
    HOST_PORT_SETTINGS,
    AddRule,
    EnableForwarding,
    NodeSeen,
    PutBucket,
    PutEniAddress,
    PutEniRoutes,
    PutNeighbour,
    PutPodRoute,
    SetLink,
    SetSetting,
    differences,
)
from agent.datapath.memory import HostMemory
from agent.datapath.messages import LinkSeen, NeighbourSeen, RouteSeen
from agent.datapath.netlink import HEADER
from agent.datapath.notices import Disturbed, Notice, disturbed_of_table, notice_of
from agent.ipam.model import AttachmentKey, Mac

POD = IPv4Address("10.0.0.11")
GATEWAY = IPv4Address("10.0.0.1")
HOST_MAC, POD_MAC, ENI_MAC, PRIMARY_MAC = (Mac(f"02:00:00:00:00:0{n}") for n in range(1, 5))
RULE = RuleSpec(pref=512, table_id=20512)
ENI = EniPlan(
    mac=ENI_MAC,
    table_id=2,
    index=2,
    address=IPv4Address("10.0.0.20"),
    prefix_length=24,
    gateway=GATEWAY,
    rules=(RuleSpec(pref=1536, table_id=2, mark=2, mark_mask=0x3F),),
)
BUCKET = Bucket(rate_bytes_per_s=1000, burst_bytes=9015, limit_bytes=9040)
SIDE = HostSide(
    key=AttachmentKey(container_id="c1", ifname="eth0"),
    ifindex=100_000,
    ifname="eni0",
    alias="enoki c1 eth0",
    group=20002,
    mac=HOST_MAC,
    pod_mac=POD_MAC,
    mtu=9001,
    addresses=(POD,),
    host_ports=True,
    to_pod=BUCKET,
)
DESIRED = NodeDesired(primary_mac=PRIMARY_MAC, eni_mtu=9001, rules=(RULE,), enis=(ENI,), pods=(SIDE,))


def _link(ifindex: int, ifname: str, mac: Mac, **changed: Any) -> LinkSeen:
    link = LinkSeen(ifindex=ifindex, ifname=ifname, kind="", group=0, alias="", mac=mac, mtu=9001, up=True)
    return dataclasses.replace(link, **changed)


POD_LINK = _link(SIDE.ifindex, SIDE.ifname, HOST_MAC, kind="veth", group=SIDE.group, alias=SIDE.alias)
WHOLE = NodeSeen(
    forwarding=True,
    links={2: _link(2, "eth0", PRIMARY_MAC), 3: _link(3, "eth1", ENI_MAC), SIDE.ifindex: POD_LINK},
    pod_routes={POD: SIDE.ifindex},
    neighbours={
        (SIDE.ifindex, POD): NeighbourSeen(ifindex=SIDE.ifindex, address=POD, mac=POD_MAC, permanent=True),
    },
    rules=frozenset({RULE, *ENI.rules}),
    eni_routes={
        2: (
            RouteSeen(destination=GATEWAY, gateway=None, ifindex=3, protocol=205),
            RouteSeen(destination=None, gateway=GATEWAY, ifindex=3, protocol=205),
        )
    },
    eni_addresses={3: frozenset({ENI.address})},
    settings={SIDE.ifname: HOST_PORT_SETTINGS},
    buckets={SIDE.ifindex: BUCKET},
)


def test_nothing_differs_in_what_is_whole() -> None:
    assert differences(DESIRED, WHOLE) == ()


def test_a_bare_node_gets_everything_in_the_order_in_which_it_can_be_made() -> None:
    down = dataclasses.replace(POD_LINK, up=False, ifname="stolen0")
    bare = NodeSeen(
        forwarding=False,
        links={2: _link(2, "eth0", PRIMARY_MAC, mtu=1500), 3: _link(3, "eth1", ENI_MAC, up=False), SIDE.ifindex: down},
        pod_routes={},
        neighbours={},
        rules=frozenset(),
        eni_routes={},
        eni_addresses={},
        settings={"stolen0": {("ipv4", "rp_filter"): 0}},
        buckets={},
    )
    found = differences(DESIRED, bare)
    assert [type(operation) for operation in found] == [
        EnableForwarding,
        *[SetLink] * 3,
        SetSetting,
        PutBucket,
        PutNeighbour,
        PutEniAddress,
        PutEniRoutes,
        *[AddRule] * 2,
        PutPodRoute,
    ]
    (renamed,) = (each for each in found if isinstance(each, SetLink) and each.ifindex == SIDE.ifindex)
    assert (renamed.ifname, renamed.up, renamed.mac, renamed.mtu, renamed.group) == ("eni0", True, None, None, None)
    # The setting is written under the name that the link has by then.
    (setting,) = (each for each in found if isinstance(each, SetSetting))
    assert (setting.ifname, setting.value) == ("eni0", 1)


def test_what_is_foreign_beside_ours_is_no_difference() -> None:
    seen = dataclasses.replace(
        WHOLE,
        pod_routes={**WHOLE.pod_routes, IPv4Address("192.0.2.1"): 2},
        rules=WHOLE.rules | {RuleSpec(pref=600, table_id=254)},
        links={**WHOLE.links, 9: _link(9, "docker0", Mac("02:00:00:00:00:09"), up=False, mtu=1500)},
    )
    assert differences(DESIRED, seen) == ()


def test_a_link_that_is_gone_is_nobodys_difference() -> None:
    assert differences(DESIRED, dataclasses.replace(WHOLE, links={2: WHOLE.links[2]})) == ()


def test_a_link_that_is_down_has_lost_its_route_whatever_the_dump_said() -> None:
    links = {**WHOLE.links, SIDE.ifindex: dataclasses.replace(POD_LINK, up=False)}
    found = differences(DESIRED, dataclasses.replace(WHOLE, links=links))
    assert [type(operation) for operation in found] == [SetLink, PutPodRoute]


def test_a_node_that_is_not_prepared_has_no_differences() -> None:
    nothing = dataclasses.replace(DESIRED, primary_mac=Mac(""), enis=(), pods=())
    assert differences(nothing, dataclasses.replace(WHOLE, forwarding=False, rules=frozenset())) == ()


def test_three_repairs_are_free_and_then_the_wait_doubles_up_to_a_minute() -> None:
    damped = Damping()
    now_s = 1000.0
    waits = []
    for _ in range(14):
        assert damped.due_s("x") <= now_s
        strike = damped.struck("x", now_s)
        waits.append(strike.due_s - now_s)
        assert strike.contested == (strike.count > damping.FREE_STRIKES)
        now_s = max(now_s, strike.due_s)
    assert waits == [0, 0, 0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
    assert damped.due_s("y") == -math.inf


def test_a_minute_of_peace_forgets_the_fight() -> None:
    damped = Damping()
    for _ in range(5):
        last = damped.struck("x", 0.0)
    assert last.count == 5
    assert damped.struck("x", last.due_s + damping.PEACE_S - 1).count == 6
    assert damped.struck("x", 10_000.0).count == 1


# Notifications -------------------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> HostMemory:
    made = HostMemory(9001)
    made.prepared(PRIMARY_MAC, (RULE,))
    made.eni(ENI)
    made.looked_at({2: "eth0", 3: "eth1"})
    made.pod(SIDE)
    return made


def _payload(shape: Any, fields: dict[str, Any], attrs: list[tuple[str, Any]]) -> memoryview:
    made = shape()
    for name, value in fields.items():
        made[name] = value
    made["attrs"] = attrs
    made.encode()
    return memoryview(bytes(made.data))[HEADER.size :]


def _link_payload(link: LinkSeen) -> memoryview:
    attrs = [
        ("IFLA_IFNAME", link.ifname),
        ("IFLA_MTU", link.mtu),
        ("IFLA_ADDRESS", link.mac),
        ("IFLA_GROUP", link.group),
        ("IFLA_IFALIAS", link.alias),
    ]
    return _payload(ifinfmsg, {"index": link.ifindex, "flags": int(link.up)}, attrs)


def _says(memory: HostMemory, kind: int, payload: memoryview) -> bool | None:
    notice = notice_of(kind, payload, memory)
    return None if notice is None else notice.as_made


@pytest.mark.parametrize("change", ["ifname", "alias", "mac", "mtu", "group", "up"])
def test_a_link_is_as_made_until_something_of_it_is_not(memory: HostMemory, change: str) -> None:
    assert _says(memory, messages.RTM_NEWLINK, _link_payload(POD_LINK)) is True
    wrong: dict[str, Any] = {"ifname": "x", "alias": "x", "mac": POD_MAC, "mtu": 1, "group": 1, "up": False}
    changed = dataclasses.replace(POD_LINK, **{change: wrong[change]})
    assert _says(memory, messages.RTM_NEWLINK, _link_payload(changed)) is False
    memory.forget_pod(SIDE.key)
    assert _says(memory, messages.RTM_NEWLINK, _link_payload(changed)) is None


def test_the_link_of_an_eni_and_foreign_links(memory: HostMemory) -> None:
    eth1 = _link(3, "eth1", ENI_MAC)
    assert _says(memory, messages.RTM_NEWLINK, _link_payload(eth1)) is True
    assert _says(memory, messages.RTM_NEWLINK, _link_payload(dataclasses.replace(eth1, up=False))) is False
    assert _says(memory, messages.RTM_NEWLINK, _link_payload(dataclasses.replace(eth1, ifname="ens6"))) is False
    foreign = _link(9, "docker0", Mac("02:00:00:00:00:09"), up=False)
    assert _says(memory, messages.RTM_NEWLINK, _link_payload(foreign)) is None


def _body(encoded: bytes) -> memoryview:
    return memoryview(encoded)[HEADER.size :]


def test_routes_of_pods(memory: HostMemory) -> None:
    ours = _body(messages.add_pod_route(SIDE.ifindex, POD))
    assert notice_of(messages.RTM_NEWROUTE, ours, memory) == Notice(about=("route", POD), as_made=True)
    assert notice_of(messages.RTM_DELROUTE, ours, memory) == Notice(about=("route", POD), as_made=False)
    assert _says(memory, messages.RTM_DELROUTE, _body(messages.add_pod_route(SIDE.ifindex, GATEWAY))) is None
    assert _says(memory, messages.RTM_DELROUTE, _body(messages.add_pod_route(7, POD))) is None


def test_neighbours_of_pods(memory: HostMemory) -> None:
    ours = _body(messages.set_neighbour(SIDE.ifindex, POD, POD_MAC))
    assert _says(memory, messages.RTM_NEWNEIGH, ours) is True
    assert _says(memory, messages.RTM_DELNEIGH, ours) is False
    assert _says(memory, messages.RTM_NEWNEIGH, _body(messages.set_neighbour(SIDE.ifindex, POD, HOST_MAC))) is False
    assert _says(memory, messages.RTM_NEWNEIGH, _body(messages.set_neighbour(2, POD, HOST_MAC))) is None
    stale = {"family": 2, "ifindex": SIDE.ifindex, "state": 4}
    attrs = [("NDA_DST", str(POD)), ("NDA_LLADDR", POD_MAC)]
    assert _says(memory, messages.RTM_NEWNEIGH, _payload(ndmsg, stale, attrs)) is False


def _netconf(ifindex: int, **values: int) -> memoryview:
    names = {"forwarding": 2, "rp_filter": 3}
    attrs = {1: ifindex, **{names[name]: value for name, value in values.items()}}
    return memoryview(
        b"\x02\0\0\0"
        + b"".join(
            (8).to_bytes(2, "little") + kind.to_bytes(2, "little") + value.to_bytes(4, "little", signed=True)
            for kind, value in attrs.items()
        )
    )


def test_settings(memory: HostMemory) -> None:
    assert _says(memory, 80, _netconf(SIDE.ifindex, rp_filter=1)) is True
    assert _says(memory, 80, _netconf(SIDE.ifindex, rp_filter=0)) is False
    assert _says(memory, 80, _netconf(3, rp_filter=1)) is False
    assert _says(memory, 80, _netconf(3, rp_filter=2, forwarding=0)) is False
    assert _says(memory, 80, _netconf(-1, forwarding=0)) is False
    assert _says(memory, 80, _netconf(-1, rp_filter=0)) is None
    assert _says(memory, 80, _netconf(77, rp_filter=0, forwarding=0)) is None


def test_rules_and_addresses_of_others_are_nobodys_business(memory: HostMemory) -> None:
    for rule, says in ((cold.delete_rule(RULE), False), (cold.delete_rule(RULE)[:-8], None)):
        assert _says(memory, 33, _body(rule)) is says
    ours = _body(cold.add_eni_address(3, ENI))
    other = _body(cold.add_eni_address(3, dataclasses.replace(ENI, address=POD)))
    assert (_says(memory, 21, ours), _says(memory, 21, other)) == (False, None)


def _nft(kind: int, table: bytes, name: bytes = b"") -> Disturbed:
    def attribute(number: int, value: bytes) -> bytes:
        value += b"\0"
        size = 4 + len(value)
        return size.to_bytes(2, "little") + number.to_bytes(2, "little") + value + b"\0" * (-size % 4)

    body = b"\x01\0\0\0" + attribute(1, table) + (attribute(2, name) if name else b"")
    return disturbed_of_table(10 << 8 | kind, memoryview(body))


def test_the_table_the_ports_and_everybody_elses() -> None:
    assert _nft(8, b"enoki", b"source_nat") is Disturbed.TABLE
    assert _nft(2, b"enoki") is Disturbed.TABLE
    assert _nft(14, b"enoki", b"vpc4") is Disturbed.TABLE
    assert _nft(14, b"enoki", b"hostport4") is Disturbed.PORTS
    assert _nft(12, b"enoki", b"cooling") is Disturbed.NOTHING
    assert _nft(8, b"kube-proxy", b"x") is Disturbed.NOTHING
    assert _nft(15, b"enoki") is Disturbed.NOTHING
