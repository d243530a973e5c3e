"""What a cluster says, as the pool takes it. Pure."""

from __future__ import annotations

from agent.errors import AgentError
from agent.ipam.plan import EniSite, Surroundings
from agent.ports.cluster import Cluster, Site


def surroundings(cluster: Cluster) -> Surroundings:
    """What is known of this node now."""
    site = cluster.site()
    place = EniSite(subnet_id=site.subnet_id, security_groups=site.security_groups) if isinstance(site, Site) else None
    return Surroundings(
        announced=frozenset(cluster.announced()),
        is_schedulable=cluster.schedulable,
        max_pods=cluster.max_pods,
        site=place,
        site_problem=site if isinstance(site, AgentError) else None,
    )
