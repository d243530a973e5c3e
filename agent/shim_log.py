"""What the CNI plugin could not tell the agent: it did not reach it. The plugin leaves a line beside the socket.

Read at the start (the usual case: there was no agent) and every two seconds after that (the agent did not answer in
time, or a caller's environment was broken). The plugin appends only when it fails, so that this costs a pod's start
nothing; it stops at `plugin.shim.MAX_FAILURE_LOG_BYTES`, so that a loop of failures does not fill a tmpfs.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from agent.runtime.log import event_logger

log = event_logger(__name__)

SUFFIX = ".shim-log"
PERIOD_S = 2.0
SETTLE_S = 0.5
"""How long a plugin that has the file open gets to finish its line."""
MAX_LINES = 200
"""Lines that are repeated in the log at once; the rest is counted."""
_FIELDS = ("command", "container_id", "ifname", "args", "code", "message")


async def follow_shim_log(agent_socket: Path) -> None:
    """Until cancelled."""
    path = Path(f"{agent_socket}{SUFFIX}")
    while True:
        for fields in take(path):
            log.warning("shim_failed", **fields)
        await asyncio.sleep(SETTLE_S if _taken(path).exists() else PERIOD_S)


def take(path: Path) -> list[dict[str, Any]]:
    """Every failure in the file, oldest first, which is gone afterwards. Nothing to read is no failure."""
    taken = _taken(path)
    try:
        # A plugin that has the file open may still be writing its line: it is read next time.
        earlier = taken.read_bytes() if taken.exists() else b""
        taken.unlink(missing_ok=True)
        if path.exists():
            path.replace(taken)
    except OSError as exc:
        log.debug("shim_log_unreadable", error=str(exc))
        return []
    lines = earlier.splitlines()
    found = [fields for line in lines[:MAX_LINES] if (fields := _parse(line)) is not None]
    if len(lines) > MAX_LINES:
        found.append({"message": f"and {len(lines) - MAX_LINES} more failures"})
    return found


def _taken(path: Path) -> Path:
    return path.with_name(f"{path.name}.taken")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        said = json.loads(line)
        return {name: str(said[name])[:300] for name in _FIELDS if said.get(name)}
    except (ValueError, AttributeError):
        return None
