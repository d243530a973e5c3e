"""Write `openapi.yaml` from the routes (--write), or fail when it differs from them (--check)."""

from __future__ import annotations

import argparse
import difflib
import sys
from pathlib import Path
from typing import cast

import yaml

ROOT = Path(__file__).resolve().parent.parent
PATH = ROOT / "openapi.yaml"
SHOWN_LINE_COUNT = 40

sys.path.insert(0, str(ROOT))

from api.app import create_app  # noqa: E402 - the path comes first
from api.service import NodeService  # noqa: E402


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        # Anchors depend on object identity; without them the text depends on the values alone.
        return True


def _text(dumper: _Dumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def render() -> str:
    """The document as text. No route is called, so no service is needed."""
    document = create_app(cast("NodeService", None)).openapi()
    header = "# Generated from api/ by `make openapi`. Do not edit.\n"
    return header + yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def drift() -> list[str]:
    """A unified diff from the committed file to the routes, line by line; empty when they agree."""
    committed = PATH.read_text() if PATH.exists() else ""
    return list(
        difflib.unified_diff(committed.splitlines(), render().splitlines(), "openapi.yaml", "api/", lineterm="")
    )


def main() -> int:
    """Entry point; the exit code is 1 when --check finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true", help="write openapi.yaml")
    mode.add_argument("--check", action="store_true", help="fail when openapi.yaml is not up to date")
    if parser.parse_args().write:
        PATH.write_text(render())
        return 0
    lines = drift()
    if lines:
        print("\n".join(lines[:SHOWN_LINE_COUNT]))
        print(f"openapi.yaml differs from api/ ({len(lines)} lines of diff): run `make openapi`")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
