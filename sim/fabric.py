"""The VPC in the kernel: a namespace per node, one that routes between them, and one that plays the internet.

`Fabric` follows a `Vpc`: whenever it is told of a change it reads the state anew, compares it with the legs it has made
and makes up the difference, before the call that caused the change returns. So a client that has its answer from EC2
finds the network in that state. The few milliseconds this takes block the simulator, on purpose.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from sim import namespaces
from sim.fabric_batches import (
    FABRIC_SYSCTLS,
    INTERNET_IN_COUNTER,
    INTERNET_OUT_COUNTER,
    NODE_SYSCTLS,
    RULESET,
    TABLE,
    add_routes,
    configure_primary,
    delete_routes,
    fabric_commands,
    internet_commands,
    leg_sysctls,
    permissions,
    plug,
    unplug,
)
from sim.fabric_legs import Leg, legs
from sim.model.records import Change, InstanceLaunched, InstanceTerminated
from sim.model.vpc import Vpc

INTERNET_ADDRESS = IPv4Address("203.0.113.5")
"""Where the internet answers with the peer address it saw."""
EC2_ADDRESS = IPv4Address("203.0.113.20")
"""Where EC2's public endpoint is, seen from a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drops:
    """Packets the fabric has dropped since it was made.

    source_check: by ENI id, for every ENI that was ever attached: its source was not an address of that ENI.
    internet_out, internet_in: at the internet gateway, from or to an address that is not an instance's primary one.
    """

    source_check: Mapping[str, int]
    internet_out: int
    internet_in: int


class Fabric:
    """Namespaces `<name>-vpc`, `<name>-internet` and `<name>-node-0`, `-1`, ...: one per running instance.

    Not thread-safe, and every method blocks.
    """

    def __init__(self, name: str, vpc: Vpc) -> None:
        self.name = name
        self.vpc_namespace = f"{name}-vpc"
        self.internet_namespace = f"{name}-internet"
        self._vpc = vpc
        self._nodes: dict[str, str] = {}
        self._legs: dict[str, Leg] = {}

    @property
    def node_namespaces(self) -> Mapping[str, str]:
        """By instance id, in the order of launch."""
        return self._nodes

    def build(self) -> None:
        """Make the fabric and the internet, and follow the VPC from now on.

        Raises: CommandFailed when a namespace of that name exists, or without root.
        """
        namespaces.create(self.vpc_namespace)
        namespaces.set_sysctls(self.vpc_namespace, FABRIC_SYSCTLS)
        namespaces.create(self.internet_namespace)
        cidrs = self._vpc.state.vpc.cidrs
        namespaces.ip_batch(self.vpc_namespace, fabric_commands(self.internet_namespace, cidrs))
        namespaces.ip_batch(self.internet_namespace, internet_commands((INTERNET_ADDRESS, EC2_ADDRESS)))
        namespaces.nft(self.vpc_namespace, RULESET)
        self._vpc.subscribe(self._follow)

    def remove(self) -> None:
        """Remove what `build` and the VPC's changes made. Idempotent; for a fabric that will not be used again."""
        remove_leftovers(self.name)

    def drops(self) -> Drops:
        """Read the counters."""
        listing = json.loads(namespaces.nft_json(self.vpc_namespace, f"list counters table inet {TABLE}"))
        packets = {c["name"]: int(c["packets"]) for c in (e.get("counter") for e in listing["nftables"]) if c}
        return Drops(
            internet_out=packets.pop(INTERNET_OUT_COUNTER),
            internet_in=packets.pop(INTERNET_IN_COUNTER),
            source_check=packets,
        )

    def _follow(self, change: Change) -> None:
        # Instances come and go by name; everything else is read from the state, whatever the change was.
        if isinstance(change, InstanceLaunched):
            self._add_node(change.instance_id)
        self._reconcile()
        if isinstance(change, InstanceTerminated):
            namespaces.delete(self._nodes.pop(change.instance_id))

    def _add_node(self, instance_id: str) -> None:
        taken = set(self._nodes.values())
        namespace = next(n for n in (f"{self.name}-node-{i}" for i in range(len(taken) + 1)) if n not in taken)
        namespaces.create(namespace)
        namespaces.set_sysctls(namespace, NODE_SYSCTLS)
        self._nodes[instance_id] = namespace

    def _reconcile(self) -> None:
        wanted = legs(self._vpc.state, self._nodes)
        for eni_id, have in tuple(self._legs.items()):
            want = wanted.get(eni_id)
            if want is None or not _same_link(have, want):
                self._unplug(have)
        for eni_id, want in wanted.items():
            made = self._legs.get(eni_id)
            if made is None:
                self._plug(want)
            elif made != want:
                self._change(made, want)

    def _plug(self, leg: Leg) -> None:
        # The permissions come first: a node may send from the moment its link is there.
        namespaces.nft(self.vpc_namespace, permissions(None, leg))
        namespaces.ip_batch(self.vpc_namespace, plug(leg))
        namespaces.set_sysctls(self.vpc_namespace, leg_sysctls(leg))
        if leg.public:
            namespaces.ip_batch(leg.node_namespace, configure_primary(leg))
        self._legs[leg.eni_id] = leg

    def _unplug(self, leg: Leg) -> None:
        # A node's namespace, and its links with it, may have been removed by hand.
        namespaces.ip_batch(self.vpc_namespace, unplug(leg), force=True)
        namespaces.nft(self.vpc_namespace, permissions(leg, None))
        del self._legs[leg.eni_id]

    def _change(self, old: Leg, new: Leg) -> None:
        namespaces.nft(self.vpc_namespace, permissions(old, new))
        # An address that moved to another ENI has its route replaced already.
        namespaces.ip_batch(self.vpc_namespace, delete_routes(old, old.owned - new.owned), force=True)
        namespaces.ip_batch(self.vpc_namespace, add_routes(new, new.owned - old.owned))
        self._legs[new.eni_id] = new


def _same_link(have: Leg, want: Leg) -> bool:
    return replace(have, owned=want.owned, source_checked=want.source_checked) == want


def remove_leftovers(name: str) -> None:
    """Remove the namespaces a fabric called `name` makes, and nothing else. Idempotent."""
    ours = re.compile(rf"{re.escape(name)}-(vpc|internet|node-\d+)")
    # The fabric first: it has one end of every link.
    for namespace in sorted(filter(ours.fullmatch, namespaces.names()), reverse=True):
        namespaces.delete(namespace)
