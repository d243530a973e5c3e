"""What an operator may choose about the datapath."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network
from pathlib import Path

from agent.datapath import layout

_VETH_PREFIX = re.compile(r"[a-z][a-z0-9]{0,3}")
_RESERVED_PREFIXES = frozenset({"eth", "vlan", "lo"})


class SnatPort(StrEnum):
    """How the source port of a translated connection is chosen; values of AWS_VPC_K8S_CNI_RANDOMIZESNAT."""

    FULLY_RANDOM = "prng"
    HASHED = "hashrandom"
    KEPT = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatapathPolicy:
    """Settings of the datapath, frozen for the life of the agent.

    eni_mtu: of every ENI of ours, 576..9001 bytes (EC2 user guide, network MTU). A pod's MTU is in its `PodWiring`.
    veth_prefix: one to four characters; never eth, vlan or lo, which other software matches on.
    external_snat: True leaves translation to a NAT gateway: pods leave the VPC by their own ENI with their own address.
    randomize_snat: the source port of a translated connection.
    exclude_snat_cidrs: destinations outside the VPC that see the pod's own address.
    node_port_support: answer what came in by the primary ENI by it, wherever the pod is.
    external_service_cidrs: destinations that always leave by the primary ENI.
    primary_mark: the bits of packet and connection mark that say "by the primary ENI".
    names_directory: where iproute2 looks for names of tables and protocols; None leaves it alone.
    sysctl_directory: where /proc/sys/net can be written; a container's own is read-only.
    """

    eni_mtu: int = 9001
    veth_prefix: str = "eni"
    external_snat: bool = False
    randomize_snat: SnatPort = SnatPort.FULLY_RANDOM
    exclude_snat_cidrs: tuple[IPv4Network, ...] = ()
    node_port_support: bool = True
    external_service_cidrs: tuple[IPv4Network, ...] = ()
    primary_mark: int = layout.MARK_PRIMARY
    names_directory: Path | None = Path("/etc/iproute2")
    sysctl_directory: Path = Path("/proc/sys/net")

    def __post_init__(self) -> None:
        if not _VETH_PREFIX.fullmatch(self.veth_prefix) or self.veth_prefix in _RESERVED_PREFIXES:
            raise ValueError(f"veth prefix {self.veth_prefix!r} is not 1 to 4 of [a-z0-9], or it is reserved")
        if not 576 <= self.eni_mtu <= 9001:
            raise ValueError(f"ENI MTU {self.eni_mtu} is outside 576..9001")
        if not 1 <= self.primary_mark <= 0xFFFFFFFF or self.primary_mark & layout.MARK_KEPT_MASK:
            raise ValueError(
                f"mark {self.primary_mark:#x} is not in 1..0xffffffff, or has bits of {layout.MARK_KEPT_MASK:#x}"
            )

    @property
    def restores_primary_mark(self) -> bool:
        """Whether any connection is marked at all."""
        return self.node_port_support or not self.external_snat
