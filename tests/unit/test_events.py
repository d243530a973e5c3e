"""The journal, what is written down of it, and the history read out of both."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agent.events.history import tenures
from agent.events.journal import BATCH, IDS_PER_SECOND, Batch, Journal
from agent.events.model import Event, Kind, from_json_object, to_json_object
from agent.events.store import NAME, EventStore, keep

START = datetime(2026, 11, 24, 9, 30, tzinfo=UTC)


def journal(*, at: datetime = START, capacity: int = 8) -> Journal:
    return Journal(request_id=lambda: "r1", now=lambda: at, capacity=capacity)


def publish(into: Journal, count: int) -> list[int]:
    for number in range(count):
        into.publish(Kind.ENI, eni=f"eni-{number}", change="seen")
    return [event.id for event in into.events()]


def test_ids_grow_over_restarts_and_are_exact_in_json() -> None:
    first = publish(journal(), 3)
    later = publish(journal(at=START + timedelta(seconds=1)), 1)
    assert first == [first[0], first[0] + 1, first[0] + 2]
    assert later[0] > first[-1]
    assert later[0] < 2**53
    assert first[0] == int(START.timestamp()) * IDS_PER_SECOND


def test_memory_is_bounded_and_what_is_missed_is_said() -> None:
    kept = journal(capacity=8)
    all_ids = [first := publish(kept, 1)[0], *range(first + 1, first + 20)]
    publish(kept, 19)
    assert [event.id for event in kept.events()] == all_ids[-8:]
    assert kept.after(all_ids[0]).missed
    assert not kept.after(all_ids[11]).missed
    assert [event.id for event in kept.after(all_ids[15]).events] == all_ids[16:]
    assert kept.after(all_ids[-1]).events == ()
    assert not kept.after(0).missed


def test_an_id_that_is_still_to_come_was_another_agents() -> None:
    """The clock was set back, and a new agent counts from there: its reader must not wait for the old time to come."""
    kept = journal()
    assert kept.after(2**53 - 1) == Batch(events=(), missed=False)
    all_ids = publish(kept, 3)
    after = kept.after(all_ids[-1] + 1)
    assert ([event.id for event in after.events], after.missed) == (all_ids, True)
    assert kept.after(all_ids[-1]).events == ()


def test_a_reader_gets_batches() -> None:
    kept = journal(capacity=BATCH * 2)
    publish(kept, BATCH + 3)
    first = kept.after(0)
    assert len(first.events) == BATCH
    assert len(kept.after(first.events[-1].id).events) == 3


async def test_readers_wait_and_are_all_woken() -> None:
    kept = journal()
    readers = [asyncio.create_task(kept.next(kept.newest_id)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(reader.done() for reader in readers)
    publish(kept, 1)
    for batch in await asyncio.gather(*readers):
        assert [event.fields["eni"] for event in batch.events] == ["eni-0"]


def test_listeners_are_told_at_once() -> None:
    kept, told = journal(), list[Event]()
    kept.listen(told.append)
    publish(kept, 2)
    assert told == list(kept.events())
    assert told[0].request_id == "r1"


def test_an_event_survives_its_written_form() -> None:
    kept = journal()
    kept.publish(Kind.CNI_FAILED, verb="ADD", cause="pool_empty", retry_after_s=1.5, count=3)
    (event,) = kept.events()
    assert from_json_object(json.loads(json.dumps(to_json_object(event)))) == event


# ---- on disk


def test_two_files_of_bounded_size(tmp_path: Path) -> None:
    store, kept = EventStore(tmp_path / "events", max_file_bytes=2000), journal(capacity=1000)
    publish(kept, 200)
    for event in kept.events():
        store.append([event])
    sizes = [path.stat().st_size for path in (tmp_path / "events").iterdir()]
    assert len(sizes) == 2
    assert all(size < 2500 for size in sizes)
    written = [event.id for event in store.events(lambda _: True)]
    assert written == [event.id for event in kept.events()][-len(written) :]
    assert len(written) > 10


def test_a_torn_tail_costs_one_event(tmp_path: Path) -> None:
    store, kept = EventStore(tmp_path), journal()
    publish(kept, 3)
    store.append(kept.events())
    file = tmp_path / NAME
    file.write_bytes(file.read_bytes()[:-20])
    store.append(kept.events()[-1:])
    lines = file.read_text().splitlines()
    assert len(lines) == 4
    assert [event.id for event in store.events(lambda _: True)] == [event.id for event in kept.events()]


@pytest.mark.parametrize("line", ["", "nonsense", "[]", "{}", '{"id":1}', '{"id":1,"at":"x","kind":"eni"}', "\x00\xff"])
def test_a_line_that_is_no_event_is_passed_over(tmp_path: Path, line: str) -> None:
    (tmp_path / NAME).write_text(f"{line}\n")
    assert list(EventStore(tmp_path).events(lambda _: True)) == []


def test_nothing_written_is_no_failure(tmp_path: Path) -> None:
    assert list(EventStore(tmp_path / "none").events(lambda _: True)) == []


async def test_keeping_goes_on_when_the_disk_does_not(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where the directory should be")
    kept = journal()
    store = EventStore(tmp_path / "blocked")
    task = asyncio.create_task(keep(kept, store))
    try:
        for _ in range(3):
            publish(kept, 1)
            await asyncio.to_thread(lambda: None)
        (tmp_path / "blocked").unlink()
        async with asyncio.timeout(10):
            while not (tmp_path / "blocked" / NAME).exists():
                publish(kept, 1)
                await asyncio.to_thread(lambda: None)
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# ---- history


def moved(number: int, before: str, after: str, *, container: str = "", address: str = "10.0.1.9") -> Event:
    fields = {"address": address, "eni": "eni-1", "before": before, "after": after, "change": "x"}
    if container:
        fields |= {"container_id": container, "ifname": "eth0", "namespace": "default", "pod": f"pod-{container}"}
    return Event(id=number, at=START + timedelta(seconds=number), kind=Kind.ADDRESS, request_id="", fields=fields)


def told(events: list[Event]) -> list[tuple[str, int, int | None, bool]]:
    def second(at: datetime | None) -> int | None:
        return None if at is None else int((at - START).total_seconds())

    return [
        (one.container_id, second(one.since) or 0, second(one.until), one.known_end)
        for one in tenures(events, "10.0.1.9")
    ]


def test_one_holder_after_the_other() -> None:
    events = [
        moved(1, "unknown", "free"),
        moved(2, "free", "held", container="a"),
        moved(3, "free", "held", container="z", address="10.0.1.10"),
        moved(4, "held", "cooling", container="a"),
        moved(5, "cooling", "free"),
        moved(6, "free", "held", container="b"),
    ]
    assert told(events) == [("a", 2, 4, True), ("b", 6, None, True)]


def test_a_restart_in_between_does_not_split_a_tenure() -> None:
    events = [moved(1, "free", "held", container="a"), moved(9, "unknown", "held", container="a")]
    assert told(events) == [("a", 1, None, True)]


def test_an_end_nobody_saw_is_said() -> None:
    events = [moved(1, "free", "held", container="a"), moved(9, "free", "held", container="b")]
    assert told(events) == [("a", 1, 9, False), ("b", 9, None, True)]
    assert told([moved(1, "free", "held", container="a"), moved(7, "unknown", "free")]) == [("a", 1, 7, False)]


def test_quarantine_is_still_held() -> None:
    events = [
        moved(1, "free", "held", container="a"),
        moved(2, "held", "quarantined", container="a"),
        moved(3, "quarantined", "cooling", container="a"),
    ]
    assert told(events) == [("a", 1, 3, True)]


def test_doubles_do_no_harm() -> None:
    event = moved(1, "free", "held", container="a")
    assert told([event, event, moved(2, "held", "cooling", container="a")]) == [("a", 1, 2, True)]
