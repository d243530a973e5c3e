"""The datapath alone, without shim, API or pool: ADD by stages, forwarding cost by pods, ADD beside big rulesets.

    make bench-datapath          or: .venv/bin/python -m bench.datapath [adds] [forwarding]

Writes the section "The datapath" of docs/performance.md when both parts run. Needs root.
"""

from __future__ import annotations

import sys

from bench import datapath_adds, datapath_forwarding
from bench.datapath_nodes import allow_many_namespaces
from bench.report import write_section

_PARTS = ("adds", "forwarding")


def main(parts: list[str]) -> None:
    if unknown := set(parts) - set(_PARTS):
        sys.exit(f"bench.datapath: no part called {', '.join(sorted(unknown))}; there are: {', '.join(_PARTS)}")
    allow_many_namespaces()
    texts: list[str] = []
    if "adds" in parts or not parts:
        texts += [
            "### ADD and DEL in the kernel",
            datapath_adds.stages(),
            datapath_adds.at_once(),
            datapath_adds.beside_services(),
        ]
    if "forwarding" in parts or not parts:
        texts += ["### A forwarded packet", datapath_forwarding.report()]
    text = "\n\n".join(texts)
    print(text)
    if not parts:
        write_section("datapath", text)


if __name__ == "__main__":
    main(sys.argv[1:])
