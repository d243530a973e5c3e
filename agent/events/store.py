"""The events on disk: JSON lines in two files of bounded size. For questions about yesterday, never for correctness.

A file that has grown to its bound is renamed to `<name>.1`, which takes the place of the one before. A line that was
torn by a crash, or is not an event, is skipped by the reader. A disk that is full or gone is logged once; the agent
goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from agent.events.journal import Journal
from agent.events.model import Event, from_json_object, to_json_object
from agent.runtime.log import event_logger

log = event_logger(__name__)

MAX_FILE_BYTES = 4 * 1024 * 1024
"""Of each of the two files: about 20,000 events in each."""
NAME = "events.jsonl"


class EventStore:
    """The files in one directory. Blocking; the agent calls it in a thread."""

    def __init__(self, directory: Path, *, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self._path = directory / NAME
        self._older = directory / f"{NAME}.1"
        self._max_file_bytes = max_file_bytes

    def append(self, events: Sequence[Event]) -> None:
        """Write events down, each a line.

        Raises: OSError.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        text = "".join(json.dumps(to_json_object(event), separators=(",", ":")) + "\n" for event in events)
        with self._path.open("ab") as file:
            # A line torn by an earlier crash ends here, and takes no good line with it.
            if file.tell() and not _ends_with_newline(self._path):
                text = "\n" + text
            file.write(text.encode())
            size_bytes = file.tell()
        if size_bytes >= self._max_file_bytes:
            self._path.replace(self._older)

    def events(self, wanted: Callable[[str], bool]) -> Iterator[Event]:
        """The events of the lines that `wanted` takes, oldest first.

        Raises: OSError, but not for files that do not exist.
        """
        for path in (self._older, self._path):
            try:
                file = path.open(encoding="utf-8", errors="replace")
            except FileNotFoundError:
                continue
            with file:
                for line in file:
                    if wanted(line) and (event := _read(line)) is not None:
                        yield event


async def keep(journal: Journal, store: EventStore) -> None:
    """Write every event of the journal down, from its first on, until cancelled.

    Cancel: an event or two may be missing on disk.
    """
    last_id = 0
    failing = False
    while True:
        batch = await journal.next(last_id)
        last_id = batch.events[-1].id
        try:
            await asyncio.to_thread(store.append, batch.events)
        except OSError as exc:
            if not failing:
                log.warning("event_store_failed", error=str(exc))
            failing = True
        else:
            failing = False


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _read(line: str) -> Event | None:
    try:
        return from_json_object(json.loads(line))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
