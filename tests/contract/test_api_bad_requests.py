"""Hostile input to the routes: each a clear CNI error, never a 5xx, and the agent behind never hears of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.app import create_app
from api.cni_body import MAX_BODY_BYTES
from api.problems import CAUSES
from tests.contract.asgi_client import post
from tests.contract.bad_requests import BAD_REQUESTS, GOOD, BadRequest, body
from tests.contract.openapi_document import problems_with
from tests.contract.scripted_node import ScriptedNode

NODE = ScriptedNode()
APP = create_app(NODE)
VERBS = ("add", "del", "check", "status", "gc")


def refused(raw: bytes, verb: str = "add", *, split_at: int = 0) -> dict[str, Any]:
    """The error object of a request that must be refused."""
    NODE.calls.clear()
    NODE.refusals.clear()
    status, headers, answer = post(APP, f"/v1/cni/{verb}", raw, split_at=split_at)
    assert 400 <= status < 500
    assert headers["content-type"] == "application/json"
    assert NODE.calls == []
    error: dict[str, Any] = json.loads(answer)
    assert not problems_with(error, "CniErrorObject")
    ((call, cause, message),) = NODE.refusals
    assert (call.verb, cause) == (verb.upper(), CAUSES[error["code"]])
    assert error["msg"].startswith(f"{cause}: ")
    assert message.startswith(error["msg"].removeprefix(f"{cause}: "))
    return error


@settings(max_examples=2000, deadline=None)
@given(request=BAD_REQUESTS, split_at=st.integers(0, 400))
def test_a_bad_add_is_refused_with_its_code(request: BadRequest, split_at: int) -> None:
    assert refused(body(request), split_at=split_at)["code"] == request.code


@settings(max_examples=500, deadline=None)
@given(raw=st.binary(max_size=200), verb=st.sampled_from(VERBS))
def test_noise_is_undecodable(raw: bytes, verb: str) -> None:
    assert refused(raw, verb)["code"] == 6


@settings(max_examples=500, deadline=None)
@given(
    value=st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=10)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=10,
    ),
    member=st.sampled_from(sorted(GOOD)),
    verb=st.sampled_from(VERBS),
)
def test_any_json_in_any_member_never_breaks_the_agent(value: Any, member: str, verb: str) -> None:
    status, _, answer = post(APP, f"/v1/cni/{verb}", json.dumps(GOOD | {member: value}).encode())
    assert status < 500
    if status >= 400:
        assert not problems_with(json.loads(answer), "CniErrorObject")


def test_an_oversized_body_is_refused_while_it_arrives() -> None:
    error = refused(b"x" * (MAX_BODY_BYTES + 1), split_at=MAX_BODY_BYTES)
    assert error["code"] == 6
    assert str(MAX_BODY_BYTES) in error["msg"]


def test_the_order_of_members_is_the_callers() -> None:
    """Generated clients write the required member first."""
    rest = {key: value for key, value in GOOD.items() if key != "config"}
    status, _, _ = post(APP, "/v1/cni/add", json.dumps({"config": GOOD["config"]} | rest).encode())
    assert status == 200


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_needs_a_name_and_a_supported_version(verb: str) -> None:
    assert refused(json.dumps(GOOD | {"config": {}}).encode(), verb)["code"] == 7
    config = GOOD["config"] | {"cniVersion": "0.2.0"}
    assert refused(json.dumps(GOOD | {"config": config}).encode(), verb)["code"] == 1


@pytest.mark.parametrize(
    ("verb", "version"),
    [("check", "0.3.1"), ("status", "1.0.0"), ("gc", "1.0.0"), ("gc", "0.3.1")],
)
def test_a_command_the_asked_version_does_not_have(verb: str, version: str) -> None:
    error = refused(json.dumps(GOOD | {"config": GOOD["config"] | {"cniVersion": version}}).encode(), verb)
    assert (error["code"], error["cniVersion"]) == (1, version)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cni.dev/valid-attachments": {}},
        {"cni.dev/valid-attachments": [1]},
        {"cni.dev/valid-attachments": [{"containerID": "c1"}]},
        {"cni.dev/valid-attachments": [{"containerID": "c1", "ifname": 1}]},
        {"cni.dev/valid-attachments": [], "cni.dev/attachments": "x"},
    ],
)
def test_gc_does_not_guess_what_may_go(changes: dict[str, Any]) -> None:
    assert refused(json.dumps(GOOD | {"config": GOOD["config"] | changes}).encode(), "gc")["code"] == 7
