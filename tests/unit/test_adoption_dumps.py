"""Nodes as versions of the AWS plugin itself left them, in `aws_node/`: what `ip`, `iptables-save` and `nft` showed.

Each file says whose it is. `tests/system/test_aws_plugin.py` runs those versions; this needs nothing of them.
"""

from __future__ import annotations

import json
from collections import Counter
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from agent.adoption import checkpoint, commands, planning, survey
from agent.adoption.commands import Backend, NatSettings
from agent.adoption.model import Container, Link, Survey
from agent.ipam.model import Mac

DUMPS = sorted((Path(__file__).parent / "aws_node").glob("*.json"))
POD_COUNT = 5


@pytest.fixture(params=DUMPS, ids=lambda path: path.stem)
def dump(request: pytest.FixtureRequest) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(request.param.read_text())
    return read


def surveyed(dump: dict[str, Any]) -> Survey:
    return Survey(
        links=tuple(Link(**{**each, "mac": Mac(each["mac"])}) for each in dump["links"]),
        rules=tuple(map(survey._rule, dump["rules"])),
        routes=tuple(route for each in dump["routes"] if (route := survey._route(each)) is not None),
        addresses={
            name: tuple((IPv4Address(address), bits) for address, bits in owned)
            for name, owned in dump["addresses"].items()
        },
        containers={
            name: Container(mac=Mac(one["mac"]), addresses=frozenset(map(IPv4Address, one["addresses"])))
            for name, one in dump["containers"].items()
        },
        iptables={command: "\n".join(dump["iptables"][command]) for command in Backend},
        tables=frozenset(dump["tables"]),
        aws_node_running=False,
    )


def nat(dump: dict[str, Any]) -> NatSettings:
    return NatSettings(
        primary_ifname="ens5",
        primary_address=IPv4Address(dump["primary_address"]),
        exempt=(IPv4Network("10.0.0.0/16"),),
        veth_prefix="eni",
        external_snat=False,
        node_port_support=True,
        snat_port="prng",
        mark=0x80,
    )


def test_there_are_dumps_of_every_version_we_say_we_have_seen() -> None:
    versions = {path.stem.partition("-")[0] for path in DUMPS}
    assert versions == {"v1.15.5", "v1.20.4", "v1.23.2"}
    assert len(DUMPS) == 2 * len(versions)


def test_the_file_is_rendered_as_it_was_read(dump: dict[str, Any]) -> None:
    assert checkpoint.render(checkpoint.parse(dump["checkpoint"])) == dump["checkpoint"]


def test_the_node_is_understood_wholly(dump: dict[str, Any]) -> None:
    plan = planning.plan_adoption(checkpoint.parse(dump["checkpoint"]), surveyed(dump), nat(dump))
    assert plan.refusals == ()
    assert [(eni.ifname, eni.table_id) for eni in plan.enis] == [("ens6", 2)]
    assert Counter(pod.table_id for pod in plan.pods) == {254: 3, 2: 2}
    assert {f"{pod.namespace}/{pod.pod}" for pod in plan.pods} == {f"default/p{n}" for n in range(POD_COUNT)}


def test_nothing_of_theirs_stays(dump: dict[str, Any]) -> None:
    """Every rule and chain of theirs is named by what removes it, and every rule of a pod."""
    plan = planning.plan_adoption(checkpoint.parse(dump["checkpoint"]), surveyed(dump), nat(dump))
    removed = "".join(step.feed for step in plan.remove)
    for line in (line for lines in dump["iptables"].values() for line in lines if "AWS" in line):
        chain = line.split()[0 if line.startswith(":") else 1].removeprefix(":")
        assert f"-D{line[2:]}" in removed or f"-X {chain}" in removed, line
    for each in dump["rules"]:
        if each["priority"] == 512:
            assert f"rule del pref 512 to {each['dst']} " in removed
        if each["priority"] == 1536:
            assert f"rule del pref 1536 from {each['src']} " in removed
    assert ("delete table ip aws-cni" in removed) == ("ip aws-cni" in dump["tables"])


@pytest.mark.parametrize("dumped", [path for path in DUMPS if path.stem.startswith("v1.23")], ids=lambda p: p.stem)
def test_what_comes_back_is_what_the_newest_writes(dumped: Path) -> None:
    """Line by line, as `iptables-save` shows it."""
    dump = json.loads(dumped.read_text())
    backend = Backend.LEGACY if dumped.stem.endswith("legacy") else Backend.NFT
    theirs = {line for line in dump["iptables"][backend] if line.startswith("-A") and "AWS" in line}
    ours = {line for line in commands.installation(nat(dump), backend).splitlines() if line.startswith("-A")}
    assert ours == theirs
    if backend is Backend.NFT:
        shown = commands.connmark_table(nat(dump)).replace("priority -90", "priority dstnat + 10")
        assert words(shown.replace("0x80", "0x00000080").splitlines()) == words(dump["connmark"])


def words(lines: list[str]) -> set[str]:
    return {" ".join(line.split()) for line in lines if line.strip()}
