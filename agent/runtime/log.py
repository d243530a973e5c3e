"""Structured logs: one JSON object per line on stderr, on top of the standard library's logging.

Keys: `ts` (UTC, milliseconds), `level`, `logger`, `event`, `request_id` when one is bound, then the event's own fields.
An event is a fixed snake_case name; whatever varies is a field. Records of third-party libraries have their message as
the event.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

_request_id: ContextVar[str] = ContextVar("request_id", default="")


MAX_FILE_BYTES = 16 * 1024 * 1024
OLD_FILE_COUNT = 3
"""The log file and its predecessors: 64 MiB together."""
RECENT_LINE_COUNT = 2000
RECENT_LINE_CHARS = 2000
"""Lines kept in memory, and the longest that is: 4 MiB at most, a fraction of it in practice."""


class RecentLines(logging.Handler):
    """The latest lines, in memory, for whoever asks the agent for one pod's story."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque(maxlen=RECENT_LINE_COUNT)

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        if len(line) <= RECENT_LINE_CHARS:
            self._lines.append(line)

    def lines(self) -> tuple[str, ...]:
        """JSON objects, oldest first."""
        return tuple(self._lines)


recent = RecentLines()
"""Of this process; fed from `configure_logging` on."""


@contextmanager
def bind_request(request_id: str) -> Iterator[None]:
    """Put `request_id` into every line logged inside the block, tasks started there included."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


def current_request_id() -> str:
    """The bound request id; empty outside of `bind_request`."""
    return _request_id.get()


class EventLogger:
    """Log named events with fields. The fields must be JSON values, or have a `str()` worth reading."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, /, **fields: object) -> None:
        """For someone who follows one request; off by default."""
        self._emit(logging.DEBUG, event, fields)

    def info(self, event: str, /, **fields: object) -> None:
        """A transition: something is different from now on."""
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Degraded; the agent goes on and tries again."""
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Someone must look at it."""
        self._emit(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """An error with the traceback of the exception being handled: a bug."""
        self._emit(logging.ERROR, event, fields, with_traceback=True)

    def _emit(self, level: int, event: str, fields: dict[str, object], *, with_traceback: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"fields": fields}, exc_info=with_traceback, stacklevel=3)


def event_logger(name: str) -> EventLogger:
    """The event logger of a module: `log = event_logger(__name__)`."""
    return EventLogger(logging.getLogger(name))


class JsonFormatter(logging.Formatter):
    """Renders a record as one line of JSON. Own fields never overwrite the fixed keys."""

    def format(self, record: logging.LogRecord) -> str:
        """One JSON object, without a line break."""
        # The handlers of one process share the work; the text does not depend on them.
        text: str | None = getattr(record, "json_line", None)
        if text is None:
            text = record.json_line = self._render(record)
        return text

    def _render(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if request_id := _request_id.get():
            line["request_id"] = request_id
        for key, value in getattr(record, "fields", {}).items():
            line[f"{key}_" if key in line else key] = value
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure_logging(level: str = "info", stream: TextIO | None = None, *, file: Path | None = None) -> None:
    """Send everything from `level` on to `stream` (stderr by default) as JSON lines. Replaces earlier handlers.

    level: debug, info, warning or error.
    file: where the lines go as well, rotated at `MAX_FILE_BYTES`. A file that cannot be opened is a warning in the log.
    """
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr if stream is None else stream), recent]
    problem = ""
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(RotatingFileHandler(file, maxBytes=MAX_FILE_BYTES, backupCount=OLD_FILE_COUNT))
        except OSError as exc:
            problem = str(exc)
    for handler in handlers:
        handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    for replaced in root.handlers:
        if isinstance(replaced, RotatingFileHandler):
            replaced.close()
    root.handlers[:] = handlers
    root.setLevel(level.upper())
    if problem:
        event_logger(__name__).warning("log_file_unusable", file=str(file), error=problem)


def current_level() -> str:
    """The least severe level that is logged, in lower case: debug, info, warning, error or critical."""
    return logging.getLevelName(logging.getLogger().level).lower()


def set_level(level: str) -> None:
    """Change it now. level: as for `configure_logging`."""
    logging.getLogger().setLevel(level.upper())
