"""Lines of the log, and which are written."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import ConfigDict

from api.schemas import View, shown


class LogLevelName(StrEnum):
    """Names of log levels."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogLevel(View):
    """The least severe lines that are logged. Lost when the agent stops: the setting counts again at its next start."""

    model_config = shown({"level": "debug"})

    level: LogLevelName
    """Lines of this severity and above are logged."""


class LogLine(View):
    """One line of the agent's log."""

    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

    ts: datetime
    """When it was written, by the node's clock."""
    level: str
    """How severe: `debug`, `info`, `warning` or `error`."""
    logger: str
    """The part of the agent that wrote it."""
    event: str
    """The name of what happened, in snake_case; the line's further members depend on it."""


class LogView(View):
    """The latest log lines that match, oldest first."""

    model_config = shown(
        {
            "lines": [
                {
                    "ts": "2026-11-24T09:30:00.125Z",
                    "level": "info",
                    "logger": "agent.attachments",
                    "event": "attached",
                    "request_id": "5f0c2a9be113",
                    "pod": "default/web-0 (3f5a9c0e7d/eth0)",
                    "addresses": ["10.0.1.9"],
                }
            ],
            "remembered_since": "2026-11-24T08:11:02.004Z",
        }
    )

    lines: list[LogLine]
    """As they were written, with all their members."""
    remembered_since: datetime | None
    """The time of the oldest line that is still in memory; null when there is none."""
