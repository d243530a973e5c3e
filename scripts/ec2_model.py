"""Write the part of botocore's EC2 model that the agent calls, or check that it is what botocore and the code say.

.venv/bin/python -m scripts.ec2_model --write
.venv/bin/python -m scripts.ec2_model --check

botocore parses a service's whole model when a client is made: 800 operations and their shapes, of which the agent calls
a dozen. Its loader looks into `data_path` first (botocore.loaders, "customized path"), so a smaller file of the same
form there replaces the larger one. Texts for people and lists of enum values go as well: botocore checks neither.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from botocore import xform_name
from botocore.loaders import Loader

CLOUD = Path(__file__).resolve().parent.parent / "agent" / "cloud"
DATA = CLOUD / "data"
_CALL = re.compile(r"\b_client\s*\.\s*([a-z0-9_]+)\(")
_UNREAD = frozenset({"documentation", "documentationUrl", "enum", "deprecated", "deprecatedMessage", "sensitive"})
_ENDPOINTS_OF = ("ec2", "sts")
"""STS: a role by web identity or in another account (AWS_ROLE_ARN)."""


def called_methods() -> set[str]:
    """The client's methods that agent/cloud calls, by their names in Python."""
    return {name for path in sorted(CLOUD.glob("*.py")) for name in _CALL.findall(path.read_text(encoding="utf-8"))}


def files() -> dict[Path, str]:
    """Every generated file with its content, from the installed botocore."""
    loader = Loader()
    version = loader.determine_latest_version("ec2", "service-2")
    model = loader.load_service_model("ec2", "service-2", version)
    methods = called_methods()
    operations = {name: one for name, one in model["operations"].items() if xform_name(name) in methods}
    if unknown := methods - {xform_name(name) for name in operations}:
        raise SystemExit(f"agent/cloud calls what EC2 does not have: {', '.join(sorted(unknown))}")
    shapes: dict[str, Any] = {}
    _reach({"operations": operations}, model["shapes"], shapes)
    small = {
        "version": model["version"],
        "metadata": model["metadata"],
        "operations": operations,
        "shapes": {name: shapes[name] for name in sorted(shapes)},
    }
    return {
        DATA / "ec2" / version / "service-2.json": _text(_without_unread(small)),
        DATA / "endpoints.json": _text(_endpoints(loader.load_data("endpoints"))),
    }


def _reach(node: Any, known: dict[str, Any], found: dict[str, Any]) -> None:
    """Collect every shape that `node` refers to, directly or through other shapes."""
    if isinstance(node, dict):
        name = node.get("shape")
        if isinstance(name, str) and name not in found:
            found[name] = known[name]
            _reach(known[name], known, found)
        for value in node.values():
            _reach(value, known, found)
    elif isinstance(node, list):
        for value in node:
            _reach(value, known, found)


def _without_unread(node: Any, *, names: bool = False) -> Any:
    """Drop what botocore does not read. names: the keys are names out of the model, not words of its form."""
    if isinstance(node, dict):
        return {
            key: _without_unread(value, names=key in {"members", "shapes", "operations"} and not names)
            for key, value in node.items()
            if names or key not in _UNREAD
        }
    return [_without_unread(value) for value in node] if isinstance(node, list) else node


def _endpoints(endpoints: dict[str, Any]) -> dict[str, Any]:
    """Regions and partitions as they are; services: only those a client is made for."""
    partitions = [
        {**one, "services": {name: one["services"][name] for name in _ENDPOINTS_OF if name in one["services"]}}
        for one in endpoints["partitions"]
    ]
    return {**endpoints, "partitions": partitions}


def _text(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=True).replace('},"', '},\n"') + "\n"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = arguments.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true")
    what.add_argument("--check", action="store_true")
    if arguments.parse_args().write:
        for path, text in files().items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return
    stale = [str(path) for path, text in files().items() if not path.exists() or path.read_text() != text]
    if stale:
        sys.exit(f"stale: {', '.join(stale)}; run `make ec2-model`")


if __name__ == "__main__":
    main()
