"""Write agent/cloud/instance_limits.json: how many ENIs and addresses each instance type takes.

    .venv/bin/python -m scripts.instance_limits

The source is moto, a development dependency, which bundles the EC2 API's own answers of DescribeInstanceTypes. Each
type becomes [ENIs on network card 0, IPv4 addresses per ENI with its primary], with a 0 behind them if it is not on
Nitro. Run it after moto was updated.
"""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent.parent / "agent" / "cloud" / "instance_limits.json"


def limits() -> dict[str, list[int]]:
    """Every type moto knows, by name. Types without a network card 0 do not exist."""
    packed = (files("moto.ec2") / "resources" / "instance_types.json.gz").read_bytes()
    described: dict[str, dict[str, Any]] = json.loads(gzip.decompress(packed))
    return {name: _row(described[name]) for name in sorted(described)}


def _row(described: dict[str, Any]) -> list[int]:
    network = described["NetworkInfo"]
    card_0 = next(card for card in network["NetworkCards"] if card["NetworkCardIndex"] == 0)
    is_nitro = described.get("Hypervisor") == "nitro" or described["BareMetal"]
    return [card_0["MaximumNetworkInterfaces"], network["Ipv4AddressesPerInterface"], *([] if is_nitro else [0])]


def main() -> None:
    rows = ",\n".join(f"{json.dumps(name)}:{json.dumps(row, separators=(',', ':'))}" for name, row in limits().items())
    head = {
        "source": f"moto {version('moto')}, ec2/resources/instance_types.json.gz: EC2 DescribeInstanceTypes",
        "written": datetime.now(UTC).date().isoformat(),
        "columns": "ENIs on network card 0, IPv4 addresses per ENI (the primary address included), 0 if not on Nitro",
    }
    lines = "".join(f"{json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
    TARGET.write_text(f'{{\n{lines}"types": {{\n{rows}\n}}}}\n', encoding="utf-8")
    print(f"{TARGET}: {len(limits())} types")


if __name__ == "__main__":
    main()
