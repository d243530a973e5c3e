"""Pure: links, rules, tables and features of the kernel."""

from __future__ import annotations

from agent.doctor.facts import Facts, Judgement
from agent.doctor.host_checks import fail, ok, skip, warn
from agent.surveyed import KernelFacts

ENI_MARK_MASK = 0x3F
PODS_TABLE = 20512
OUR_PREFS = (512, 1024, 1535, 1536)


def forward_policy(kernel: KernelFacts, _: Facts) -> Judgement:
    """Nobody's FORWARD chain drops what it does not know."""
    dropping = [
        f"{one.family} {one.table} {one.name}"
        for one in kernel.chains
        if one.hook == "forward" and one.policy == "drop" and one.table != "enoki"
    ]
    if dropping:
        return fail(
            f"the policy of {', '.join(dropping)} is drop: pods are cut off unless its rules let them through",
            "iptables -P FORWARD ACCEPT (or accept pods' addresses there); Docker sets it when it starts",
        )
    if "filter" in kernel.legacy_tables:
        return warn(
            "iptables-legacy's filter table is in use; its policy is not visible from here",
            "iptables-legacy -S FORWARD must not begin with -P FORWARD DROP; better, use iptables-nft",
        )
    return ok("no forward chain drops by its policy")


def mark_bits(kernel: KernelFacts, facts: Facts) -> Judgement:
    """Nobody else uses our bits of the packet mark."""
    ours = ENI_MARK_MASK | facts.node.primary_mark
    rules = [
        f"rule {one.pref} fwmark {one.mark:#x}/{one.mark_mask:#x}"
        for one in kernel.rules
        if not one.is_ours and one.mark_mask & ours and one.mark & ours
    ]
    found = [*rules, *kernel.foreign_marks]
    if found:
        return fail(
            f"others use bits of the mark that are ours ({ours:#x}): {'; '.join(found[:3])}",
            "give them other bits, or move ours with AWS_VPC_K8S_CNI_CONNMARK",
            conflicts=len(found),
        )
    return ok(f"nobody else uses the bits {ours:#x} of the mark")


def table_ids(kernel: KernelFacts, _: Facts) -> Judgement:
    """Nobody else has routes in our routing tables."""
    taken = {table: count for table, count in kernel.foreign_routes.items() if count}
    if taken:
        listed = ", ".join(f"{count} in table {table}" for table, count in sorted(taken.items()))
        return fail(
            f"others have routes in our tables: {listed}",
            "ip route show table <table> says whose (proto); have them use another table",
        )
    return ok("our routing tables hold our routes only")


def rule_order(kernel: KernelFacts, _: Facts) -> Judgement:
    """Nobody's rule for every packet comes before ours."""
    before = [
        one
        for one in kernel.rules
        if not one.is_ours and 0 < one.pref < max(OUR_PREFS) and not one.mark_mask and one.table_id not in {253, 255}
    ]
    if before:
        listed = ", ".join(f"{one.pref} lookup {one.table_id}" for one in before[:3])
        return warn(f"rules of others come before ours: {listed}", "see whether they match pods' packets: ip rule")
    return ok("no rule of others comes before ours")


def orphaned_rules(kernel: KernelFacts, facts: Facts) -> Judgement:
    """No rule of ours leads to the table of an ENI that is gone."""
    if facts.node.ready:
        return skip("the agent starts: it does not know its ENIs yet")
    known = sum(1 for eni in facts.node.enis if eni.is_set_up and not eni.is_primary)
    marked = {one.table_id for one in kernel.rules if one.is_ours and one.pref == 1536 and one.mark_mask}
    if len(marked) > known:
        return warn(
            f"{len(marked)} ENI tables have a rule and {known} ENIs are set up",
            "restart the agent: it removes rules of ENIs that are gone",
            tables=len(marked),
            enis=known,
        )
    return ok(f"{len(marked)} rules lead to {known} ENIs")


