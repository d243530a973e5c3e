"""The operators' routes around a scripted node, the stream of events, and who may do what, on live sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.events.journal import Journal
from agent.events.model import Kind
from agent.runtime.connection import HEAD_DEADLINE_S, MAX_HEAD_BYTES
from api.app import create_app
from api.door import BURST, MAX_BODY_BYTES, PEER, READ_ONLY, Door
from api.event_routes import MAX_STREAM_COUNT
from tests.contract.asgi_client import get, request
from tests.contract.scripted_node import WAIT_S, ScriptedNode, running
from tests.contract.test_api_routes import documented

PATHS = {
    "/v1/pool/plan": "",
    "/v1/config": "",
    "/v1/budget": "",
    "/v1/explain/node": "",
    "/v1/trace": "?namespace=default&pod=web-0&to=203.0.113.5",
    "/v1/history": "?address=10.0.1.9",
    "/v1/logs": "?namespace=default&pod=web-0&limit=5",
    "/v1/log-level": "",
}


@pytest.fixture
def node() -> ScriptedNode:
    return ScriptedNode()


@pytest.fixture
def path(node: ScriptedNode, tmp_path: Path) -> Iterator[Path]:
    with running(node, tmp_path / "agent.sock"):
        yield tmp_path / "agent.sock"


@pytest.mark.parametrize("route", PATHS)
def test_views(node: ScriptedNode, route: str) -> None:
    answer = get(create_app(node), route + PATHS[route])
    assert answer[0] == 200
    assert documented("get", route, answer)


@pytest.mark.parametrize(("pod", "status"), [("web-0", 200), ("web-1", 200), ("nobody", 404), ("-x", 422), ("A", 422)])
def test_explain_a_pod(node: ScriptedNode, pod: str, status: int) -> None:
    answer = get(create_app(node), f"/v1/explain/pods/default/{pod}")
    assert answer[0] == status
    assert documented("get", "/v1/explain/pods/{namespace}/{pod}", answer)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/trace?namespace=default&pod=web-0",
        "/v1/trace?namespace=default&pod=web-0&to=example.com",
        "/v1/trace?namespace=default&pod=../web-0&to=10.0.0.1",
        "/v1/history",
        "/v1/history?address=10.0.0.256",
        "/v1/logs?limit=0",
        "/v1/logs?request_id=a%0Ab",
        "/v1/events?after=-1",
    ],
)
def test_a_bad_parameter_is_a_problem(node: ScriptedNode, target: str) -> None:
    status, headers, raw = get(create_app(node), target)
    assert (status, headers["content-type"]) == (422, "application/problem+json")
    assert json.loads(raw)["detail"]


def test_metrics(node: ScriptedNode) -> None:
    status, headers, raw = get(create_app(node), "/metrics")
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b"enoki_ready 1.0" in raw


# ---- the stream


def fill(journal: Journal, count: int) -> list[int]:
    for number in range(count):
        journal.publish(Kind.ENI, eni=f"eni-{number}", change="seen")
    return [event.id for event in journal.events()]


def ids(text: str) -> list[int]:
    return [int(line.removeprefix("id: ")) for line in text.splitlines() if line.startswith("id: ")]


async def _get(node: ScriptedNode, target: str, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
    transport = httpx.ASGITransport(create_app(node))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        answer = await client.get(target, headers=headers)
        return answer.status_code, dict(answer.headers), answer.content


async def test_events_resume_where_a_reader_left(node: ScriptedNode) -> None:
    known_ids = fill(node.journal, 5)
    for headers, query, wanted in [
        ({}, "&after=0", known_ids),
        ({}, f"&after={known_ids[2]}", known_ids[3:]),
        ({"last-event-id": str(known_ids[3])}, "&after=0", known_ids[4:]),
        ({"last-event-id": "nonsense"}, "&after=0", known_ids),
        ({}, "", []),
    ]:
        status, answered, raw = await _get(node, f"/v1/events?follow=false{query}", headers)
        assert (status, ids(raw.decode())) == (200, wanted)
        assert answered["content-type"].startswith("text/event-stream")
        assert b"event: missed" not in raw


async def test_a_reader_that_was_away_too_long_is_told(node: ScriptedNode) -> None:
    first = fill(node.journal, 1)[0]
    kept = fill(node.journal, 100)  # the journal holds 64
    _, _, raw = await _get(node, f"/v1/events?follow=false&after={first}", {})
    assert raw.decode().startswith(f': enoki\n\nevent: missed\ndata: {{"after":{first}}}\n\n')
    assert ids(raw.decode()) == kept


def test_slow_readers_cost_nothing_and_are_bounded(node: ScriptedNode, path: Path) -> None:
    """Readers that never read: the journal goes on, the others are served, and one too many is refused."""
    asked = b"GET /v1/events?after=0 HTTP/1.1\r\nHost: x\r\n\r\n"
    readers = [socket.socket(socket.AF_UNIX) for _ in range(MAX_STREAM_COUNT)]
    try:
        for reader in readers:
            reader.settimeout(WAIT_S)
            reader.connect(str(path))
            reader.sendall(asked)
            assert reader.recv(15) == b"HTTP/1.1 200 OK"
        with closing(httpx.Client(transport=httpx.HTTPTransport(uds=str(path)))) as client:
            refused = client.get("http://localhost/v1/events")
            assert (refused.status_code, refused.json()["title"]) == (503, "Too many readers")
            assert client.get("http://localhost/v1/health").status_code == 200
    finally:
        for reader in readers:
            reader.close()


# ---- who may do what


def refused(scope: dict[str, Any], method: str = "PUT", path: str = "/v1/log-level") -> int:
    """The status of a request that came with these scope keys."""
    return asyncio.run(_through_the_door(Door(_never), scope, method, path))


async def _through_the_door(door: Door, extra: dict[str, Any], method: str, path: str) -> int:
    seen: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    scope = {"type": "http", "method": method, "path": path, "headers": [], **extra}
    await door(scope, receive, send)
    return seen[0]


async def _never(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


ROOT = {PEER: (1, 0, 0), READ_ONLY: False}
USER = {PEER: (1, 1000, 1000), READ_ONLY: False}


@pytest.mark.parametrize(
    ("scope", "method", "status"),
    [
        (ROOT, "PUT", 200),
        (ROOT, "GET", 200),
        (ROOT | {READ_ONLY: True}, "PUT", 403),
        (ROOT | {READ_ONLY: True}, "GET", 200),
        (USER, "GET", 200),
        (USER, "PUT", 403),
        (USER, "POST", 403),
        (USER, "DELETE", 403),
        (USER, "BREW", 403),
        ({}, "PUT", 403),
        (ROOT | {"headers": [(b"content-length", b"%d" % (MAX_BODY_BYTES + 1))]}, "PUT", 413),
    ],
)
def test_the_door(scope: dict[str, Any], method: str, status: int) -> None:
    assert refused(scope, method) == status


def test_headers_do_not_make_root() -> None:
    said = [(b"x-forwarded-for", b"127.0.0.1"), (b"x-remote-user", b"root"), (b"authorization", b"Basic cm9vdDo=")]
    assert refused(USER | {"headers": said}) == 403


def test_a_user_who_asks_too_often_is_slowed_down_and_root_is_not() -> None:
    async def ask_often(scope: dict[str, Any], now_s: list[float]) -> list[int]:
        door = Door(_never, clock=lambda: now_s[0])
        first = [await _through_the_door(door, scope, "GET", "/v1/pool") for _ in range(int(BURST) + 5)]
        now_s[0] += 1.0
        return [*first, await _through_the_door(door, scope, "GET", "/v1/pool")]

    statuses = asyncio.run(ask_often(USER, [0.0]))
    assert statuses == [200] * int(BURST) + [429] * 5 + [200]
    assert set(asyncio.run(ask_often(ROOT, [0.0]))) == {200}


async def test_a_body_without_a_length_is_cut(node: ScriptedNode) -> None:
    body = b'{"level":"' + b"x" * MAX_BODY_BYTES
    status, headers, _ = await request(create_app(node), "PUT", "/v1/log-level", body, split_at=100)
    assert (status, headers["content-type"]) == (413, "application/problem+json")


def test_the_log_level(node: ScriptedNode, path: Path) -> None:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost") as client:
        answer = client.put("/v1/log-level", json={"level": "debug"})
        assert (answer.status_code, answer.json(), node.level) == (200, {"level": "debug"}, "debug")
        for bad in (b'{"level":"loud"}', b"", b"[]", b"\xff", b'{"level":"info","more":1'):
            answer = client.put("/v1/log-level", content=bad, headers={"content-type": "application/json"})
            assert answer.status_code in {400, 422}, bad
            assert answer.headers["content-type"] == "application/problem+json"


def test_an_endless_head_is_cut(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT_S)
        client.connect(str(path))
        client.sendall(b"GET /v1/pool HTTP/1.1\r\n")
        sent = 0
        try:
            while sent < 100 * MAX_HEAD_BYTES:
                sent += client.send(b"x-a: " + b"a" * 4000 + b"\r\n")
        except OSError:
            pass
        assert sent < 10 * MAX_HEAD_BYTES
        assert client.recv(100).startswith(b"HTTP/1.1 431 ")


def test_a_head_that_does_not_come_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert HEAD_DEADLINE_S < WAIT_S
    monkeypatch.setattr("agent.runtime.connection.HEAD_DEADLINE_S", 0.05)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(WAIT_S)
        client.connect(str(path))
        began_s = time.monotonic()
        client.sendall(b"GET /v1/po")
        assert client.recv(100).startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began_s < WAIT_S
