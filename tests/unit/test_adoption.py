"""The AWS plugin's file, its objects as text, and what makes a plan refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from agent.adoption import checkpoint, commands, planning, rollback
from agent.adoption.checkpoint import Allocation, CheckpointInvalid
from agent.adoption.commands import Backend, NatSettings
from agent.adoption.model import Container, Link, Route, Rule, Survey
from agent.ipam.model import Mac

ALLOCATION = Allocation(
    network="aws-cni",
    container_id="c1",
    ifname="eth0",
    address=IPv4Address("10.0.0.21"),
    allocated_ns=17,
    namespace="default",
    pod="sample-pod",
)
VETH = "enicc21c2d7785"
"""The AWS plugin's name for default/sample-pod: SHA-1 of "default.sample-pod" begins so."""

NAT = NatSettings(
    primary_ifname="ens5",
    primary_address=IPv4Address("10.0.0.4"),
    exempt=(IPv4Network("10.0.0.0/16"),),
    veth_prefix="eni",
    external_snat=False,
    node_port_support=True,
    snat_port="prng",
    mark=0x80,
)


def rule(pref: int, *, source: str = "", destination: str = "", table_id: int = 254, mark: int | None = None) -> Rule:
    return Rule(
        pref=pref,
        protocol=0,
        table_id=table_id,
        source=IPv4Network(source) if source else None,
        destination=IPv4Network(destination) if destination else None,
        mark=mark,
        mask=mark,
        plain=True,
        text=f"{pref} {source}{destination}",
    )


def link(ifindex: int, ifname: str, mac: str, *, kind: str = "veth", group: int = 0, alias: str = "") -> Link:
    return Link(ifindex=ifindex, ifname=ifname, mac=Mac(mac), kind=kind, group=group, alias=alias, netns="n")


SURVEY = Survey(
    links=(
        link(2, "ens5", "02:00:00:00:00:01", kind=""),
        link(3, "ens6", "02:00:00:00:00:02", kind=""),
        link(7, VETH, "02:00:00:00:00:07"),
    ),
    rules=(
        rule(512, destination="10.0.0.21/32"),
        rule(1024, mark=0x80),
        rule(1536, source="10.0.0.21/32", table_id=2),
        rule(32765, source="10.0.0.20/32", table_id=2),
    ),
    routes=(Route(table_id=254, destination=IPv4Network("10.0.0.21/32"), gateway=None, ifname=VETH),),
    addresses={"ens5": ((IPv4Address("10.0.0.4"), 24),), "ens6": ((IPv4Address("10.0.0.20"), 24),)},
    containers={VETH: Container(mac=Mac("02:00:00:00:01:07"), addresses=frozenset({IPv4Address("10.0.0.21")}))},
    iptables={Backend.LEGACY: "", Backend.NFT: "*nat\n:AWS-SNAT-CHAIN-0 - [0:0]\nCOMMIT\n"},
    tables=frozenset({"ip aws-cni"}),
    aws_node_running=False,
)


def test_the_file_is_read_and_written_as_the_aws_plugin_does() -> None:
    text = checkpoint.render([ALLOCATION])
    assert checkpoint.parse(text) == (ALLOCATION,)
    assert text.endswith("}\n")
    assert json.loads(text)["allocations"][0] == {
        "networkName": "aws-cni",
        "containerID": "c1",
        "ifName": "eth0",
        "ipv4": "10.0.0.21",
        "allocationTimestamp": 17,
        "metadata": {"k8sPodNamespace": "default", "k8sPodName": "sample-pod"},
    }


def test_an_eni_without_a_rule_is_known_by_its_table() -> None:
    """Version 1.15.5 makes no rule 32765: `default via 10.0.0.1 dev ens6` in table 2 is all there is."""
    way = Route(table_id=2, destination=IPv4Network("0.0.0.0/0"), gateway=IPv4Address("10.0.0.1"), ifname="ens6")
    rules = tuple(one for one in SURVEY.rules if one.pref != 32765)
    by_rule = planning.plan_adoption([ALLOCATION], SURVEY, NAT)
    by_table = planning.plan_adoption([ALLOCATION], replace(SURVEY, rules=rules, routes=(*SURVEY.routes, way)), NAT)
    both = planning.plan_adoption([ALLOCATION], replace(SURVEY, routes=(*SURVEY.routes, way)), NAT)
    assert by_table.refusals == ()
    assert by_table.enis == both.enis == by_rule.enis
    assert by_table.pods == by_rule.pods
    assert "32765" not in "".join(step.feed for step in by_table.remove)
    two = {**SURVEY.addresses, "ens6": (*SURVEY.addresses["ens6"], (IPv4Address("10.0.0.99"), 24))}
    doubted = replace(SURVEY, rules=rules, routes=(*SURVEY.routes, way), addresses=two)
    assert "ens6, which has 2 addresses" in planning.plan_adoption([ALLOCATION], doubted, NAT).refusals[0]


