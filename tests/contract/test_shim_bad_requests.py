"""Hostile environments and standard inputs through the real plugin process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings

from tests.contract.bad_requests import BAD_REQUESTS, BadRequest
from tests.contract.scripted_node import ScriptedNode, running
from tests.contract.shim_process import shim

VARIABLES = {"container_id": "CNI_CONTAINERID", "netns": "CNI_NETNS", "ifname": "CNI_IFNAME", "args": "CNI_ARGS"}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ScriptedNode, Path]]:
    node, path = ScriptedNode(), tmp_path_factory.mktemp("agent") / "agent.sock"
    with running(node, path):
        yield node, path


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(request=BAD_REQUESTS)
def test_a_bad_add_is_refused_with_its_code(agent: tuple[ScriptedNode, Path], request: BadRequest) -> None:
    node, path = agent
    assume(not any("\x00" in value for value in request.members.values()))
    changes: dict[str, Any] = {VARIABLES[member]: value.encode() for member, value in request.members.items()}
    outcome = shim("ADD", path, request.config, **changes)
    assert (outcome.status, outcome.stderr) == (1, b"")
    assert outcome.body["code"] == request.code
    assert outcome.body["msg"]
    assert node.calls == []
