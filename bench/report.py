"""Writes a bench's result into docs/performance.md, between the markers of its section."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


def write_section(name: str, text: str) -> None:
    """Replace what stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`.

    Raises: ValueError when the page lacks the markers.
    """
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    head, found, rest = PAGE.read_text().partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{PAGE.name} lacks the markers {begin} and {end}")
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    machine = (
        f"{today}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    )
    PAGE.write_text(f"{head}{begin}\n\n{machine}\n\n{text}\n\n{end}{tail}")
