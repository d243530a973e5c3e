"""Pure: the host's files, limits and settings."""

from __future__ import annotations

from agent.doctor.facts import Facts, Judgement, Verdict

UNSEEN = "the agent does not see the host's files (ENOKI_HOST_ROOT)"
FREE_DISK_BYTES = 256 * 1024 * 1024
"""Four times what the log and its predecessors take."""
OPEN_FILES_LEAST = 4096
"""Connections, sockets and pidfds of a busy node take some hundred; a runtime's default of 1024 leaves no room."""


def ok(message: str, **evidence: str | int | float) -> Judgement:
    return Judgement(verdict=Verdict.OK, message=message, evidence=evidence)


def warn(message: str, fix: str, **evidence: str | int | float) -> Judgement:
    return Judgement(verdict=Verdict.WARNING, message=message, fix=fix, evidence=evidence)


def fail(message: str, fix: str, **evidence: str | int | float) -> Judgement:
    return Judgement(verdict=Verdict.FAILING, message=message, fix=fix, evidence=evidence)


def skip(message: str) -> Judgement:
    return Judgement(verdict=Verdict.SKIPPED, message=message)


def ip_forward(facts: Facts) -> Judgement:
    """The kernel forwards packets between pods and ENIs."""
    value = facts.host.sysctls.get("ipv4/ip_forward")
    if value is None:
        return skip("net.ipv4.ip_forward cannot be read")
    if value != 1:
        return fail("net.ipv4.ip_forward is 0: no packet of a pod leaves the node", "sysctl -w net.ipv4.ip_forward=1")
    return ok("net.ipv4.ip_forward is 1")


def rp_filter(facts: Facts) -> Judgement:
    """Reverse path filtering is not strict where replies come back by another ENI."""
    strict = [
        name.split("/")[2]
        for name, value in facts.host.sysctls.items()
        if name.startswith("ipv4/conf/") and name.endswith("/rp_filter") and value == 1
    ]
    # The larger of `all` and the link's own counts (kernel, ip-sysctl).
    if "all" in strict:
        return (
            ok("net.ipv4.conf.all.rp_filter is 1, and every ENI's is 2, which counts more")
            if not (set(strict) - {"all"})
            else fail(
                f"rp_filter is 1 (strict) on {', '.join(sorted(set(strict) - {'all'}))}",
                "set it to 2 (loose): sysctl -w net.ipv4.conf.<link>.rp_filter=2, and find what sets it to 1",
            )
        )
    if strict:
        return fail(
            f"rp_filter is 1 (strict) on {', '.join(sorted(strict))}: answers that return by another ENI are dropped",
            "set it to 2 (loose): sysctl -w net.ipv4.conf.<link>.rp_filter=2, and find what sets it to 1",
        )
    return ok("no ENI filters strictly by reverse path")


def accept_ra(facts: Facts) -> Judgement:
    """With forwarding, the kernel takes router advertisements only when accept_ra is 2."""
    values = {name: value for name, value in facts.host.sysctls.items() if name.endswith("/accept_ra")}
    if not values:
        return skip("the kernel has no IPv6")
    lost = [
        name.split("/")[2]
        for name, value in values.items()
        if value == 1 and facts.host.sysctls.get(name.replace("accept_ra", "forwarding")) == 1
    ]
    if lost:
        return warn(
            f"IPv6 forwarding is on and accept_ra is 1 on {', '.join(lost)}: its IPv6 default route will expire",
            "sysctl -w net.ipv6.conf.<link>.accept_ra=2",
        )
    return ok("router advertisements are taken as they were configured")


def tcp_early_demux(facts: Facts) -> Judgement:
    """Early demux finds a socket before our rules see the mark: strict branch ENIs need it off."""
    value = facts.host.sysctls.get("ipv4/tcp_early_demux")
    if value is None:
        return skip("net.ipv4.tcp_early_demux cannot be read")
    if value == 0:
        return warn(
            "net.ipv4.tcp_early_demux is 0, which only kubelet's probes of pods with branch ENIs need; it costs CPU",
            "sysctl -w net.ipv4.tcp_early_demux=1, unless pods have security groups of their own in strict mode",
        )
    return ok("net.ipv4.tcp_early_demux is on")


