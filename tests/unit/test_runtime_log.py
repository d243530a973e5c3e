"""One JSON object per line, with the request it belongs to."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from agent.runtime.log import (
    RECENT_LINE_CHARS,
    RECENT_LINE_COUNT,
    bind_request,
    configure_logging,
    current_level,
    current_request_id,
    event_logger,
    recent,
    set_level,
)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    text = io.StringIO()
    configure_logging("info", text)
    yield text
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_with_fields(stream: io.StringIO) -> None:
    event_logger("agent.x").info("eni_attached", eni_id="eni-1", address=IPv4Address("10.0.0.1"), count=3, event="mine")
    (line,) = lines(stream)
    assert datetime.fromisoformat(line.pop("ts")).tzinfo is not None
    assert line == {
        "level": "info",
        "logger": "agent.x",
        "event": "eni_attached",
        "eni_id": "eni-1",
        "address": "10.0.0.1",
        "count": 3,
        "event_": "mine",
    }


def test_levels(stream: io.StringIO) -> None:
    log = event_logger("agent.x")
    log.debug("hidden")
    log.warning("seen")
    log.error("seen_too")
    assert [(line["level"], line["event"]) for line in lines(stream)] == [("warning", "seen"), ("error", "seen_too")]


def test_a_foreign_record_and_line_breaks_stay_on_one_line(stream: io.StringIO) -> None:
    logging.getLogger("library").warning("a %s\nb", "value")
    (line,) = lines(stream)
    assert line["event"] == "a value\nb"


def test_an_exception_has_its_traceback(stream: io.StringIO) -> None:
    try:
        raise ValueError("bug")
    except ValueError:
        event_logger("agent.x").exception("failed")
    (line,) = lines(stream)
    assert line["level"] == "error"
    assert "ValueError: bug" in line["traceback"]


async def test_the_request_id_reaches_tasks_and_ends_with_its_block(stream: io.StringIO) -> None:
    log = event_logger("agent.x")

    async def work() -> None:
        log.info("inside")

    async def request(request_id: str) -> None:
        with bind_request(request_id):
            await asyncio.create_task(work())

    await asyncio.gather(request("r1"), request("r2"))
    log.info("outside")
    assert current_request_id() == ""
    assert [line.get("request_id") for line in lines(stream)] == ["r1", "r2", None]


def test_the_record_names_the_caller(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        event_logger("agent.x").info("here")
    assert caplog.records[0].funcName == "test_the_record_names_the_caller"


def test_a_file_beside_stderr(stream: io.StringIO, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "agent.log"
    configure_logging("info", stream, file=file)
    event_logger("agent.x").info("hello", count=1)
    assert file.read_text() == stream.getvalue()
    configure_logging("info", stream)  # closes it


def test_a_file_that_cannot_be_is_a_warning(stream: io.StringIO, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    configure_logging("info", stream, file=tmp_path / "file" / "agent.log")
    (line,) = lines(stream)
    assert (line["event"], line["level"]) == ("log_file_unusable", "warning")


def test_the_level_changes_at_run_time(stream: io.StringIO) -> None:
    log = event_logger("agent.x")
    log.debug("silent")
    set_level("debug")
    log.debug("heard")
    assert current_level() == "debug"
    assert [line["event"] for line in lines(stream)] == ["heard"]


def test_the_latest_lines_are_remembered(stream: io.StringIO) -> None:
    log = event_logger("agent.x")
    for number in range(RECENT_LINE_COUNT + 5):
        log.info("counted", number=number)
    log.info("too_long", words="x" * RECENT_LINE_CHARS)
    kept = [json.loads(line)["number"] for line in recent.lines()]
    assert kept == list(range(5, RECENT_LINE_COUNT + 5))
