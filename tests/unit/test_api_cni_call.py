"""What a runtime may say, and how it arrives. What it may not say is in the contract tests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from api.cni_body import MAX_DEPTH, Envelope, decode
from api.cni_call import answer_version, parse_args, parse_call
from api.problems import CniError
from api.service import CniCall, Verb

CONFIG: dict[str, Any] = {"cniVersion": "1.1.0", "name": "enoki", "type": "enoki"}
POD = "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=coredns-57ff979f67-qqbdh"


def call(verb: Verb = Verb.ADD, *, args: str = "", netns: str = "/run/netns/x", **config: Any) -> CniCall:
    envelope = Envelope(container_id="c1", netns=netns, ifname="eth0", args=args, config=CONFIG | config)
    return parse_call(verb, envelope, "r1")


def test_what_containerd_sends() -> None:
    seen = call(args=f"IgnoreUnknown=1;{POD};K8S_POD_INFRA_CONTAINER_ID=3f5a;K8S_POD_UID=0b1d-22;FUTURE=x")
    assert (seen.verb, seen.request_id, seen.cni_version, seen.network_name) == (Verb.ADD, "r1", "1.1.0", "enoki")
    assert (seen.container_id, seen.ifname, seen.netns) == ("c1", "eth0", "/run/netns/x")
    assert (seen.pod_namespace, seen.pod_name) == ("kube-system", "coredns-57ff979f67-qqbdh")
    assert (seen.pod_infra_container_id, seen.pod_uid) == ("3f5a", "0b1d-22")


def test_a_caller_without_kubernetes() -> None:
    seen = call()
    assert (seen.pod_namespace, seen.pod_name, seen.pod_uid, seen.pod_infra_container_id) == ("", "", "", "")


@pytest.mark.parametrize("ignore", ["1", "true", "True"])
def test_unknown_arguments_need_leave(ignore: str) -> None:
    assert parse_args(f"FUTURE=x;IgnoreUnknown={ignore}") == {"IgnoreUnknown": ignore}
    with pytest.raises(CniError, match="unknown keys"):
        parse_args("FUTURE=x;IgnoreUnknown=0")


@pytest.mark.parametrize(
    ("namespace", "pod"),
    [("a", "a"), ("a" * 63, "a" * 253), ("x-1", "web.example.com"), ("0", "a-b.c-d")],
)
def test_kubernetes_names_at_their_limits(namespace: str, pod: str) -> None:
    seen = call(args=f"K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod}")
    assert (seen.pod_namespace, seen.pod_name) == (namespace, pod)


@pytest.mark.parametrize(
    ("mtu", "expected"), [(None, None), ("", None), (576, 576), (9001, 9001), ("9001", 9001), ("1500", 1500)]
)
def test_mtu(mtu: object, expected: int | None) -> None:
    assert call(mtu=mtu).mtu == expected


def test_del_needs_only_what_identifies_the_attachment() -> None:
    seen = call(Verb.DEL, args="K8S_POD_NAMESPACE=Bad;K8S_POD_NAME=../x", netns="", mtu="x", prevResult=1)
    assert (seen.container_id, seen.ifname, seen.netns) == ("c1", "eth0", "")
    assert (seen.pod_namespace, seen.pod_name, seen.mtu, seen.prev_result) == ("", "", None, None)


def test_del_still_needs_well_formed_arguments() -> None:
    with pytest.raises(CniError, match="CNI_ARGS") as caught:
        call(Verb.DEL, args="no equals sign")
    assert caught.value.code == 4


def test_the_previous_result() -> None:
    previous = {"cniVersion": "1.1.0", "ips": []}
    assert call(Verb.ADD, prevResult=previous).prev_result is None
    assert call(Verb.DEL, prevResult=previous).prev_result == previous
    assert call(Verb.CHECK, prevResult=previous).prev_result == previous
    with pytest.raises(CniError, match="prevResult") as caught:
        call(Verb.CHECK, prevResult=[])
    assert caught.value.code == 7


@pytest.mark.parametrize("verb", [Verb.STATUS, Verb.GC])
def test_commands_about_no_container_ignore_the_environment(verb: Verb) -> None:
    envelope = Envelope(container_id="/", netns="x", ifname="/", args="x", config=CONFIG)
    seen = parse_call(verb, envelope, "r1")
    assert (seen.container_id, seen.ifname, seen.netns) == ("", "", "")


@pytest.mark.parametrize(
    ("config", "version"),
    [
        ({"cniVersion": "0.3.1"}, "0.3.1"),
        ({}, "1.1.0"),
        ({"cniVersion": "2.0.0"}, "1.1.0"),
        ({"cniVersion": []}, "1.1.0"),
    ],
)
def test_the_version_to_answer_in(config: dict[str, Any], version: str) -> None:
    assert answer_version(config) == version


def test_nesting_up_to_the_limit_and_many_siblings() -> None:
    siblings: dict[str, Any] = {"a": [{}] * (MAX_DEPTH * 3)}
    assert decode(json.dumps({"config": siblings}).encode()).config == siblings
    # The request itself and `config` are two levels.
    deepest = b'{"config":' + b'{"a":' * (MAX_DEPTH - 1) + b"1" + b"}" * (MAX_DEPTH - 1) + b"}"
    assert decode(deepest).config
    deeper = b'{"config":' + b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH + b"}"
    with pytest.raises(CniError, match="deeper"):
        decode(deeper)


def test_escapes_that_are_characters_pass() -> None:
    assert decode(b'{"config":{"a":"\\ud83d\\ude00\\u0041"}}').config == {"a": "\U0001f600A"}