def networkd_rules(facts: Facts) -> Judgement:
    """systemd-networkd leaves policy rules alone that it did not make."""
    return _networkd(facts, "ManageForeignRoutingPolicyRules", "policy rules")


def networkd_routes(facts: Facts) -> Judgement:
    """systemd-networkd leaves routes alone that it did not make."""
    return _networkd(facts, "ManageForeignRoutes", "routes")


def _networkd(facts: Facts, key: str, what: str) -> Judgement:
    host = facts.host
    if host.networkd_runs is None:
        return skip(f"{UNSEEN}: on the node, systemd-analyze cat-config systemd/networkd.conf must say {key}=no")
    if not host.networkd_runs:
        return ok("systemd-networkd has not run since the host's start")
    if (host.networkd or {}).get(key, "yes").lower() in {"yes", "true", "1", "on"}:
        return fail(
            f"systemd-networkd removes {what} of others whenever it restarts ({key} is not off)",
            f"write [Network] {key}=no to /etc/systemd/networkd.conf.d/80-enoki.conf; restart systemd-networkd",
        )
    return ok(f"systemd-networkd leaves {what} of others alone")


def mac_policy(facts: Facts) -> Judgement:
    """udev leaves the MACs of our links alone."""
    if facts.host.mac_policy is None:
        return skip(f"{UNSEEN}: on the node, grep -r MACAddressPolicy /etc/systemd/network /usr/lib/systemd/network")
    links = () if facts.kernel is None else facts.kernel.links
    random = [link.ifname for link in links if link.is_ours and link.address_assigned == 1]
    if facts.host.mac_policy == "persistent" and random:
        return fail(
            f"udev's MACAddressPolicy is persistent, and the MAC of {', '.join(random[:5])} was not set by us",
            "write /etc/systemd/network/10-enoki.link with [Match] OriginalName=eni* and [Link] MACAddressPolicy=none",
            links=len(random),
        )
    return ok(f"udev's MACAddressPolicy is {facts.host.mac_policy}, and our links' MACs are set when they are made")


def nm_cloud_setup(facts: Facts) -> Judgement:
    """NetworkManager's nm-cloud-setup, which clears rules and moves routes, is not enabled."""
    if facts.host.nm_cloud_setup is None:
        return skip(f"{UNSEEN}: on the node, systemctl is-enabled nm-cloud-setup.timer")
    if facts.host.nm_cloud_setup:
        return fail(
            "nm-cloud-setup is enabled: it moves routes to tables of its own and clears rules",
            "systemctl disable --now nm-cloud-setup.timer nm-cloud-setup.service, then reboot",
        )
    return ok("nm-cloud-setup is not enabled")


def open_files(facts: Facts) -> Judgement:
    """The agent may open enough files."""
    host = facts.host
    evidence = {"open": host.open_files, "limit": host.open_files_limit}
    if host.open_files * 5 > host.open_files_limit * 4:
        return fail("more than four fifths of the open files allowed are in use", "raise LimitNOFILE", **evidence)
    if host.open_files_limit < OPEN_FILES_LEAST:
        return warn(f"at most {host.open_files_limit} files may be open", "raise LimitNOFILE to 65536", **evidence)
    return ok(f"{host.open_files} of {host.open_files_limit} files are open", **evidence)


def log_disk(facts: Facts) -> Judgement:
    """There is room for the log and the events."""
    if facts.host.log_disk is None:
        return skip("nothing is written to disk")
    directory, free, whole = facts.host.log_disk
    if free < FREE_DISK_BYTES:
        return warn(
            f"{free // 1048576} MiB are free for {directory}",
            "free some, or unset AWS_VPC_K8S_CNI_LOG_FILE and ENOKI_EVENT_LOG_DIRECTORY",
            free_bytes=free,
            all_bytes=whole,
        )
    return ok(f"{free // 1048576} MiB are free for {directory}", free_bytes=free)


