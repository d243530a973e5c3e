"""The environment as settings: defaults, the AWS plugin's spellings, refusals, provenance, documentation."""

from __future__ import annotations

import json
import logging
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from agent.datapath.policy import DatapathPolicy, SnatPort
from agent.settings import NOT_HONOURED, LogLevel, Provenance, Settings, SettingsInvalid, documented, load
from scripts.configuration import TARGET, render


def test_nothing_set_gives_the_documented_defaults() -> None:
    settings = load({})
    assert settings == Settings(
        warm_eni_target=1,
        warm_ip_target=0,
        minimum_ip_target=0,
        prefix_delegation=False,
        warm_prefix_target=1,
        max_eni=None,
        pod_eni=False,
        custom_networking=False,
        ip_cooldown_s=30,
        settle_addresses_s=600,
        settle_enis_s=900,
        socket=Path("/run/enoki/agent.sock"),
        add_deadline_s=20,
        host_bin_directory=Path("/host/opt/cni/bin"),
        host_conf_directory=None,
        cni_version="1.0.0",
        sysctl_directory=Path("/proc/sys/net"),
        host_root=Path("/"),
        eni_mtu=9001,
        pod_mtu=9001,
        veth_prefix="eni",
        external_snat=False,
        randomize_snat=SnatPort.FULLY_RANDOM,
        exclude_snat_cidrs=(),
        node_port_support=True,
        external_service_cidrs=(),
        connmark=0x80,
        names_directory=Path("/etc/iproute2"),
        manage_untagged_eni=True,
        additional_eni_tags=(),
        cluster_name="",
        subnet_discovery=True,
        disable_leaked_eni_cleanup=False,
        disable_provisioning=False,
        imds_only=False,
        manage_non_schedulable=False,
        imds_endpoint="http://169.254.169.254",
        node_name="",
        pod_name="",
        kubeconfig=None,
        kubernetes_service_host="",
        kubernetes_service_port="",
        cluster_endpoint="",
        annotate_pod_ip=False,
        eni_config_annotation="k8s.amazonaws.com/eniConfig",
        eni_config_label="k8s.amazonaws.com/eniConfig",
        log_level=LogLevel.INFO,
        log_file=None,
        event_log_directory=None,
        readers_socket=None,
        readers_group_id=0,
        disable_introspection=True,
        introspection_address=("127.0.0.1", 61679),
        disable_metrics=True,
        dev_http=None,
        dev_http_allow=(),
        provenance={one.setting.name: Provenance.DEFAULT for one in documented()},
        notices=(),
    )


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("WARM_ENI_TARGET", "0", "warm_eni_target", 0),
        ("WARM_IP_TARGET", "+5", "warm_ip_target", 5),
        ("MINIMUM_IP_TARGET", "007", "minimum_ip_target", 7),
        ("MAX_ENI", "4", "max_eni", 4),
        ("MAX_ENI", "0", "max_eni", None),
        ("MAX_ENI", "-1", "max_eni", None),
        ("IP_COOLDOWN_PERIOD", "0", "ip_cooldown_s", 0),
        ("ENOKI_SETTLE_ADDRESSES_S", "1", "settle_addresses_s", 1),
        ("ENOKI_SETTLE_ENIS_S", "2", "settle_enis_s", 2),
        ("ENOKI_SOCKET", "/run/enoki/node-0/agent.sock", "socket", Path("/run/enoki/node-0/agent.sock")),
        ("AWS_VPC_CNI_NODE_PORT_SUPPORT", "f", "node_port_support", False),
        ("AWS_EXTERNAL_SERVICE_CIDRS", "192.0.2.0/24", "external_service_cidrs", (IPv4Network("192.0.2.0/24"),)),
        ("AWS_VPC_K8S_CNI_CONNMARK", "0x10000", "connmark", 0x10000),
        ("AWS_VPC_K8S_CNI_CONNMARK", "128", "connmark", 0x80),
        ("AWS_VPC_K8S_CNI_CONNMARK", "0200", "connmark", 0x80),
        ("ENOKI_ADD_DEADLINE_S", "300", "add_deadline_s", 300),
        ("HOST_CNI_BIN_PATH", "/opt/cni/bin", "host_bin_directory", Path("/opt/cni/bin")),
        ("HOST_CNI_CONFDIR_PATH", "/etc/cni/net.d", "host_conf_directory", Path("/etc/cni/net.d")),
        ("ENOKI_CNI_VERSION", "0.4.0", "cni_version", "0.4.0"),
        ("ENOKI_SYSCTL_DIRECTORY", "/host/proc/sys/net", "sysctl_directory", Path("/host/proc/sys/net")),
        ("ENOKI_NAMES_DIRECTORY", "/host/etc/iproute2", "names_directory", Path("/host/etc/iproute2")),
        ("AWS_VPC_ENI_MTU", "1500", "eni_mtu", 1500),
        ("POD_MTU", "1400", "pod_mtu", 1400),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "ethx", "veth_prefix", "ethx"),
        ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "t", "external_snat", True),
        ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "F", "external_snat", False),
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "hashrandom", "randomize_snat", SnatPort.HASHED),
        (
            "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS",
            "10.1.2.3/16, 192.168.0.0/24,",
            "exclude_snat_cidrs",
            (IPv4Network("10.1.0.0/16"), IPv4Network("192.168.0.0/24")),
        ),
        ("MANAGE_UNTAGGED_ENI", "FALSE", "manage_untagged_eni", False),
        ("ADDITIONAL_ENI_TAGS", '{"team": "net", "x": ""}', "additional_eni_tags", (("team", "net"), ("x", ""))),
        ("CLUSTER_NAME", "blue", "cluster_name", "blue"),
        ("ENABLE_SUBNET_DISCOVERY", "0", "subnet_discovery", False),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://[fd00:ec2::254]/", "imds_endpoint", "http://[fd00:ec2::254]/"),
        ("AWS_VPC_K8S_CNI_LOGLEVEL", "Warn", "log_level", LogLevel.WARN),
        ("MY_NODE_NAME", "ip-10-0-0-7.ec2.internal", "node_name", "ip-10-0-0-7.ec2.internal"),
        ("KUBECONFIG", "/root/.kube/config", "kubeconfig", Path("/root/.kube/config")),
        ("KUBERNETES_SERVICE_HOST", "fd00::1", "kubernetes_service_host", "fd00::1"),
        ("CLUSTER_ENDPOINT", "https://api.example:6443", "cluster_endpoint", "https://api.example:6443"),
        ("ENI_CONFIG_LABEL_DEF", "topology.kubernetes.io/zone", "eni_config_label", "topology.kubernetes.io/zone"),
    ],
)
def test_a_value_is_parsed_and_known_to_come_from_the_environment(
    name: str, text: str, field: str, value: object
) -> None:
    settings = load({name: text})
    assert getattr(settings, field) == value
    assert {key for key, where in settings.provenance.items() if where is Provenance.ENVIRONMENT} == {name}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("WARM_ENI_TARGET", "-1"),
        ("WARM_IP_TARGET", "five"),
        ("WARM_IP_TARGET", "1_0"),
        ("WARM_IP_TARGET", " 1"),
        ("WARM_IP_TARGET", "٣"),
        ("MINIMUM_IP_TARGET", "1.0"),
        ("MAX_ENI", "all"),
        ("IP_COOLDOWN_PERIOD", "-1"),
        ("IP_COOLDOWN_PERIOD", "86401"),
        ("ENOKI_SOCKET", "agent.sock"),
        ("ENOKI_SOCKET", "/" + 107 * "x"),
        ("ENOKI_ADD_DEADLINE_S", "0"),
        ("AWS_VPC_ENI_MTU", "575"),
        ("POD_MTU", "9002"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "vlan"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "eth"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "lo"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "toolo"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "a/b"),
        ("AWS_VPC_K8S_CNI_VETHPREFIX", "eni\n"),
        ("AWS_VPC_K8S_CNI_EXTERNALSNAT", "yes"),
        ("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "PRNG"),
        ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "10.0.0.0/33"),
        ("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "fd00::/8"),
        ("MANAGE_UNTAGGED_ENI", "tRUE"),
        ("ADDITIONAL_ENI_TAGS", "team=net"),
        ("ADDITIONAL_ENI_TAGS", '["team"]'),
        ("ADDITIONAL_ENI_TAGS", '{"team": 1}'),
        ("ADDITIONAL_ENI_TAGS", '{"aws:team": "net"}'),
        ("ADDITIONAL_ENI_TAGS", '{"": "net"}'),
        ("ADDITIONAL_ENI_TAGS", json.dumps({str(n): "" for n in range(46)})),
        ("CLUSTER_NAME", 257 * "x"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "169.254.169.254"),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254/latest"),
        ("AWS_VPC_K8S_CNI_LOGLEVEL", "verbose"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_with_what_is(name: str, text: str) -> None:
    allowed = next(one.setting.kind.allowed for one in documented() if one.setting.name == name)
    with pytest.raises(SettingsInvalid) as refused:
        load({name: text})
    assert refused.value.problems == (f'{name} is "{text}"; allowed: {allowed}',)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SettingsInvalid) as refused:
        load({"WARM_IP_TARGET": "x", "ENOKI_SOCKET": "y", "POD_MTU": "1500"})
    assert [problem.split()[0] for problem in refused.value.problems] == ["WARM_IP_TARGET", "ENOKI_SOCKET"]


def test_empty_means_unset_for_every_setting() -> None:
    assert load({one.setting.name: "" for one in documented()} | dict.fromkeys(NOT_HONOURED, "")) == load({})


def test_pods_get_the_mtu_of_the_enis_unless_told_otherwise() -> None:
    assert load({"AWS_VPC_ENI_MTU": "1500"}).pod_mtu == 1500
    assert load({"AWS_VPC_ENI_MTU": "1500", "POD_MTU": "1400"}).pod_mtu == 1400


def test_settings_without_effect_are_named_in_one_notice() -> None:
    settings = load({"AWS_VPC_K8S_CNI_BACKING_STORE": "/x", "HTTP_TIMEOUT": "20", "UNKNOWN_NAME": "x"})
    [notice] = settings.notices
    assert notice.endswith("without effect in this version: AWS_VPC_K8S_CNI_BACKING_STORE=/x, HTTP_TIMEOUT=20")


def test_a_value_that_asks_for_what_happens_anyway_is_not_worth_a_notice() -> None:
    environ = {name: min(inert) for name, inert in NOT_HONOURED.items() if inert}
    assert load(environ).notices == ()
    assert load({"ENABLE_IPv4": "T", "ENABLE_IPv6": "0"}).notices == ()


def test_kubernetes_own_tag_keys_are_left_out_with_a_notice() -> None:
    settings = load({"ADDITIONAL_ENI_TAGS": '{"node.k8s.amazonaws.com/no_manage": "true", "team": "net"}'})
    assert settings.additional_eni_tags == (("team", "net"),)
    [notice] = settings.notices
    assert "node.k8s.amazonaws.com/no_manage" in notice


def test_no_name_is_both_a_setting_and_without_effect() -> None:
    names = [one.setting.name for one in documented()]
    assert len(set(names)) == len(names)
    assert not set(names) & NOT_HONOURED.keys()


def test_each_setting_explains_itself() -> None:
    # Every field but the two that are about the settings themselves.
    assert {one.field_name for one in documented()} == set(Settings.__slots__) - {"provenance", "notices"}
    assert all(one.doc.endswith((".", ".)")) for one in documented())


def test_the_page_in_docs_is_what_the_settings_say() -> None:
    assert TARGET.read_text(encoding="utf-8") == render(), "run python -m scripts.configuration --write"


@pytest.mark.parametrize("prefix", ["eni", "a", "e0", "ethx", "lo1"])
def test_the_datapath_takes_every_veth_prefix_that_is_allowed_here(prefix: str) -> None:
    assert DatapathPolicy(veth_prefix=load({"AWS_VPC_K8S_CNI_VETHPREFIX": prefix}).veth_prefix).veth_prefix == prefix


@pytest.mark.parametrize("level", LogLevel)
def test_every_log_level_is_one_that_logging_knows(level: LogLevel) -> None:
    assert level.value in logging.getLevelNamesMapping()


def test_the_command_line_counts_more_than_the_environment() -> None:
    settings = load({"ENOKI_DEV_HTTP": "127.0.0.1:80"}, {"ENOKI_DEV_HTTP": "[::1]:8080", "ENOKI_DEV_HTTP_ALLOW": ""})
    assert settings.dev_http == ("::1", 8080)
    assert settings.provenance["ENOKI_DEV_HTTP"] is Provenance.ARGUMENT
    assert settings.provenance["ENOKI_DEV_HTTP_ALLOW"] is Provenance.DEFAULT


def test_the_development_port_is_on_loopback_unless_forced() -> None:
    with pytest.raises(SettingsInvalid, match=r"ENOKI_DEV_HTTP is on 10\.0\.0\.4; allowed: loopback"):
        load({"ENOKI_DEV_HTTP": "10.0.0.4:8080"})
    forced = load({"ENOKI_DEV_HTTP": "10.0.0.4:8080", "ENOKI_DEV_HTTP_ALLOW": "writes, remote"})
    assert (forced.dev_http, forced.dev_http_allow) == (("10.0.0.4", 8080), ("remote", "writes"))
