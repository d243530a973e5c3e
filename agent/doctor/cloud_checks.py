"""Pure: EC2, IMDS, Kubernetes, and what the agent itself knows."""

from __future__ import annotations

from agent.doctor.facts import Facts, Judgement
from agent.doctor.host_checks import fail, ok, skip, warn

CLOCK_SKEW_S = 240.0
"""EC2 refuses a signature that is five minutes off (Signature Version 4)."""
CLOCK_DRIFT_S = 30.0
SCARCE_ADDRESS_COUNT = 16


def agent_ready(facts: Facts) -> Judgement:
    """The agent has started."""
    if facts.node.ready:
        return fail(f"the agent starts: {facts.node.ready}", "enokictl explain node")
    return ok("the agent is ready")


def loops(facts: Facts) -> Judgement:
    """The agent's loops turn."""
    if facts.node.failing_loops:
        return warn(f"loops fail: {'; '.join(facts.node.failing_loops)}", "enokictl explain node")
    return ok("the agent's loops turn")


def pool_troubles(facts: Facts) -> Judgement:
    """EC2 refuses the pool nothing."""
    if facts.node.troubles:
        return warn(f"the pool cannot do everything: {facts.node.troubles[0]}", "enokictl explain node")
    return ok("EC2 refuses the pool nothing")


def quarantine(facts: Facts) -> Judgement:
    """Kernel and EC2 agree on every address."""
    if facts.node.quarantined:
        listed = ", ".join(str(one) for one in facts.node.quarantined[:5])
        return fail(f"pods hold addresses that EC2 does not list: {listed}", "delete these pods: enokictl pool")
    return ok("kernel and EC2 agree on every address")


def imds(facts: Facts) -> Judgement:
    """IMDS answers."""
    if facts.node.imds:
        return fail(f"IMDS: {facts.node.imds}", "enable the HTTP endpoint in the instance's metadata options")
    return ok("IMDS answers")


def ec2_reachable(facts: Facts) -> Judgement:
    """EC2 answers."""
    cloud = facts.cloud
    if cloud is None:
        return skip("EC2 is not asked (ENABLE_IMDS_ONLY_MODE), or the agent does not know its instance yet")
    if cloud.reachable:
        return fail(f"EC2: {cloud.reachable}", "check the route to its endpoint, and the role of the instance")
    return ok("EC2 answers")


def iam(facts: Facts) -> Judgement:
    """The role allows every EC2 action that is called (asked by DryRun)."""
    cloud = facts.cloud
    if cloud is None:
        return skip("EC2 is not asked")
    denied = sorted(name for name, words in cloud.permissions.items() if words)
    if denied:
        return fail(
            f"the role may not {', '.join(denied)}",
            f"allow {', '.join(f'ec2:{name}' for name in denied)} (deploy/iam/policy.json)",
            denied=len(denied),
        )
    if cloud.unknown:
        return warn(f"EC2 did not say about {', '.join(cloud.unknown)}", "ask again: enokictl doctor")
    return ok(f"the role allows all {len(cloud.permissions)} actions that are called")


def hop_limit(facts: Facts) -> Judgement:
    """IMDS' answers reach containers."""
    limit = None if facts.cloud is None else facts.cloud.hop_limit
    if limit is None:
        return skip("EC2 does not say the hop limit of IMDS' answers")
    if limit < 2:
        return warn(
            "the hop limit of IMDS' answers is 1: pods, and an agent outside the host's network, get none",
            "aws ec2 modify-instance-metadata-options --http-put-response-hop-limit 2, if pods need it",
            hop_limit=limit,
        )
    return ok(f"the hop limit of IMDS' answers is {limit}", hop_limit=limit)


def clock(facts: Facts) -> Judgement:
    """The clock agrees with EC2's."""
    skew_s = None if facts.cloud is None else facts.cloud.skew_s
    if skew_s is None:
        return skip("EC2 told no time")
    evidence = {"skew_s": round(skew_s, 1)}
    if abs(skew_s) > CLOCK_SKEW_S:
        return fail(f"the clock is {skew_s:.0f} s off: EC2 refuses signatures", "systemctl restart chronyd", **evidence)
    if abs(skew_s) > CLOCK_DRIFT_S:
        return warn(f"the clock is {skew_s:.0f} s off", "see chronyc tracking", **evidence)
    return ok(f"the clock is {abs(skew_s):.0f} s off at most", **evidence)


