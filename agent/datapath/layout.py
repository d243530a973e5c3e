"""Every number and name that says "ours", and why it is that one.

Nothing in this directory writes or deletes anything that does not carry one of these marks.
"""

from __future__ import annotations

from typing import Final

# Routing tables -----------------------------------------------------------------------------------------------------

PODS_TABLE: Final = 20512
"""One /32 or /128 per pod, no default: a miss falls through to the next rule. Not `main`, because a DHCP client may put
/32 routes there which would capture pods of secondary ENIs. Clear of the ranges others use: 1-252 (ENI tables, systemd,
100+VLAN), 1000-1100, 2004, 10000-11999 (amazon-ec2-net-utils), 30200-30400 (nm-cloud-setup), 51820 (WireGuard)."""

PODS_TABLE_NAME: Final = "pods"

RELEASED_TABLE: Final = 20513
"""Addresses released a moment ago, on their way into the set `cooling`. No rule looks into it: it says something, and
routes nothing."""

RELEASED_TABLE_NAME: Final = "released"

MAIN_TABLE: Final = 254
"""RT_TABLE_MAIN (include/uapi/linux/rtnetlink.h): the table of the primary ENI."""

CARD_TABLE_BASE: Final = 10000
CARD_TABLE_STRIDE: Final = 100
"""Table of device d on network card c >= 1: 10000 + 100 c + d, as amazon-ec2-net-utils and the AWS plugin number
them."""

PROTOCOL: Final = 205
"""The rtnetlink protocol of every route and rule of ours. Unassigned in the kernel's rtnetlink.h (0-18, 42, 80, 84, 99,
186-192), in iproute2's rt_protos and in FRRouting, which continues from there to 198."""

PROTOCOL_NAME: Final = "enoki"

# Policy rules: the AWS plugin's priorities, so that whoever knows them finds ours in the same places ------------------

PODS_RULE_PREF: Final = 512
"""Before 1536: a pod of a secondary ENI reaches its neighbour on the node without leaving it."""

PRIMARY_MARK_RULE_PREF: Final = 1024

SERVICE_RULE_PREF: Final = 1535
"""Destinations that always leave by the primary ENI (AWS_EXTERNAL_SERVICE_CIDRS)."""

ENI_MARK_RULE_PREF: Final = 1536

ENI_SOURCE_RULE_PREF: Final = 32765
"""Just before `main` at 32766: for the node's own packets that carry the ENI's own address."""

POD_RULE_PREF: Final = 1
"""Inside a container with several interfaces: `from <address> lookup <table of the interface>`. As the AWS plugin."""

POD_METRIC_BASE: Final = 1000
"""Inside a container: the default route of interface n > 0 in `main` has this metric plus n, so that the first
interface's wins, and the others' serve where there is no first."""

# Packet mark: only these eight bits are ever touched, always with and/or ----------------------------------------------

MARK_ENI_MASK: Final = 0x3F
MARK_KEPT_MASK: Final = 0x7F
"""The ENI's bits, and 0x40 for strict branch ENIs: the mark of the primary ENI must not touch them."""

MARK_PRIMARY: Final = 0x80
"""As the AWS plugin; configurable. Neighbours: portmap 0x2000, kube-proxy 0x4000 and 0x8000, Calico 0xffff0000."""

# Link groups ---------------------------------------------------------------------------------------------------------

POD_GROUP_BASE: Final = 20000
"""Host veth of a pod: base + ENI index (0 the primary ENI, else the ENI's table id, at most 63: the mark has six
bits)."""

POD_GROUPS: Final = range(POD_GROUP_BASE, POD_GROUP_BASE + MARK_ENI_MASK + 1)

LEAVING_GROUP: Final = 20099
"""Host veth of a released attachment: holds no address, is deleted with its whole group in one message. 20100 is kept
for strict branch ENIs."""

# Interface indexes ---------------------------------------------------------------------------------------------------

HOST_IFINDEXES: Final = range(100_000, 1_000_000_000)
"""Host veths get an explicit index, so that one batch can create a link and refer to it. The kernel counts up from 1
and never gets here."""

POD_IFINDEX: Final = 3
"""The container end, when that index is free there (1 is lo, 2 is what a runtime's own interface would get)."""

POD_IFINDEX_OFFSET: Final = 1_000_000_000
"""When it is not: the host end's index plus this; no two are alike, and the sum stays below 2^31."""

# Names ---------------------------------------------------------------------------------------------------------------

ALIAS_PREFIX: Final = "enoki"
ALIAS_BYTES: Final = 255
"""IFALIASZ - 1 (include/uapi/linux/if.h)."""

NAME_HASH_HEX_COUNT: Final = 11
"""4 (longest prefix) + 11 = IFNAMSIZ - 1. The AWS network policy agent and Calico derive the same name."""

NFT_FAMILY: Final = "inet"
NFT_TABLE: Final = "enoki"
COOLING_SET: Final = "cooling"
HOST_PORT_MAP: Final = "hostport4"
"""Ports of every address of the node."""
HOST_PORT_IP_MAP: Final = "hostport4_ip"
"""Ports of one address of the node."""
HAIRPIN_SET: Final = "hairpin4"
"""(pod, pod) for every pod that has a host port: it may reach itself by it."""
HOST_PORT_SETS: Final = (HOST_PORT_MAP, HOST_PORT_IP_MAP, HAIRPIN_SET)

# Addresses inside a pod ----------------------------------------------------------------------------------------------

POD_GATEWAY_V4: Final = "169.254.1.1"
POD_GATEWAY_V6: Final = "fe80::1"
"""Link-local next hops that nobody answers for: a permanent neighbour entry points at the host veth. As the AWS
plugin."""


def is_ours(group: int) -> bool:
    """Whether a link in this group was made here."""
    return group in POD_GROUPS or group == LEAVING_GROUP
