"""What instance types allow, from a table that comes with the agent, so that a start costs no call for it."""

from __future__ import annotations

import json
from importlib.resources import files

from agent.ipam.model import InstanceLimits

TABLE = "instance_limits.json"
"""Written by scripts/instance_limits.py; the file names its source, version and date."""


def bundled_limits(instance_type: str) -> InstanceLimits | None:
    """The table's row, or None for a type that is newer than the table.

    Reads the file each time (once per start) rather than hold 1,400 rows for one.
    """
    row = _rows().get(instance_type)
    if row is None:
        return None
    eni_count, addresses_per_eni, *not_nitro = row
    return InstanceLimits(
        instance_type=instance_type,
        eni_count=eni_count,
        addresses_per_eni=addresses_per_eni,
        is_nitro=not not_nitro,
    )


def largest_limits(instance_type: str) -> InstanceLimits:
    """The most any type of the table allows, for one that is not in it and that nobody may be asked about."""
    rows = _rows().values()
    return InstanceLimits(
        instance_type=instance_type,
        eni_count=max(row[0] for row in rows),
        addresses_per_eni=max(row[1] for row in rows),
    )


def _rows() -> dict[str, list[int]]:
    table = json.loads((files(__package__) / TABLE).read_text(encoding="utf-8"))
    rows: dict[str, list[int]] = table["types"]
    return rows