def subnet_addresses(facts: Facts) -> Judgement:
    """The subnets have addresses to give."""
    subnets = None if facts.cloud is None else facts.cloud.subnets
    if subnets is None:
        return skip("the subnets were not described")
    if not subnets:
        return fail("no subnet may have ENIs of this node", "tag one kubernetes.io/role/cni=1")
    used = {eni.subnet_id for eni in facts.node.enis}
    short = {name: free for name, free in subnets.items() if free < SCARCE_ADDRESS_COUNT}
    if len(short) == len(subnets):
        listed = ", ".join(f"{name} {free}" for name, free in sorted(short.items()))
        return fail(f"few addresses are free: {listed}", "free some, or tag another subnet kubernetes.io/role/cni=1")
    if set(short) & used:
        return warn(
            f"few addresses are free in {', '.join(sorted(set(short) & used))}", "add a subnet before it is full"
        )
    return ok("; ".join(f"{free} addresses are free in {name}" for name, free in sorted(subnets.items())))


def leaked_enis(facts: Facts) -> Judgement:
    """No ENI of ours is attached to nothing."""
    leaked = None if facts.cloud is None else facts.cloud.leaked
    if leaked is None:
        return skip("EC2 was not asked for leaked ENIs")
    if leaked:
        return warn(
            f"{len(leaked)} ENIs made for nodes are attached to nothing: {', '.join(leaked[:5])}",
            "those proven leaked are deleted within the hour; set CLUSTER_NAME, or delete them by hand",
            enis=len(leaked),
        )
    return ok("no ENI is left behind")


def delete_on_termination(facts: Facts) -> Judgement:
    """Every ENI goes with its instance."""
    stay = [eni.eni_id for eni in facts.node.enis if eni.managed and not eni.delete_on_termination]
    if stay:
        return warn(
            f"{', '.join(stay)} will stay when the instance is terminated",
            "the agent puts it right when ec2:ModifyNetworkInterfaceAttribute is allowed; for the primary ENI: launch"
            " template",
        )
    return ok("every ENI goes with its instance")


def security_groups(facts: Facts) -> Judgement:
    """Every ENI has the primary ENI's security groups."""
    if not facts.node.follows_groups:
        return skip("custom networking gives ENIs groups of their own")
    primary = next((eni for eni in facts.node.enis if eni.is_primary), None)
    if primary is None:
        return skip("the primary ENI has not been described yet")
    others = [
        eni.eni_id
        for eni in facts.node.enis
        if eni.managed and set(eni.security_groups) != set(primary.security_groups)
    ]
    if others:
        return warn(
            f"{', '.join(others)} have other security groups than the primary ENI",
            "the agent follows the primary ENI within minutes if ec2:ModifyNetworkInterfaceAttribute is allowed",
        )
    return ok(f"all ENIs have {len(primary.security_groups)} security groups in common")


def prefix_delegation(facts: Facts) -> Judgement:
    """The instance type can have prefixes, if they are wanted."""
    if not facts.node.prefix_delegation:
        return ok("prefixes are not asked for")
    if not facts.node.is_nitro:
        return fail("ENABLE_PREFIX_DELEGATION is on and this type takes no prefixes", "use a Nitro instance type")
    return ok("this instance type takes prefixes")


def max_pods(facts: Facts) -> Judgement:
    """kubelet takes no more pods than have addresses."""
    wanted, capacity = facts.node.max_pods, facts.node.capacity
    if wanted is None or capacity is None:
        return skip("kubelet's max pods are not known")
    if wanted > capacity:
        return fail(
            f"kubelet takes {wanted} pods and the node can give {capacity} an address",
            f"kubelet --max-pods={capacity}, or ENABLE_PREFIX_DELEGATION=true",
            max_pods=wanted,
            capacity=capacity,
        )
    return ok(f"kubelet takes {wanted} pods, the node has room for {capacity}")


def kubernetes(facts: Facts) -> Judgement:
    """The API server answers."""
    if not facts.node.kubernetes_configured:
        return skip("Kubernetes is not configured")
    if facts.node.kubernetes:
        return warn(f"Kubernetes: {facts.node.kubernetes}", "pods start all the same; see the runbook by its cause")
    return ok("the API server answers")


CHECKS = {
    "agent_ready": agent_ready,
    "loops": loops,
    "pool_troubles": pool_troubles,
    "quarantine": quarantine,
    "imds": imds,
    "imds_hop_limit": hop_limit,
    "ec2_reachable": ec2_reachable,
    "iam": iam,
    "clock": clock,
    "subnet_addresses": subnet_addresses,
    "leaked_enis": leaked_enis,
    "delete_on_termination": delete_on_termination,
    "security_groups": security_groups,
    "prefix_delegation": prefix_delegation,
    "max_pods": max_pods,
    "kubernetes": kubernetes,
}
