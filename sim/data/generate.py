"""Write `instance_types.json` from the answers of DescribeInstanceTypes that moto bundles.

Run `python -m sim.data.generate` after moto was updated. moto (Apache-2.0) records the answers of the real API in
`moto/ec2/resources/instance_types.json.gz`; this keeps what limits network interfaces and drops the rest.

Each type becomes one row, in this order:
- network interfaces per network card, by card index (NetworkInfo.NetworkCards[].MaximumNetworkInterfaces)
- IPv4 addresses per interface, its primary address included (NetworkInfo.Ipv4AddressesPerInterface)
- IPv6 addresses per interface (NetworkInfo.Ipv6AddressesPerInterface)
- hypervisor: `nitro`, `xen`, or an empty string for bare metal (Hypervisor)
- bare metal: true or false (BareMetal)
"""

from __future__ import annotations

import datetime
import gzip
import importlib.metadata
import importlib.resources
import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("instance_types.json")


def row(described: dict[str, Any]) -> list[Any]:
    """The limits in one answer of DescribeInstanceTypes, as the module docstring orders them."""
    network = described["NetworkInfo"]
    cards = sorted(network["NetworkCards"], key=lambda card: int(card["NetworkCardIndex"]))
    return [
        [card["MaximumNetworkInterfaces"] for card in cards],
        network["Ipv4AddressesPerInterface"],
        network["Ipv6AddressesPerInterface"],
        described.get("Hypervisor", ""),
        described["BareMetal"],
    ]


def main() -> None:
    source = importlib.resources.files("moto.ec2") / "resources" / "instance_types.json.gz"
    described = json.loads(gzip.decompress(source.read_bytes()))
    head = {
        "source": f"moto {importlib.metadata.version('moto')}, ec2/resources/instance_types.json.gz "
        "(answers of the EC2 API's DescribeInstanceTypes)",
        "generated": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "columns": ["interfaces_per_card", "ipv4_per_interface", "ipv6_per_interface", "hypervisor", "bare_metal"],
    }
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row(described[name]))}" for name in sorted(described))
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
    TARGET.write_text(f'{{\n{lines},\n "types": {{\n{rows}\n }}\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
