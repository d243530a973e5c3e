"""The VPC as a router sees it: one leg per attached ENI. Pure: a `State` goes in, values come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from sim.model.records import AttachmentStatus, EniRecord, State

Network = IPv4Network | IPv6Network

_FIRST_SLOT = 5
"""A Nitro instance names its primary interface ens5, the hot-plugged ones after it (PCI slot numbers)."""
_SLOTS_PER_CARD = 32
"""PCI has 32 slots per bus; a second network card is another bus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """A link between the fabric and a node.

    ifname: the fabric's end: `eni` and the last 12 hex digits of the id, which fills the 15 characters Linux allows.
    node_ifname: the node's end, which carries `mac`.
    gateway, subnet: of the ENI's subnet; the gateway is its base address plus one (Amazon VPC User Guide, "Subnet
    CIDR blocks").
    owned: every address and prefix EC2 knows on the ENI, primary address included.
    source_checked: EC2's source/destination check; False lets any source pass.
    public: the instance's primary ENI, the only one an internet gateway speaks to.
    """

    eni_id: str
    node_namespace: str
    ifname: str
    node_ifname: str
    mac: str
    subnet: IPv4Network
    gateway: IPv4Address
    primary_address: IPv4Address
    owned: frozenset[Network]
    source_checked: bool
    public: bool

    @property
    def sources(self) -> frozenset[Network]:
        """What may come out of the ENI."""
        if self.source_checked:
            return self.owned
        return frozenset((IPv4Network("0.0.0.0/0"), IPv6Network("::/0")))

    @property
    def link_local(self) -> IPv6Address:
        """The node end's IPv6 link-local address, made from its MAC (RFC 4291, appendix A)."""
        octets = bytes.fromhex(self.mac.replace(":", ""))
        eui64 = bytes((octets[0] ^ 0x02,)) + octets[1:3] + b"\xff\xfe" + octets[3:]
        return IPv6Address(b"\xfe\x80" + bytes(6) + eui64)


def legs(state: State, node_namespaces: Mapping[str, str]) -> dict[str, Leg]:
    """The legs that should exist, by ENI id.

    node_namespaces: by instance id; ENIs of other instances have no leg. A leg lasts until the detachment is complete.
    """
    found = {}
    for eni in state.enis.values():
        at = eni.attachment
        if at is None or at.status is AttachmentStatus.ATTACHING or at.instance_id not in node_namespaces:
            continue
        found[eni.eni_id] = _leg(eni, state, node_namespaces[at.instance_id], at.network_card_index, at.device_index)
    return found


def _leg(eni: EniRecord, state: State, node_namespace: str, card: int, device: int) -> Leg:
    subnet = state.subnets[eni.subnet_id].cidr
    return Leg(
        eni_id=eni.eni_id,
        node_namespace=node_namespace,
        ifname="eni" + eni.eni_id[-12:],
        node_ifname=f"ens{_FIRST_SLOT + device + _SLOTS_PER_CARD * card}",
        mac=eni.mac,
        subnet=subnet,
        gateway=subnet.network_address + 1,
        primary_address=eni.primary_address,
        owned=_owned(eni),
        source_checked=eni.source_dest_check,
        public=eni.is_primary,
    )


def _owned(eni: EniRecord) -> frozenset[Network]:
    addresses: tuple[IPv4Address | IPv6Address, ...] = (
        eni.primary_address,
        *eni.secondary_addresses,
        *eni.ipv6_addresses,
    )
    return frozenset((*map(ip_network, addresses), *eni.ipv4_prefixes, *eni.ipv6_prefixes))


def instance_of(state: State, address: IPv4Address) -> str | None:
    """The instance that has an address on one of its attached ENIs; None when nobody has."""
    for eni in state.enis.values():
        if eni.attachment is None:
            continue
        single = address == eni.primary_address or address in eni.secondary_addresses
        if single or any(address in prefix for prefix in eni.ipv4_prefixes):
            return eni.attachment.instance_id
    return None
