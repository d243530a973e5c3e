"""The node and its ENIs: sysctls, links, tables, policy rules. Blocking; runs in a worker thread. Everything is
repeatable."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from agent.datapath import cold, layout, messages, seen, sysctls
from agent.datapath.desired import AF_INET, NODE_RULE_PREFS, EniPlan, RuleSpec, change_rules, node_rules
from agent.datapath.messages import LinkSeen
from agent.datapath.netlink import NetlinkSocket, refusals_named
from agent.datapath.policy import DatapathPolicy
from agent.errors import Cause, KernelFailed
from agent.ipam.model import Mac

_PRESENT: Final = frozenset({errno.EEXIST})
_ABSENT: Final = frozenset({errno.ENOENT, errno.ESRCH})


def prepare_node(route: NetlinkSocket, primary_mac: Mac, policy: DatapathPolicy) -> str:
    """Forwarding, the node's rules, the primary link; the name of that link.

    Raises: KernelFailed (eni_link_missing, kernel_refused).
    """
    with refusals_named("preparing the node"):
        sysctls.enable_forwarding()
        wanted = node_rules(policy, ipv6=sysctls.has_ipv6())
        for family in {rule.family for rule in wanted}:
            ours = [rule for rule in rules_of_ours(route, family) if rule.pref in NODE_RULE_PREFS]
            _change_rules(route, [rule for rule in wanted if rule.family == family], ours)
    return prepare_primary(route, primary_mac, policy.eni_mtu)


def prepare_primary(route: NetlinkSocket, mac: Mac, eni_mtu: int) -> str:
    """MTU and loose reverse-path filtering of the primary ENI; everything else of it belongs to the machine image.

    Loose, because a NodePort packet that enters here for a pod of a secondary ENI has its reverse path on another link.
    Raises: KernelFailed.
    """
    link = _eni_link(route, mac)
    with refusals_named(f"preparing {link.ifname}"):
        if link.mtu != eni_mtu:
            route.apply([messages.set_mtu_up(link.ifindex, eni_mtu)])
        sysctls.set_link_ipv4(link.ifname, "rp_filter", 2)
    return link.ifname


def ensure_eni(route: NetlinkSocket, plan: EniPlan, eni_mtu: int) -> None:
    """Link, address, table and rules of a secondary ENI.

    Loose reverse-path filtering, because the kernel looks the source up without the mark that brings pods here. An
    address that is there already (DHCP, networkd) stays as it is.
    Raises: KernelFailed.
    """
    link = _eni_link(route, plan.mac)
    with refusals_named(f"preparing {link.ifname}"):
        sysctls.set_link_ipv4(link.ifname, "rp_filter", 2)
        route.apply([messages.set_mtu_up(link.ifindex, eni_mtu)])
        present = {cold.parse_address(each) for each in route.dump(cold.dump_addresses(link.ifindex))}
        if plan.address not in present:
            route.apply([cold.add_eni_address(link.ifindex, plan)], ignore=_PRESENT)
        route.apply(cold.eni_routes(link.ifindex, plan))
        ours = [rule for rule in rules_of_ours(route, AF_INET) if rule.table_id == plan.table_id]
        _change_rules(route, plan.rules, ours)


def forget_eni(route: NetlinkSocket, plan: EniPlan) -> None:
    """Remove the ENI's rules, and then the routes of ours in its table. Its addresses go with the link.

    Raises: KernelFailed.
    """
    with refusals_named(f"forgetting the ENI of table {plan.table_id}"):
        ours = [rule for rule in rules_of_ours(route, AF_INET) if rule.table_id == plan.table_id]
        _change_rules(route, (), ours)
        for each in seen.table_routes(route, plan.table_id):
            if each.protocol == layout.PROTOCOL:
                route.apply([cold.delete_eni_route(plan.table_id, each)], ignore=_ABSENT)


def _eni_link(route: NetlinkSocket, mac: Mac) -> LinkSeen:
    with refusals_named(f"looking for the link with MAC {mac}"):
        link = seen.link_with_mac(route, mac)
    if link is None:
        raise KernelFailed(
            Cause.ENI_LINK_MISSING,
            f"no link has the MAC {mac}",
            evidence={"mac": mac},
            remedy="see whether EC2 shows the ENI as attached, and what the kernel log says of its driver",
        )
    return link


def rules_of_ours(route: NetlinkSocket, family: int) -> tuple[RuleSpec, ...]:
    rules = (cold.parse_rule(each) for each in route.dump(cold.dump_rules(family)))
    return tuple(rule for rule in rules if rule is not None)


def _change_rules(route: NetlinkSocket, wanted: Sequence[RuleSpec], ours: Sequence[RuleSpec]) -> None:
    changes = change_rules(wanted, ours)
    for rule in changes.add:
        route.apply([cold.add_rule(rule)], ignore=_PRESENT)
    for rule in changes.delete:
        route.apply([cold.delete_rule(rule)], ignore=_ABSENT)