def orphaned_links(kernel: KernelFacts, _: Facts) -> Judgement:
    """Every pod's link leads to an address."""
    orphans = [one.ifname for one in kernel.links if one.is_ours and not one.is_leaving and not one.route_count]
    if orphans:
        return warn(
            f"{len(orphans)} links of ours lead to no address: {', '.join(orphans[:5])}",
            "ip link show group says whose (alias); one that stays: delete its pod, or ip link del",
            links=len(orphans),
        )
    return ok(f"{sum(one.is_ours for one in kernel.links)} links of pods, each with its route")


def nft_table(kernel: KernelFacts, facts: Facts) -> Judgement:
    """Our nftables table is there."""
    if kernel.has_table:
        return ok("table inet enoki is there")
    if facts.node.ready:
        return skip("the agent starts: the table is not there yet")
    return fail("table inet enoki is missing", "find what flushes nftables (nft -f with flush ruleset, firewalld)")


def link_mtu(kernel: KernelFacts, facts: Facts) -> Judgement:
    """Pods' links and ENIs have the MTU of the settings."""
    macs = {eni.mac for eni in facts.node.enis if eni.managed and eni.is_set_up}
    enis = [one for one in kernel.links if one.mac in macs and not one.is_ours and not one.kind]
    small = [one for one in enis if one.mtu < facts.node.eni_mtu]
    if small:
        return fail(
            f"the MTU of {small[0].ifname} is {small[0].mtu}, not {facts.node.eni_mtu}",
            f"ip link set {small[0].ifname} mtu {facts.node.eni_mtu}, and find what changes it",
        )
    differing = [one for one in kernel.links if one.is_ours and not one.is_leaving and one.mtu > facts.node.eni_mtu]
    if differing:
        return fail(
            f"{len(differing)} pods have an MTU above the ENIs' {facts.node.eni_mtu}: {differing[0].ifname}",
            "set AWS_VPC_ENI_MTU back, or delete these pods",
        )
    if facts.host.pod_mtu > facts.node.eni_mtu:
        return fail(f"POD_MTU {facts.host.pod_mtu} is above AWS_VPC_ENI_MTU {facts.node.eni_mtu}", "lower POD_MTU")
    return ok(f"ENIs and pods keep to {facts.node.eni_mtu} bytes")


def eni_links(kernel: KernelFacts, facts: Facts) -> Judgement:
    """Every ENI has its link."""
    present = {one.mac for one in kernel.links}
    missing = [eni.eni_id for eni in facts.node.enis if eni.mac not in present]
    if missing:
        return fail(
            f"no link has the MAC of {', '.join(missing)}",
            "dmesg | grep -i ena; see whether a udev rule or another namespace took it",
        )
    return ok("every ENI has its link")


def features(kernel: KernelFacts, _: Facts) -> Judgement:
    """The kernel has what we use."""
    lacking = sorted(name for name, there in kernel.features.items() if there is False)
    unknown = sorted(name for name, there in kernel.features.items() if there is None)
    if lacking:
        return fail(f"the kernel lacks {', '.join(lacking)}", "use a kernel that has them (5.10 or later has all)")
    words = f"; not known without a change: {', '.join(unknown)}" if unknown else ""
    return ok(f"the kernel has {len(kernel.features) - len(unknown)} features that are used{words}")


_CHECKS = {
    "forward_policy": forward_policy,
    "mark_bits": mark_bits,
    "table_ids": table_ids,
    "rule_order": rule_order,
    "orphaned_rules": orphaned_rules,
    "orphaned_links": orphaned_links,
    "nft_table": nft_table,
    "mtu": link_mtu,
    "eni_links": eni_links,
    "kernel_features": features,
}


def judge(name: str, facts: Facts) -> Judgement:
    """One of `NAMES`."""
    if facts.kernel is None:
        return fail(f"the kernel could not be read: {facts.kernel_error}", "see kernel_refused in the runbook")
    return _CHECKS[name](facts.kernel, facts)


NAMES = {name: (check.__doc__ or "") for name, check in _CHECKS.items()}
