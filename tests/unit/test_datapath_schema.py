"""The nftables table as text."""

from __future__ import annotations

import dataclasses
import math
import re
from ipaddress import IPv4Address, IPv4Network

import pytest

from agent.datapath import schema
from agent.datapath.policy import DatapathPolicy, SnatPort
from agent.ports.datapath import CoolingSeen

NODE = IPv4Address("10.0.0.10")
VPC = (IPv4Network("10.0.0.0/16"), IPv4Network("100.64.0.0/16"))
DEFAULT = DatapathPolicy()


def _schema(policy: DatapathPolicy = DEFAULT, ifname: str = "ens5") -> str:
    return schema.schema(ifname, NODE, policy)


def test_the_hash_changes_with_everything_that_is_in_the_text() -> None:
    texts = [
        _schema(),
        _schema(ifname="eth0"),
        schema.schema("ens5", IPv4Address("10.0.0.11"), DEFAULT),
        _schema(DatapathPolicy(external_snat=True)),
        _schema(DatapathPolicy(randomize_snat=SnatPort.KEPT)),
        _schema(DatapathPolicy(exclude_snat_cidrs=(IPv4Network("172.16.0.0/12"),))),
    ]
    assert len({schema.schema_hash(text) for text in texts}) == len(texts)
    assert schema.schema_hash(_schema()) == schema.schema_hash(_schema(dataclasses.replace(DEFAULT, eni_mtu=1500)))


@pytest.mark.parametrize(
    ("port", "ending"), [(SnatPort.FULLY_RANDOM, " fully-random "), (SnatPort.HASHED, " random "), (SnatPort.KEPT, " ")]
)
def test_the_source_port_policy_is_one_word(port: SnatPort, ending: str) -> None:
    lines = _schema(DatapathPolicy(randomize_snat=port)).splitlines()
    (rule,) = (line for line in lines if "leaves the VPC as the node" in line)
    assert f"snat ip to {NODE}{ending}comment" in rule


def test_external_snat_translates_nothing_and_still_answers_by_the_way_in() -> None:
    text = _schema(DatapathPolicy(external_snat=True))
    assert "leaves the VPC" not in text
    assert "chain classify" not in text
    assert "reply goes back through the primary ENI" in text


def test_marks_are_never_assigned_whole() -> None:
    text = _schema() + schema.add_eni(5)
    assignments = re.findall(r"(?:ct|meta) mark set (\S+ \S+ \S) (\S+)", text)
    assert len(assignments) == 5
    for expression, operand in assignments:
        assert expression in ("meta mark |", "ct mark |", "meta mark &"), expression
        assert operand in ("0x80", "0xffffffc0")


def test_an_installation_is_one_transaction_that_carries_what_varied() -> None:
    cooling = (
        CoolingSeen(address=IPv4Address("10.0.0.40"), remaining_s=12.34),
        CoolingSeen(address=IPv4Address("10.0.0.41"), remaining_s=math.inf),
    )
    text = schema.install(_schema(), VPC, cooling, [2, 3])
    commands = text.splitlines()
    assert commands[:2] == ["add table inet enoki", "delete table inet enoki"]
    assert "add element inet enoki vpc4 { 10.0.0.0/16, 100.64.0.0/16 }" in commands
    assert "add element inet enoki cooling { 10.0.0.40 timeout 12340ms }" in commands
    assert "add element inet enoki eni_by_group { 20003 : jump eni_3 }" in commands
    assert "10.0.0.41" not in text


def test_the_hash_and_the_chains_are_read_back_from_a_listing() -> None:
    listing = (
        'table inet enoki {\n\tcomment "enoki schema 0123456789abcdef"\n\tchain eni_2 {\n\t\tmeta mark set 1\n\t}\n'
        "\tchain eni_12 {\n\t}\n\tchain enigma_3 {\n\t\ttype filter hook input priority 0;\n\t\taccept\n\t}\n}\n"
    )
    assert schema.parse_table(listing) == schema.TableSeen(
        schema_hash="0123456789abcdef", eni_indexes=frozenset({2, 12}), rule_counts={"enigma_3": 1}
    )
    foreign = schema.parse_table('table inet enoki {\n\tcomment "mine"\n}\n')
    assert foreign == schema.TableSeen(schema_hash="", eni_indexes=frozenset(), rule_counts={})


def test_without_node_ports_and_source_nat_no_connection_is_marked() -> None:
    text = _schema(DatapathPolicy(external_snat=True, node_port_support=False))
    assert "ct mark" not in text
    assert "came in" not in _schema(DatapathPolicy(node_port_support=False))
    assert "reply goes back" in _schema(DatapathPolicy(node_port_support=False))


def test_the_mark_of_the_primary_eni_can_be_another() -> None:
    text = _schema(DatapathPolicy(primary_mark=0x10000))
    assert "0x80" not in text
    assert "ct mark set ct mark | 0x10000" in text
    for mark in (0, 0x40, 0x81, 1 << 32):
        with pytest.raises(ValueError, match="mark"):
            DatapathPolicy(primary_mark=mark)
