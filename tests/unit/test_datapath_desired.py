"""Names, MACs, aliases, tables and rules: the pure side of the datapath."""

from __future__ import annotations

import dataclasses
from ipaddress import IPv4Address, IPv4Network

import pytest

from agent.datapath import layout
from agent.datapath.desired import (
    RuleSpec,
    alias_of,
    change_rules,
    describe_wiring,
    eni_table_id,
    holder_of,
    host_veth_name,
    mac_of,
    mark_index,
    node_rules,
    plan_eni,
    plan_pod,
)
from agent.datapath.names import install_names
from agent.datapath.policy import DatapathPolicy
from agent.errors import KernelFailed
from agent.ipam.model import AttachmentKey, Eni, EniId, Holder, Mac, SubnetId
from agent.ports.datapath import PodWiring

KEY = AttachmentKey(container_id="c" * 64, ifname="eth0")
HOLDER = Holder(key=KEY, namespace="default", pod="web-0")


def _eni(*, card: int, device: int) -> Eni:
    return Eni(
        eni_id=EniId("eni-0123456789abcdef0"),
        mac=Mac("02:00:00:00:00:01"),
        card=card,
        device=device,
        subnet_id=SubnetId("subnet-0123456789abcdef0"),
        subnet_cidr=IPv4Network("10.1.32.0/20"),
        primary_address=IPv4Address("10.1.40.7"),
        blocks=(),
        attachment_id="eni-attach-1",
        security_groups=(),
        delete_on_termination=True,
    )


@pytest.mark.parametrize(
    ("namespace", "pod", "digest"),
    [
        ("kube-system", "coredns-57ff979f67-qqbdh", "b5faff8a083"),
        ("kube-system", "coredns-57ff979f67-8ns9b", "9571956a6cc"),
        ("default", "sample-pod", "cc21c2d7785"),
    ],
)
def test_a_named_pods_veth_is_named_as_the_aws_plugin_names_it(namespace: str, pod: str, digest: str) -> None:
    holder = Holder(key=KEY, namespace=namespace, pod=pod)
    assert host_veth_name(holder, "eni") == f"eni{digest}"
    assert len(host_veth_name(holder, "abcd")) == 15


def test_every_other_interface_has_a_name_of_its_own() -> None:
    second = dataclasses.replace(HOLDER, key=dataclasses.replace(KEY, ifname="net1"))
    unnamed = Holder(key=KEY, namespace="", pod="")
    other = Holder(key=dataclasses.replace(KEY, container_id="d" * 64), namespace="", pod="")
    names = {host_veth_name(holder, "eni") for holder in (HOLDER, second, unnamed, other)}
    assert len(names) == 4


def test_macs_are_stable_local_unicast_and_differ_by_side_and_attachment() -> None:
    macs = {mac_of(KEY, "host"), mac_of(KEY, "pod"), mac_of(dataclasses.replace(KEY, ifname="net1"), "pod")}
    assert len(macs) == 3
    for mac in macs:
        assert int(mac[:2], 16) & 3 == 2
        assert len(mac) == 17
    # Neighbour tables of live pods hold such values: an upgrade may not change them.
    assert mac_of(AttachmentKey(container_id="a", ifname="eth0"), "pod") == "0e:4a:49:1b:d7:2a"


@pytest.mark.parametrize("holder", [HOLDER, Holder(key=KEY, namespace="", pod="")], ids=["named", "unnamed"])
def test_an_alias_reads_back_as_its_holder(holder: Holder) -> None:
    assert holder_of(alias_of(holder)) == holder


def test_a_long_alias_is_cut_and_keeps_the_key() -> None:
    long = Holder(key=KEY, namespace="n" * 63, pod="p" * 253)
    assert len(alias_of(long).encode()) == 255
    seen = holder_of(alias_of(long))
    assert seen is not None
    assert (seen.key, seen.namespace) == (KEY, long.namespace)
    assert long.pod.startswith(seen.pod)


