"""Requests made up from openapi.yaml, good and bad, sent to a live Unix socket.

Schemathesis makes them; httpx sends them, because the socket is no TCP port. An answer is accepted when it is not a 5xx
(but for a documented 503), and when openapi.yaml describes its status, content type and body.
"""

from __future__ import annotations

import json
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok

from tests.contract.openapi_document import DOCUMENT, problems_with_schema

TIMEOUT_S = 60.0
SEED = 20261124
STREAM = "text/event-stream"


def operations(*, methods: frozenset[str]) -> list[Any]:
    """Every operation of the document with one of these methods (lower case)."""
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    found = [result.ok() for result in schema.get_all_operations() if isinstance(result, Ok)]
    return [one for one in found if one.method.lower() in methods]


def attack(socket: Path, operation: Any, *, example_count: int) -> int:
    """Send about `example_count` requests, half of them malformed; the count of those that were sent.

    Raises: AssertionError with the request and the answer that is wrong.
    """
    sent = 0
    transport = httpx.HTTPTransport(uds=str(socket))
    with httpx.Client(transport=transport, base_url="http://localhost", timeout=TIMEOUT_S) as client:
        for mode in GenerationMode:
            strategy = operation.as_strategy(generation_mode=mode)

            @seed(SEED)
            @settings(
                max_examples=example_count // 2,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=strategy)
            def one(case: Any) -> None:
                nonlocal sent
                request = request_of(client, case)
                if request is not None:
                    sent += 1
                    check(operation, request, answer_to(client, request))

            # An operation without parameters cannot be asked wrongly.
            with suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext():
                one()
    return sent


def answer_to(client: httpx.Client, request: httpx.Request) -> httpx.Response:
    """The whole answer; of a stream, which may have no end, what comes first: the comment it begins with."""
    response = client.send(request, stream=True)
    try:
        if response.headers.get("content-type", "").startswith(STREAM):
            begin = next(response.iter_raw())
            assert begin.startswith(b": enoki\n\n"), (request.url, request.headers, begin)
        else:
            response.read()
    finally:
        response.close()
    return response


def request_of(client: httpx.Client, case: Any) -> httpx.Request | None:
    """As HTTP; None for what HTTP itself cannot carry (a line feed in a header)."""
    path = case.formatted_path
    body = case.body if isinstance(case.body, dict | list | str | int | float | bool | None) else None
    headers = {"content-type": "application/json"} if case.method.upper() != "GET" else {}
    try:
        headers |= {str(name): str(value) for name, value in (case.headers or {}).items()}
        return client.build_request(
            case.method,
            path,
            params=case.query or None,
            content=json.dumps(body) if case.method.upper() != "GET" else None,
            headers=headers,
        )
    except (ValueError, httpx.InvalidURL, httpx.LocalProtocolError, UnicodeEncodeError):
        return None


def check(operation: Any, request: httpx.Request, response: httpx.Response) -> None:
    """See the module."""
    described: dict[str, Any] = DOCUMENT["paths"][operation.path][operation.method.lower()]["responses"]
    is_stream = response.headers.get("content-type", "").startswith(STREAM)
    said = "a stream" if is_stream else response.text
    words = f"{request.method} {request.url} {request.content!r} -> {response.status_code} {said}"
    assert response.status_code < 500 or str(response.status_code) in described, words
    assert response.status_code != 500, words
    if response.status_code == 404 and "404" not in described:
        return  # a path that is none of the document's, made of odd characters
    content = described.get(str(response.status_code), described.get("default", {})).get("content")
    if content is None:
        assert response.status_code in {204, 400, 404, 405}, words
        return
    kind = response.headers.get("content-type", "")
    if kind in {"application/json", "application/problem+json"}:
        assert kind in content, words
        assert not problems_with_schema(response.json(), content[kind]["schema"]), words
