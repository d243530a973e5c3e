"""Every operation on the live socket, with requests made up from openapi.yaml: never a 5xx, always as described."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.event_schemas import HistoryView
from api.problems import Problem
from api.schemas import Address
from tests.contract.fuzz import attack, operations
from tests.contract.scripted_node import ScriptedNode, running

EXAMPLE_COUNT = 40


@pytest.fixture(scope="module")
def socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("fuzz") / "agent.sock"
    with running(ScriptedNode(), path):
        yield path


@pytest.mark.parametrize(
    "operation", operations(methods=frozenset({"get", "post", "put"})), ids=lambda one: f"{one.method} {one.path}"
)
def test_no_request_breaks_it(socket: Path, operation: object) -> None:
    assert attack(socket, operation, example_count=EXAMPLE_COUNT) > 0


@pytest.mark.parametrize(
    "last_event_id",
    ["-1", "0", "1e3", "9" * 20, str(2**53), "\u0663", "\xb2", "0x10", "null", "7;drop", "a" * 20],
)
def test_an_odd_last_event_id_is_a_stream_all_the_same(socket: Path, last_event_id: str) -> None:
    """A browser sends what it was told once; refusing it would leave its page without events for ever."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://localhost") as client:
        answer = client.get(
            "/v1/events", params={"follow": "false"}, headers={b"last-event-id": last_event_id.encode()}
        )
        assert (answer.status_code, answer.text.startswith(": enoki\n\n")) == (200, True)


def test_a_route_that_breaks_is_found(tmp_path: Path) -> None:
    class Broken(ScriptedNode):
        async def history(self, address: Address) -> HistoryView:
            raise Problem(500, "Broken", f"no history of {address}")

    path = tmp_path / "agent.sock"
    (operation,) = [one for one in operations(methods=frozenset({"get"})) if one.path == "/v1/history"]
    with running(Broken(), path), pytest.raises(AssertionError, match="-> 500"):
        attack(path, operation, example_count=EXAMPLE_COUNT)
