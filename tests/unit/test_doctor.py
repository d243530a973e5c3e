"""Every check of `/v1/doctor`: what is well is ok, and what is broken is found by its check, and by it alone."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from agent.datapath.survey import foreign_marks
from agent.doctor import checks
from agent.doctor.collect import Places, host_facts, mac_policy, networkd_settings
from agent.doctor.facts import EniFacts, Facts, HostFacts, NodeFacts, Verdict
from agent.installation.conflist import FILE_NAME, network_configuration
from agent.surveyed import ChainFacts, CloudFacts, KernelFacts, LinkFacts, RuleFacts

PRIMARY = EniFacts(
    eni_id="eni-1",
    mac="0e:00:00:00:00:01",
    is_primary=True,
    managed=True,
    is_set_up=True,
    delete_on_termination=True,
    security_groups=("sg-1",),
    subnet_id="subnet-1",
)
SECOND = replace(PRIMARY, eni_id="eni-2", mac="0e:00:00:00:00:02", is_primary=False)
ETH0 = LinkFacts(
    ifname="eth0",
    kind="",
    mac=PRIMARY.mac,
    mtu=9001,
    alias="",
    is_ours=False,
    is_leaving=False,
    route_count=0,
    address_assigned=0,
)
ETH1 = replace(ETH0, ifname="eth1", mac=SECOND.mac)
VETH = replace(
    ETH0, ifname="eni0123456789a", kind="veth", mac="02:00:00:00:00:09", is_ours=True, route_count=1, address_assigned=3
)
RULE = RuleFacts(pref=1536, table_id=2, mark=2, mark_mask=0x3F, is_ours=True)
HOST = HostFacts(
    sysctls={
        "ipv4/ip_forward": 1,
        "ipv4/tcp_early_demux": 1,
        "ipv4/conf/all/rp_filter": 0,
        "ipv4/conf/eth0/rp_filter": 2,
        "ipv6/conf/eth0/accept_ra": 2,
        "ipv6/conf/eth0/forwarding": 1,
    },
    networkd={"ManageForeignRoutingPolicyRules": "no", "ManageForeignRoutes": "no"},
    networkd_runs=True,
    mac_policy="persistent",
    nm_cloud_setup=False,
    open_files=40,
    open_files_limit=65536,
    log_disk=("/var/log/aws-routed-eni", 8 << 30, 16 << 30),
    socket_mode=0o600,
    socket_uid=0,
    conf_directory="/host/etc/cni/net.d",
    conf_files=(FILE_NAME, "10-aws.conflist"),
    conflist_as_ours=True,
    plugin="/host/opt/cni/bin/enoki",
    plugin_mode=0o100755,
    netns_visible=True,
    pod_mtu=9001,
)
KERNEL = KernelFacts(
    links=(ETH0, ETH1, VETH),
    rules=(RULE, RuleFacts(pref=32766, table_id=254, mark=0, mark_mask=0, is_ours=False)),
    chains=(ChainFacts(family="ip", table="filter", name="FORWARD", hook="forward", policy="accept"),),
    features={"nft fib": True, "tbf": None},
    foreign_marks=(),
    foreign_routes={20512: 0, 2: 0},
    has_table=True,
    legacy_tables=(),
)
CLOUD = CloudFacts(
    reachable="",
    permissions={"CreateNetworkInterface": "", "AttachNetworkInterface": ""},
    unknown=(),
    hop_limit=2,
    skew_s=0.4,
    leaked=(),
    subnets={"subnet-1": 200},
)
NODE = NodeFacts(
    ready="",
    imds="",
    enis=(PRIMARY, SECOND),
    troubles=(),
    quarantined=(),
    capacity=29,
    max_pods=29,
    prefix_delegation=True,
    is_nitro=True,
    kubernetes_configured=True,
    kubernetes="",
    follows_groups=True,
    failing_loops=(),
    primary_mark=0x80,
    eni_mtu=9001,
)
WELL = Facts(host=HOST, kernel=KERNEL, kernel_error="", cloud=CLOUD, node=NODE)


def host(**changes: Any) -> Facts:
    return replace(WELL, host=replace(HOST, **changes))


def sysctl(name: str, value: int) -> Facts:
    return host(sysctls={**HOST.sysctls, name: value})


def kernel(**changes: Any) -> Facts:
    return replace(WELL, kernel=replace(KERNEL, **changes))


def cloud(**changes: Any) -> Facts:
    return replace(WELL, cloud=replace(CLOUD, **changes))


def node(**changes: Any) -> Facts:
    return replace(WELL, node=replace(NODE, **changes))


FAILING, WARNING = Verdict.FAILING, Verdict.WARNING
BROKEN: list[tuple[str, Verdict, Facts]] = [
    ("agent_ready", FAILING, node(ready="stage identity is failed: imds_unavailable: no answer")),
    ("loops", WARNING, node(failing_loops=("conflist: host_file_refused: no space",))),
    ("pool_troubles", WARNING, node(troubles=("grow: ec2_limit: full",))),
    ("quarantine", FAILING, node(quarantined=(IPv4Address("10.0.0.9"),))),
    ("imds", FAILING, node(imds="imds_unavailable: no answer")),
    ("imds_hop_limit", WARNING, cloud(hop_limit=1)),
    ("ec2_reachable", FAILING, cloud(reachable="ec2_unavailable: no answer")),
    ("iam", FAILING, cloud(permissions={"CreateNetworkInterface": "UnauthorizedOperation"})),
    ("iam", WARNING, cloud(unknown=("CreateNetworkInterface",))),
    ("clock", FAILING, cloud(skew_s=-400.0)),
    ("clock", WARNING, cloud(skew_s=45.0)),
    ("subnet_addresses", FAILING, cloud(subnets={"subnet-1": 3})),
    ("subnet_addresses", FAILING, cloud(subnets={})),
    ("subnet_addresses", WARNING, cloud(subnets={"subnet-1": 3, "subnet-2": 200})),
    ("leaked_enis", WARNING, cloud(leaked=("eni-9",))),
    ("delete_on_termination", WARNING, node(enis=(PRIMARY, replace(SECOND, delete_on_termination=False)))),
    ("security_groups", WARNING, node(enis=(PRIMARY, replace(SECOND, security_groups=("sg-2",))))),
    ("prefix_delegation", FAILING, node(is_nitro=False)),
    ("max_pods", FAILING, node(max_pods=110)),
    ("kubernetes", WARNING, node(kubernetes="kubernetes_denied: 403")),
    ("ip_forward", FAILING, sysctl("ipv4/ip_forward", 0)),
    ("rp_filter", FAILING, sysctl("ipv4/conf/eth0/rp_filter", 1)),
    ("accept_ra", WARNING, sysctl("ipv6/conf/eth0/accept_ra", 1)),
    ("tcp_early_demux", WARNING, sysctl("ipv4/tcp_early_demux", 0)),
    ("networkd_foreign_rules", FAILING, host(networkd={"ManageForeignRoutes": "no"})),
    ("networkd_foreign_routes", FAILING, host(networkd={"ManageForeignRoutingPolicyRules": "no"})),
    ("udev_mac_policy", FAILING, kernel(links=(ETH0, ETH1, replace(VETH, address_assigned=1)))),
    ("nm_cloud_setup", FAILING, host(nm_cloud_setup=True)),
    ("open_files", FAILING, host(open_files=60000)),
    ("open_files", WARNING, host(open_files_limit=1024)),
    ("log_disk", WARNING, host(log_disk=("/var/log", 1 << 20, 16 << 30))),
    ("socket_mode", FAILING, host(socket_mode=0o666)),
    ("socket_mode", FAILING, host(socket_uid=1000)),
    ("socket_mode", FAILING, host(socket_mode=None)),
    ("conflist", FAILING, host(conflist_as_ours=None)),
    ("conflist", WARNING, host(conflist_as_ours=False)),
    ("other_conflists", FAILING, host(conf_files=("00-calico.conflist", FILE_NAME))),
    ("plugin", FAILING, host(plugin_mode=None)),
    ("plugin", FAILING, host(plugin_mode=0o100644)),
    ("network_namespaces", FAILING, host(netns_visible=False)),
    (
        "forward_policy",
        FAILING,
        kernel(chains=(ChainFacts(family="ip", table="filter", name="FORWARD", hook="forward", policy="drop"),)),
    ),
    ("forward_policy", WARNING, kernel(legacy_tables=("filter",))),
    (
        "mark_bits",
        FAILING,
        kernel(rules=(RULE, RuleFacts(pref=30000, table_id=99, mark=0x80, mark_mask=0xFF, is_ours=False))),
    ),
    ("mark_bits", FAILING, kernel(foreign_marks=("ip mangle: meta mark set 0x1",))),
    ("table_ids", FAILING, kernel(foreign_routes={20512: 1})),
    (
        "rule_order",
        WARNING,
        kernel(rules=(RULE, RuleFacts(pref=100, table_id=52, mark=0, mark_mask=0, is_ours=False))),
    ),
    ("orphaned_rules", WARNING, kernel(rules=(RULE, replace(RULE, table_id=3, mark=3)))),
    ("orphaned_links", WARNING, kernel(links=(ETH0, ETH1, replace(VETH, route_count=0)))),
    ("nft_table", FAILING, kernel(has_table=False)),
    ("mtu", FAILING, kernel(links=(replace(ETH0, mtu=1500), ETH1, VETH))),
    ("mtu", FAILING, kernel(links=(ETH0, ETH1, replace(VETH, mtu=9216)))),
    ("eni_links", FAILING, kernel(links=(ETH0, VETH))),
    ("kernel_features", FAILING, kernel(features={"nft fib": False})),
]


def test_a_node_that_is_well() -> None:
    found = checks.examine(WELL)
    assert {one.name: one.judgement.message for one in found if one.judgement.verdict is not Verdict.OK} == {}
    assert checks.worst(found) is Verdict.OK
    assert [one.name for one in found] == list(checks.NAMES)
    assert len(set(checks.NAMES)) >= 40
    assert all(one.title for one in found)


@pytest.mark.parametrize(("name", "verdict", "facts"), BROKEN, ids=[f"{name}-{verdict}" for name, verdict, _ in BROKEN])
def test_what_is_broken_is_found_by_its_check_alone(name: str, verdict: Verdict, facts: Facts) -> None:
    found = {one.name: one.judgement for one in checks.examine(facts)}
    assert (found[name].verdict, bool(found[name].fix)) == (verdict, True)
    unwell = {other for other, one in found.items() if one.verdict in {Verdict.FAILING, Verdict.WARNING}}
    assert unwell == {name}
    assert checks.worst(tuple(checks.examine(facts))) is verdict


def test_every_check_is_broken_by_some_test() -> None:
    assert {name for name, _, _ in BROKEN} == set(checks.NAMES)


def test_what_cannot_be_seen_is_skipped_and_not_guessed() -> None:
    blind = replace(
        HOST,
        sysctls={},
        networkd=None,
        networkd_runs=None,
        mac_policy=None,
        nm_cloud_setup=None,
        log_disk=None,
        conf_directory="",
        conf_files=None,
        plugin="",
    )
    unknown = replace(NODE, max_pods=None, capacity=None, kubernetes_configured=False)
    found = checks.examine(replace(WELL, host=blind, cloud=None, node=unknown))
    skipped = {one.name for one in found if one.judgement.verdict is Verdict.SKIPPED}
    assert skipped >= {"ip_forward", "networkd_foreign_rules", "iam", "clock", "max_pods", "conflist", "plugin"}
    assert checks.worst(found) is Verdict.OK


def test_a_kernel_that_cannot_be_read_fails_its_checks() -> None:
    found = checks.examine(replace(WELL, kernel=None, kernel_error="kernel_refused: EPERM"))
    assert {one.name for one in found if one.judgement.verdict is Verdict.FAILING} >= {"nft_table", "kernel_features"}


def test_networkds_files(tmp_path: Path) -> None:
    assert networkd_settings(tmp_path) is None
    (tmp_path / "etc/systemd/networkd.conf.d").mkdir(parents=True)
    (tmp_path / "usr/lib/systemd/networkd.conf.d").mkdir(parents=True)
    (tmp_path / "etc/systemd/networkd.conf").write_text("[Network]\n#ManageForeignRoutes=yes\nSpeedMeter=no\n")
    (tmp_path / "usr/lib/systemd/networkd.conf.d/80-ec2.conf").write_text("[Network]\nManageForeignRoutes=no\n")
    assert networkd_settings(tmp_path) == {"SpeedMeter": "no", "ManageForeignRoutes": "no"}
    (tmp_path / "etc/systemd/networkd.conf.d/80-ec2.conf").write_text("[Network]\nManageForeignRoutes=yes\n")
    assert networkd_settings(tmp_path) == {"SpeedMeter": "no", "ManageForeignRoutes": "yes"}


def test_udevs_link_files(tmp_path: Path) -> None:
    assert mac_policy(tmp_path) is None
    (tmp_path / "usr/lib/systemd/network").mkdir(parents=True)
    (tmp_path / "etc/systemd/network").mkdir(parents=True)
    default = "[Match]\nOriginalName=*\n[Link]\nMACAddressPolicy=persistent\n"
    (tmp_path / "usr/lib/systemd/network/99-default.link").write_text(default)
    assert mac_policy(tmp_path) == "persistent"
    (tmp_path / "etc/systemd/network/10-enoki.link").write_text(
        "[Match]\nOriginalName=eni*\n[Link]\nMACAddressPolicy=none\n"
    )
    assert mac_policy(tmp_path) == "none"


def places(root: Path) -> Places:
    return Places(
        socket=root / "agent.sock",
        conf_directory=root / "net.d",
        plugin_directory=root / "bin",
        sysctl_directory=Path("/proc/sys/net"),
        log_directories=(root,),
        cni_version="1.0.0",
        pod_mtu=9001,
        root=root,
    )


def test_what_the_mounts_of_the_manifests_show(tmp_path: Path) -> None:
    """/etc/systemd, /usr/lib/systemd and /run/systemd/netif below one root, and nothing else of the host."""
    unseen = host_facts(places(tmp_path), [])
    assert (unseen.networkd_runs, unseen.mac_policy, unseen.nm_cloud_setup) == (None, None, None)
    skipped = {one.name: one.judgement for one in checks.examine(replace(WELL, host=unseen))}
    for name in ("networkd_foreign_rules", "networkd_foreign_routes", "udev_mac_policy", "nm_cloud_setup"):
        assert skipped[name].verdict is Verdict.SKIPPED
        assert "on the node, " in skipped[name].message

    for directory in ("etc/systemd/system/multi-user.target.wants", "usr/lib/systemd", "run/systemd/netif/links"):
        (tmp_path / directory).mkdir(parents=True)
    bare = host_facts(places(tmp_path), [])
    assert (bare.networkd, bare.networkd_runs, bare.mac_policy, bare.nm_cloud_setup) == (None, False, "none", False)

    (tmp_path / "run/systemd/netif/state").touch()
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    (wants / "nm-cloud-setup.timer").symlink_to("/usr/lib/systemd/system/nm-cloud-setup.timer")  # not there in a pod
    default = host_facts(places(tmp_path), [])
    found = {one.name: one.judgement.verdict for one in checks.examine(replace(WELL, host=default))}
    for name in ("networkd_foreign_rules", "networkd_foreign_routes", "nm_cloud_setup"):
        assert found[name] is Verdict.FAILING, name


def test_files_and_limits_of_this_process(tmp_path: Path) -> None:
    conf, plugins, socket = tmp_path / "net.d", tmp_path / "bin", tmp_path / "agent.sock"
    conf.mkdir()
    plugins.mkdir()
    socket.touch(0o600)
    (conf / FILE_NAME).write_bytes(network_configuration("1.0.0"))
    (plugins / "enoki").touch(0o755)
    found = host_facts(places(tmp_path), ["lo"])
    assert (found.conflist_as_ours, found.socket_mode, found.plugin_mode) == (True, 0o600, 0o100755)
    assert found.sysctls["ipv4/conf/lo/rp_filter"] in {0, 1, 2}
    assert 0 < found.open_files < found.open_files_limit
    assert found.log_disk is not None
    (conf / FILE_NAME).write_text("{}")
    assert host_facts(places(tmp_path), []).conflist_as_ours is False


@pytest.mark.parametrize(
    ("rule", "conflicts"),
    [
        ("meta mark set meta mark or 0x00004000", False),  # kube-proxy
        ("meta mark set mark or 0x8000", False),
        ("meta mark set mark and 0xffffff7f", True),
        ("meta mark set 0x00000001", True),
        ("ct mark set mark or 0x00000080", True),
        ("meta mark set mark and 0xffffbfff", False),
        ("ip daddr 10.0.0.0/8 accept", False),
    ],
)
def test_rules_of_others_that_set_our_bits(rule: str, conflicts: bool) -> None:  # noqa: FBT001
    ruleset = f"table ip other {{\n\tchain c {{\n\t\t{rule}\n\t}}\n}}\ntable inet enoki {{\n\t\tmeta mark set 0x1\n}}\n"
    assert bool(list(foreign_marks(ruleset))) is conflicts
