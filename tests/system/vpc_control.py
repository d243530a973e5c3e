"""Change what no client of EC2 could: the simulator's control endpoint (see `sim/control.py`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from lab.lab import Lab

TIMEOUT_S = 30.0


class VpcControl:
    """The faults of one lab's EC2."""

    def __init__(self, vpc: Lab) -> None:
        self._url = vpc.announced["control"]

    @contextmanager
    def fault(self, action: str, *, times: int | None = None, **effect: Any) -> Iterator[Callable[[], int]]:
        """Every call of `action` (or the next `times`) has this effect until the block ends; see `sim/faults.py`.

        Gives a function that asks how often it has struck.
        """
        answer = httpx.post(
            f"{self._url}/faults", json={"action": action, "effect": effect, "times": times}, timeout=TIMEOUT_S
        )
        answer.raise_for_status()
        fault_id = answer.json()["fault_id"]

        def hit_count() -> int:
            listed = httpx.get(f"{self._url}/faults", timeout=TIMEOUT_S).raise_for_status().json()
            return next(int(one["hit_count"]) for one in listed if one["fault_id"] == fault_id)

        try:
            yield hit_count
        finally:
            httpx.delete(f"{self._url}/faults/{fault_id}", timeout=TIMEOUT_S).raise_for_status()

    def calls(self, action: str) -> list[dict[str, Any]]:
        """EC2 calls of one action so far, oldest first."""
        answer = httpx.get(f"{self._url}/calls", params={"action": action}, timeout=TIMEOUT_S)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["calls"]
        return found