def test_what_the_file_counts_of_a_pod_s_interfaces_is_kept() -> None:
    """Version 1.23.2 writes `interfacesCount`, 1.15 does not: a file goes back as it came, with the pods made since."""
    (pod,) = planning.plan_adoption([ALLOCATION], SURVEY, NAT).pods
    since = replace(pod, container_id="c2", address=IPv4Address("10.0.0.22"))
    for count in (0, 1):
        old = replace(ALLOCATION, interface_count=count)
        assert checkpoint.parse(checkpoint.render([old])) == (old,)
        made = rollback.allocations_of([pod, since], [old], now_ns=99)
        assert [each.interface_count for each in made] == [count, count]
        assert made[0] == old


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not JSON"),
        ("[]", "version is 'list'"),
        ('{"version":"vpc-cni-ipam/2","allocations":[]}', "'vpc-cni-ipam/2'; only 'vpc-cni-ipam/1'"),
        ('{"version":"vpc-cni-ipam/1"}', "no list of allocations"),
        ('{"version":"vpc-cni-ipam/1","allocations":[7]}', "allocation 0 is not an object"),
        ('{"version":"vpc-cni-ipam/1","allocations":[{"ipv6":"2001:db8::1"}]}', "2001:db8::1"),
        ('{"version":"vpc-cni-ipam/1","allocations":[{"metadata":{"interfacesCount":2}}]}', "2 interfaces"),
        (checkpoint.render([replace(ALLOCATION, pod="")]), "no k8sPodName"),
        (checkpoint.render([ALLOCATION]).replace("10.0.0.21", "10.0.0.999"), "10.0.0.999"),
    ],
)
def test_a_file_that_is_not_wholly_understood_is_refused(text: str, why: str) -> None:
    with pytest.raises(CheckpointInvalid, match=why.replace("[", r"\[")):
        checkpoint.parse(text)


def test_a_plan_adds_ours_and_then_removes_theirs_marks_first() -> None:
    plan = planning.plan_adoption([ALLOCATION], SURVEY, NAT)
    assert plan.refusals == ()
    (pods,) = plan.add
    assert f'link set dev {VETH} group 20002 alias "enoki c1 eth0 default/sample-pod"' in pods.feed
    assert f"route replace 10.0.0.21/32 dev {VETH} scope link table 20512 proto 205" in pods.feed
    assert [step.program[0] for step in plan.remove] == ["nft", "iptables-nft-restore", "ip"]
    assert plan.remove[-1].feed.splitlines() == [
        "rule del pref 1024 fwmark 0x80/0x80 lookup 254 protocol 0",
        "rule del pref 32765 from 10.0.0.20 lookup 2 protocol 0",
        "rule del pref 512 to 10.0.0.21 lookup 254",
        "rule del pref 1536 from 10.0.0.21 lookup 2",
        f"route del 10.0.0.21/32 dev {VETH} table 254",
    ]


@pytest.mark.parametrize(
    ("allocations", "survey", "why"),
    [
        ([ALLOCATION, ALLOCATION], SURVEY, "the address 10.0.0.21 2 times"),
        ([], SURVEY, f"{VETH} has no address in the file"),
        ([replace(ALLOCATION, pod="other")], SURVEY, "no host veth"),
        ([ALLOCATION], replace(SURVEY, aws_node_running=True), "aws-node still runs"),
        ([ALLOCATION], replace(SURVEY, containers={}), "is not in /run/netns"),
        ([ALLOCATION], replace(SURVEY, routes=()), "table main leads it to nothing"),
        ([ALLOCATION], replace(SURVEY, rules=SURVEY.rules[1:]), "no rule 512 to it"),
        ([ALLOCATION], replace(SURVEY, rules=SURVEY.rules[:3]), "no ENI's"),
        ([ALLOCATION], replace(SURVEY, iptables={}), "AWS_VPC_K8S_CNI_EXTERNALSNAT"),
        ([ALLOCATION], replace(SURVEY, rules=(*SURVEY.rules, rule(20, table_id=255))), "security groups for pods"),
        ([ALLOCATION], replace(SURVEY, rules=(*SURVEY.rules, rule(700, mark=0x42))), "rule is in the way"),
        ([ALLOCATION], replace(SURVEY, rules=(*SURVEY.rules, rule(512, destination="10.0.0.0/24"))), "in the way"),
        (
            [ALLOCATION],
            replace(SURVEY, rules=(*SURVEY.rules, rule(32765, source="10.0.0.4/32", table_id=10101))),
            "network cards above 0",
        ),
    ],
)
def test_every_doubt_has_its_reason(allocations: list[Allocation], survey: Survey, why: str) -> None:
    plan = planning.plan_adoption(allocations, survey, NAT)
    assert any(why in each for each in plan.refusals), plan.refusals
    assert (plan.add, plan.remove) == ((), ())