@pytest.mark.parametrize("alias", ["", "enoki", "enoki x", "other c eth0 a/b", "enoki c eth0 a/b c", "enoki  eth0 a/b"])
def test_a_foreign_alias_has_no_holder(alias: str) -> None:
    assert holder_of(alias) is None


def test_a_pod_plan_agrees_with_what_is_reported() -> None:
    policy = DatapathPolicy(veth_prefix="pod")
    wiring = PodWiring(holder=HOLDER, netns="/run/netns/x", addresses=(IPv4Address("10.0.0.9"),), table_id=3, mtu=1500)
    plan, wired = plan_pod(wiring, policy), describe_wiring(wiring, policy)
    assert (plan.host_ifname, plan.host_mac, plan.pod_mac) == (wired.host_ifname, wired.host_mac, wired.pod_mac)
    assert plan.group == 20003
    assert plan_pod(dataclasses.replace(wiring, table_id=254), policy).group == 20000


@pytest.mark.parametrize(
    ("card", "device", "table_id"), [(0, 0, 254), (0, 1, 2), (0, 14, 15), (1, 1, 10101), (2, 3, 10203), (1, 0, 10100)]
)
def test_table_numbers_are_the_aws_plugins(card: int, device: int, table_id: int) -> None:
    assert eni_table_id(_eni(card=card, device=device)) == table_id


@pytest.mark.parametrize("table_id", [0, 1, 64, 10101])
def test_a_table_that_does_not_fit_the_mark_is_refused(table_id: int) -> None:
    with pytest.raises(KernelFailed):
        mark_index(table_id)


def test_an_eni_plan_has_the_first_host_as_gateway_and_two_rules() -> None:
    plan = plan_eni(_eni(card=0, device=2))
    assert (plan.gateway, plan.prefix_length, plan.index) == (IPv4Address("10.1.32.1"), 20, 3)
    assert plan.rules == (
        RuleSpec(pref=1536, table_id=3, mark=3, mark_mask=0x3F),
        RuleSpec(pref=32765, table_id=3, source=IPv4Address("10.1.40.7")),
    )


def test_node_rules_add_ipv6_only_where_the_kernel_has_it() -> None:
    assert [(rule.family, rule.pref) for rule in node_rules(DatapathPolicy(), ipv6=False)] == [(2, 512), (2, 1024)]
    assert [(rule.family, rule.pref) for rule in node_rules(DatapathPolicy(), ipv6=True)] == [
        (2, 512),
        (2, 1024),
        (10, 512),
    ]


def test_rule_changes_leave_what_is_right_alone() -> None:
    kept, stale, fresh = (RuleSpec(pref=pref, table_id=2) for pref in (1, 2, 3))
    changes = change_rules([kept, fresh], [stale, kept])
    assert (changes.add, changes.delete) == ((fresh,), (stale,))


def test_groups_and_marks_do_not_overlap() -> None:
    assert layout.LEAVING_GROUP not in layout.POD_GROUPS
    assert not layout.MARK_ENI_MASK & layout.MARK_PRIMARY
    assert (layout.MARK_ENI_MASK | layout.MARK_PRIMARY) <= 0xFF
    assert layout.HOST_IFINDEXES.stop + layout.POD_IFINDEX_OFFSET < 2**31


@pytest.mark.parametrize("fields", [{"veth_prefix": "toolong"}, {"veth_prefix": "eth"}, {"veth_prefix": "a/b"}])
def test_a_bad_prefix_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="prefix"):
        DatapathPolicy(veth_prefix=fields["veth_prefix"])


@pytest.mark.parametrize("mtu", [575, 9002])
def test_a_bad_mtu_is_refused(mtu: int) -> None:
    with pytest.raises(ValueError, match="MTU"):
        DatapathPolicy(eni_mtu=mtu)


def test_names_that_cannot_be_written_are_no_failure(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("etc")
    assert install_names(directory / "made" / "as needed")
    blocked = directory / "blocked"
    blocked.write_text("a file where a directory should be")
    assert not install_names(blocked)
