"""Names for our numbers, so that `ip route show table pods` and `ip rule` speak."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from agent.datapath import layout

_FILES: Final = (
    (
        "rt_tables.d",
        f"{layout.PODS_TABLE}\t{layout.PODS_TABLE_NAME}\n{layout.RELEASED_TABLE}\t{layout.RELEASED_TABLE_NAME}\n",
    ),
    ("rt_protos.d", f"{layout.PROTOCOL}\t{layout.PROTOCOL_NAME}\n"),
)


def install_names(directory: Path) -> bool:
    """Write our two drop-in files (ip-route(8)); whether both are there afterwards.

    directory: usually /etc/iproute2. Made when it is missing. That it cannot be written
    is no failure: only the names are lost, numbers still work.
    """
    try:
        for folder, text in _FILES:
            path = directory / folder / "enoki.conf"
            if not path.is_file() or path.read_text() != text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    except OSError:
        return False
    return True