def socket_mode(facts: Facts) -> Judgement:
    """Only root may open the agent's socket."""
    mode, uid = facts.host.socket_mode, facts.host.socket_uid
    if mode is None:
        return fail("the agent's socket is not where the settings say", "restart the agent; look who removes it")
    if mode & 0o077 or uid != 0:
        return fail(
            f"the agent's socket has mode {mode:o} and belongs to user {uid}: others may open it",
            "chmod 600 and chown root; for readers set ENOKI_READERS_SOCKET",
        )
    return ok("only root may open the agent's socket")


def conflist(facts: Facts) -> Judgement:
    """The runtime finds our network configuration."""
    host = facts.host
    if not host.conf_directory:
        return skip("HOST_CNI_CONFDIR_PATH is not set: somebody else writes the network configuration")
    if host.conf_files is None:
        return fail(f"{host.conf_directory} cannot be read", "mount the host's /etc/cni/net.d there")
    if host.conflist_as_ours is None:
        if facts.node.ready:
            return warn("the network configuration is not there while the agent starts", "wait for the agent")
        return fail(f"05-enoki.conflist is missing in {host.conf_directory}", "see explain node, loop conflist")
    if not host.conflist_as_ours:
        return warn("05-enoki.conflist is not as the agent writes it", "remove it: the agent writes it again in 10 s")
    return ok(f"05-enoki.conflist is in {host.conf_directory}")


def other_conflists(facts: Facts) -> Judgement:
    """No other network configuration comes first."""
    files = facts.host.conf_files
    if files is None:
        return skip("the runtime's configuration directory is not visible")
    first = [name for name in files if name < "05-enoki.conflist" and name.endswith((".conf", ".conflist", ".json"))]
    if [name for name in first if "multus" not in name]:
        return fail(f"{first[0]} comes before ours: the runtime uses it", f"remove {first[0]}, or rename it")
    others = [name for name in files if name not in {*first, "05-enoki.conflist"}]
    return ok("ours comes first" + (f"; also there: {', '.join(others[:5])}" if others else ""))


def plugin(facts: Facts) -> Judgement:
    """The plugin's executable is in place."""
    mode = facts.host.plugin_mode
    if not facts.host.plugin:
        return skip("the agent does not see the host's plugin directory: on the node, ls -l /opt/cni/bin/enoki")
    if mode is None:
        return fail(f"{facts.host.plugin} is missing: the runtime cannot call us", "run the agent's init container")
    if not mode & 0o111 or mode & 0o022:
        return fail(f"{facts.host.plugin} has mode {mode & 0o7777:o}", f"chmod 755 {facts.host.plugin}")
    return ok(f"{facts.host.plugin} is there")


def network_namespaces(facts: Facts) -> Judgement:
    """The agent sees the runtime's network namespaces."""
    if not facts.host.netns_visible:
        return fail(
            "/run/netns is not visible: no pod's namespace can be entered",
            "mount the host's /run/netns with propagation HostToContainer",
        )
    return ok("the runtime's network namespaces are visible")


CHECKS = {
    "ip_forward": ip_forward,
    "rp_filter": rp_filter,
    "accept_ra": accept_ra,
    "tcp_early_demux": tcp_early_demux,
    "networkd_foreign_rules": networkd_rules,
    "networkd_foreign_routes": networkd_routes,
    "udev_mac_policy": mac_policy,
    "nm_cloud_setup": nm_cloud_setup,
    "open_files": open_files,
    "log_disk": log_disk,
    "socket_mode": socket_mode,
    "conflist": conflist,
    "other_conflists": other_conflists,
    "plugin": plugin,
    "network_namespaces": network_namespaces,
}