def test_what_was_begun_is_taken_up_where_it_stopped() -> None:
    """Killed after everything of theirs but the connmark table was removed."""
    begun = replace(
        SURVEY,
        links=(*SURVEY.links[:2], replace(SURVEY.links[2], group=20002, alias="enoki c1 eth0 default/sample-pod")),
        rules=(SURVEY.rules[1], SURVEY.rules[3]),
        routes=(Route(table_id=20512, destination=IPv4Network("10.0.0.21/32"), gateway=None, ifname=VETH),),
        iptables={},
        tables=frozenset({"inet enoki", "ip aws-cni"}),
    )
    plan = planning.plan_adoption([ALLOCATION], begun, NAT)
    assert plan.refusals == ()
    assert plan.pods[0].table_id == 2
    assert [step.program[0] for step in plan.remove] == ["nft", "ip"]
    assert "512" not in plan.remove[-1].feed


def test_removal_names_their_chains_and_rules_and_nothing_else() -> None:
    foreign = '-A PREROUTING -j KUBE-SERVICES\n-A PREROUTING -m comment --comment "AWS is not all" -j ACCEPT\n'
    for backend in Backend:
        installed = commands.installation(NAT, backend)
        saved = installed.replace("*nat\n", f"*nat\n{foreign}")
        removal = commands.removal(saved)
        assert "KUBE" not in removal
        assert "AWS is not all" not in removal
        assert removal.count("-D POSTROUTING") == 1
        assert removal.count("-X AWS-SNAT-CHAIN-0") == 1
        assert removal.count("-D PREROUTING") == (5 if backend is Backend.LEGACY else 3)
    assert commands.removal(f"*nat\n{foreign}COMMIT\n") == ""


def test_what_is_replaced_is_one_transaction_for_each_table() -> None:
    for backend in Backend:
        installed = commands.installation(NAT, backend)
        text = commands.replacement(installed, NAT, backend)
        assert text.count("COMMIT") == installed.count("COMMIT") == 2
        assert "-X" not in text
        assert text.count("-A ") == text.count("-D ") + text.count("-A AWS-")
    # A chain of an older version, or of the other back end, goes.
    assert "-X AWS-CONNMARK-CHAIN-0" in commands.replacement(
        commands.installation(NAT, Backend.LEGACY), NAT, Backend.NFT
    )


def test_ours_of_two_equal_rules_outlives_theirs() -> None:
    ours = Rule(
        pref=1024, protocol=205, table_id=254, source=None, destination=None, mark=0x80, mask=0x80, plain=True, text=""
    )
    theirs = replace(ours, protocol=0)
    for order, moved in (((theirs, ours), False), ((ours, theirs), True)):
        survey = replace(SURVEY, rules=(*(rule for rule in SURVEY.rules if rule.pref != 1024), *order))
        lines = planning.plan_adoption([ALLOCATION], survey, NAT).remove[-1].feed.splitlines()
        about = [line for line in lines if " 1024 " in line]
        selector = "fwmark 0x80/0x80 lookup 254"
        move = [f"rule {what} pref 1024 {selector} protocol 205" for what in ("del", "add")] if moved else []
        assert about == [*move, f"rule del pref 1024 {selector} protocol 0"]


def test_external_snat_and_no_node_ports_leave_nothing_to_install() -> None:
    bare = replace(NAT, external_snat=True, node_port_support=False)
    assert commands.installation(bare, Backend.LEGACY) == ""


def test_the_file_given_back_keeps_what_the_kernel_does_not_know() -> None:
    plan = planning.plan_adoption([ALLOCATION], SURVEY, NAT)
    assert rollback.allocations_of(plan.pods, [ALLOCATION], now_ns=99) == (ALLOCATION,)
    assert rollback.allocations_of(plan.pods, [], now_ns=99) == (replace(ALLOCATION, allocated_ns=99),)
