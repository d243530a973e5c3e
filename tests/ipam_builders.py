"""Short ways to say ENIs, holders and limits in tests of address management."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network

from agent.ipam.ledger import DENSEST, Ledger
from agent.ipam.model import Address, AttachmentKey, Block, Eni, EniId, Holder, InstanceLimits, Mac, SubnetId
from agent.ipam.placement import PlacementPolicy

M5_LARGE = InstanceLimits(instance_type="m5.large", eni_count=3, addresses_per_eni=10)
M5_4XLARGE = InstanceLimits(instance_type="m5.4xlarge", eni_count=8, addresses_per_eni=30)
T3_SMALL = InstanceLimits(instance_type="t3.small", eni_count=3, addresses_per_eni=4)
P3DN_24XLARGE = InstanceLimits(instance_type="p3dn.24xlarge", eni_count=15, addresses_per_eni=50)

SUBNET = SubnetId("subnet-0000000000000000a")
OTHER_SUBNET = SubnetId("subnet-0000000000000000b")
CIDR = IPv4Network("10.0.0.0/16")


def ip(number: int) -> IPv4Address:
    """The `number`-th address of the subnet."""
    return CIDR[number]


def single(address: Address) -> Block:
    """A secondary address."""
    return Block(network=IPv4Network(str(address)))


def prefix(number: int) -> Block:
    """The `number`-th /28 of the subnet."""
    return Block(network=IPv4Network((CIDR[16 * number], 28)))


def eni_id(device: int) -> EniId:
    return EniId(f"eni-{device:017x}")


def an_eni(
    device: int = 0,
    addresses: Iterable[IPv4Address] = (),
    *,
    prefixes: Iterable[Block] = (),
    card: int = 0,
    subnet_id: SubnetId = SUBNET,
    managed: bool = True,
    name: int | None = None,
) -> Eni:
    number = device if name is None else name
    return Eni(
        eni_id=eni_id(number),
        mac=Mac(f"02:00:00:00:{number // 256:02x}:{number % 256:02x}"),
        card=card,
        device=device,
        subnet_id=subnet_id,
        subnet_cidr=CIDR,
        primary_address=CIDR[60_000 + number],
        blocks=(*(single(address) for address in addresses), *prefixes),
        attachment_id=f"eni-attach-{number:017x}",
        security_groups=("sg-0000000000000000a",),
        delete_on_termination=True,
        managed=managed,
    )


def a_holder(name: str, ifname: str = "eth0", container_id: str = "") -> Holder:
    return Holder(
        key=AttachmentKey(container_id=container_id or f"container-{name}", ifname=ifname),
        namespace="default",
        pod=name,
    )


def a_ledger(*enis: Eni, now_s: float = 0.0, ready: bool = True, placement: PlacementPolicy = DENSEST) -> Ledger:
    """A ledger of these ENIs, their links set up."""
    ledger = Ledger(placement)
    ledger.observe_enis(enis, now_s)
    if ready:
        for eni in enis:
            ledger.inventory.eni_ready(eni.eni_id, 254 if eni.is_primary else eni.device + 1)
    return ledger
