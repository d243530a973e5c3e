"""The routes around a scripted agent: what it is asked, what the caller reads, and both against openapi.yaml."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from api.problems import CniCode, CniError, Problem
from api.service import NodeService
from tests.contract.asgi_client import Answer, get, post, request
from tests.contract.bad_requests import GOOD
from tests.contract.openapi_document import DOCUMENT, problems_with, problems_with_schema
from tests.contract.scripted_node import WAIT_S, ScriptedNode, running


@pytest.fixture
def node() -> ScriptedNode:
    return ScriptedNode()


def call(node: NodeService, verb: str, **config: Any) -> Answer:
    return post(create_app(node), f"/v1/cni/{verb}", json.dumps(GOOD | {"config": GOOD["config"] | config}).encode())


def documented(method: str, path: str, answer: Answer) -> Any:
    """The decoded body, after the document has agreed with status, content type and schema."""
    status, headers, raw = answer
    response = DOCUMENT["paths"][path][method]["responses"]
    content = response[str(status) if str(status) in response else "default"].get("content")
    if content is None:
        assert raw == b""
        return None
    schema = content[headers["content-type"]]["schema"]
    value = json.loads(raw)
    assert not problems_with_schema(value, schema)
    return value


@pytest.mark.parametrize("version", ["0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_add(node: ScriptedNode, version: str) -> None:
    result = documented("post", "/v1/cni/add", call(node, "add", cniVersion=version))
    assert result["cniVersion"] == version
    assert result["interfaces"][1]["sandbox"] == "/var/run/netns/c1"
    assert node.calls[0].cni_version == version


@pytest.mark.parametrize("verb", ["del", "check", "status"])
def test_success_without_a_result(node: ScriptedNode, verb: str) -> None:
    answer = call(node, verb)
    documented("post", f"/v1/cni/{verb}", answer)
    assert answer[0] == 204
    assert [seen.verb.lower() for seen in node.calls] == [verb]


def test_gc(node: ScriptedNode) -> None:
    valid = [{"containerID": "c1", "ifname": "eth0"}]
    also = [{"containerID": "c2", "ifname": "eth0"}]
    answer = call(node, "gc", **{"cni.dev/valid-attachments": valid, "cni.dev/attachments": also})
    assert answer[0] == 204
    assert node.valid == {("c1", "eth0"), ("c2", "eth0")}


def test_gc_with_null_keeps_nothing(node: ScriptedNode) -> None:
    assert call(node, "gc", **{"cni.dev/valid-attachments": None})[0] == 204
    assert node.valid == frozenset()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (CniCode.TRY_AGAIN_LATER, 503),
        (CniCode.NOT_AVAILABLE, 503),
        (CniCode.LIMITED_CONNECTIVITY, 503),
        (CniCode.CONTAINER_UNKNOWN, 404),
        (CniCode.SUPERSEDED, 409),
        (CniCode.DRIFTED, 409),
        (CniCode.ENVIRONMENT_INVALID, 400),
        (CniCode.INTERNAL, 500),
    ],
)
def test_a_failure_of_the_agent(node: ScriptedNode, code: CniCode, status: int) -> None:
    node.failure = CniError(code, "words", "more words")
    answer = call(node, "add", cniVersion="0.4.0")
    assert answer[0] == status
    body = documented("post", "/v1/cni/add", answer)
    assert body == {"cniVersion": "0.4.0", "code": code, "msg": "words", "details": "more words"}


@pytest.mark.parametrize("verb", ["add", "del", "check", "status"])
def test_a_bug_is_logged_and_told_without_its_words(
    node: ScriptedNode, verb: str, caplog: pytest.LogCaptureFixture
) -> None:
    node.failure = RuntimeError("secret")
    with caplog.at_level(logging.ERROR):
        answer = call(node, verb)
    body = documented("post", f"/v1/cni/{verb}", answer)
    assert (answer[0], body["code"]) == (500, 999)
    assert "secret" not in json.dumps(body)
    assert "secret" in caplog.text


def test_a_path_below_cni_that_does_not_exist_is_a_cni_error(node: ScriptedNode) -> None:
    app = create_app(node)
    for status, headers, raw in (post(app, "/v1/cni/version", b"{}"), get(app, "/v1/cni/add")):
        assert status in {404, 405}
        assert headers["content-type"] == "application/json"
        assert not problems_with(json.loads(raw), "CniErrorObject")


@pytest.mark.parametrize("path", ["/v1/pool", "/v1/enis", "/v1/allocations", "/v1/health", "/v1/startup"])
def test_views(node: ScriptedNode, path: str) -> None:
    answer = get(create_app(node), path)
    assert answer[0] == 200
    assert documented("get", path, answer)


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("", 1),
        ("?namespace=default&pod=web-0", 1),
        ("?namespace=other", 0),
        ("?pod=other", 0),
        ("?address=10.0.1.9", 1),
        ("?address=10.0.1.8", 0),
        ("?address=2001:db8::1", 0),
    ],
)
def test_allocations_are_narrowed(node: ScriptedNode, query: str, count: int) -> None:
    answer = get(create_app(node), f"/v1/allocations{query}")
    assert len(documented("get", "/v1/allocations", answer)) == count


@pytest.mark.parametrize("query", ["address=x", "address=10.0.1.9/32", "nmaespace=default", "pod=" + "a" * 254])
def test_a_bad_parameter_is_a_problem(node: ScriptedNode, query: str) -> None:
    answer = get(create_app(node), f"/v1/allocations?{query}")
    assert answer[0] == 422
    assert documented("get", "/v1/allocations", answer)["detail"]


def test_ill_health_and_an_unfinished_start_are_503(node: ScriptedNode) -> None:
    node.healthy = node.ready = False
    for path in ("/v1/health", "/v1/startup"):
        answer = get(create_app(node), path)
        assert answer[0] == 503
        documented("get", path, answer)


def test_problems(node: ScriptedNode) -> None:
    class Refusing(ScriptedNode):
        def pool(self) -> Any:
            raise Problem(503, "Not ready", "the kernel has not been read", {"cause": "agent_starting"})

    answer = get(create_app(Refusing()), "/v1/pool")
    body = documented("get", "/v1/pool", answer)
    assert (answer[0], body["cause"], body["title"]) == (503, "agent_starting", "Not ready")
    status, headers, raw = get(create_app(node), "/nowhere")
    assert (status, headers["content-type"]) == (404, "application/problem+json")
    assert not problems_with(json.loads(raw), "ProblemView")
    status, headers, _ = post(create_app(node), "/v1/pool", b"")
    assert (status, headers["content-type"], headers["allow"]) == (405, "application/problem+json", "GET")


async def test_a_bug_outside_cni_is_a_problem_and_reaches_the_server(node: ScriptedNode) -> None:
    class Broken(ScriptedNode):
        def pool(self) -> Any:
            raise RuntimeError("secret")

    with pytest.raises(RuntimeError, match="secret"):
        await request(create_app(Broken()), "GET", "/v1/pool")


@pytest.fixture
def held(node: ScriptedNode, tmp_path: Path) -> Iterator[Path]:
    node.hold_adds = True
    with running(node, tmp_path / "agent.sock"):
        yield tmp_path / "agent.sock"


def test_an_add_is_cancelled_when_its_client_goes_away(node: ScriptedNode, held: Path) -> None:
    body = json.dumps(GOOD).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(held))
        client.sendall(b"POST /v1/cni/add HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert node.add_arrived.wait(WAIT_S)
        assert not node.add_cancelled.is_set()
    assert node.add_cancelled.wait(WAIT_S)


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_call(node: ScriptedNode, held: Path) -> None:
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(held))
            client.sendall(b"POST /v1/cni/add HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(held))
        client.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
    assert node.calls == []


@pytest.mark.parametrize("given", ["abc-123", "bad id", "x" * 65, ""])
def test_the_request_id(node: ScriptedNode, tmp_path: Path, given: str) -> None:
    body = json.dumps(GOOD).encode()
    head = f"POST /v1/cni/del HTTP/1.1\r\nHost: x\r\nX-Request-Id: {given}\r\nContent-Length: {len(body)}\r\n\r\n"
    with running(node, tmp_path / "agent.sock"), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "agent.sock"))
        client.sendall(head.encode() + body)
        assert client.recv(65536).startswith(b"HTTP/1.1 204")
    (seen,) = node.calls
    assert seen.request_id == "abc-123" if given == "abc-123" else len(seen.request_id) == 12
