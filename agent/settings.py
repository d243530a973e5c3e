"""The environment, read once, as one frozen `Settings`.

The names and meanings are those of the AWS VPC CNI plugin (v1.23) where it has a setting for the same thing, so that a
DaemonSet's `env` can move over unchanged; what is ours alone starts with `ENOKI_`. Three rules differ, on purpose:

- a value that is not allowed is refused at start, all of them at once, where the AWS plugin falls back to a default;
- an empty value means unset, for every setting (the AWS plugin is not consistent there);
- names of the AWS plugin that nothing here reads yet are reported, unless their value asks for what we do anyway.

The composition root turns `Settings` into the small policies of each part; nothing else sees it. Each field carries its
own documentation, from which scripts/configuration.py writes docs/configuration.md.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from agent.datapath.policy import SnatPort


class LogLevel(StrEnum):
    """Names that `logging.Logger.setLevel` takes."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"
    FATAL = "FATAL"


class Provenance(StrEnum):
    """Where the value of a setting comes from."""

    DEFAULT = "default"
    ENVIRONMENT = "environment"


class SettingsInvalid(Exception):
    """One or more settings have values that are not allowed.

    problems: one sentence per setting: name, value, what is allowed.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A set of allowed texts.

    parse: the value of a text; raises ValueError when the text is not allowed. Sees "" only as a default.
    allowed: completes the sentence "allowed: ...".
    """

    parse: Callable[[str], object]
    allowed: str


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known of one setting beside the type of its field.

    default: as a reader would write it in the environment; empty for unset.
    """

    name: str
    kind: Kind
    _: KW_ONLY
    default: str


# --- Parsing one value -----------------------------------------------------------------------------------------------

_GO_TRUE = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_GO_FALSE = frozenset({"0", "f", "F", "FALSE", "false", "False"})


def _boolean(text: str) -> bool:
    """Exactly the spellings of Go's strconv.ParseBool, which the AWS plugin uses."""
    if text in _GO_TRUE:
        return True
    if text in _GO_FALSE:
        return False
    raise ValueError(text)


def _integer(text: str) -> int:
    """As Go's strconv.Atoi: an optional sign and ASCII digits. Python's int() also takes spaces and underscores."""
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError(text)
    return int(text)


def _integers(low: int, high: int) -> Kind:
    def parse(text: str) -> int:
        value = _integer(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return Kind(parse=parse, allowed=f"an integer from {low} to {high}")


def _max_eni(text: str) -> int | None:
    value = _integer(text) if text else 0
    return value if value >= 1 else None


def _networks(text: str) -> tuple[IPv4Network, ...]:
    return tuple(IPv4Network(part.strip(), strict=False) for part in text.split(",") if part.strip())


def _tags(text: str) -> tuple[tuple[str, str], ...]:
    """EC2 user guide, "Tag restrictions": keys of 1 to 128 characters, values of up to 256; `aws:` is reserved."""
    found = json.loads(text)
    # An ENI takes 50 tags; five are kept for our own.
    if not isinstance(found, dict) or len(found) > 45:
        raise ValueError(text)
    for key, value in found.items():
        if not isinstance(value, str) or not 1 <= len(key) <= 128 or len(value) > 256 or key.startswith("aws:"):
            raise ValueError(text)
    return tuple(found.items())


def _matching(pattern: str, allowed: str) -> Kind:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)
        return text

    return Kind(parse=parse, allowed=allowed)


def _absolute_path(text: str) -> Path:
    if not text.startswith("/") or "\0" in text:
        raise ValueError(text)
    return Path(text)


def _socket_path(text: str) -> Path:
    # sockaddr_un.sun_path holds 108 bytes, the closing zero included (unix(7)).
    if not text.startswith("/") or len(text.encode()) > 107:
        raise ValueError(text)
    return Path(text)


_BOOLEAN = Kind(parse=_boolean, allowed="true or false")
_COUNT = _integers(0, 10_000)
_SECONDS = _integers(0, 86_400)
# 576: every IPv4 host takes that much (RFC 791); 9001: EC2's jumbo frames. The AWS plugin's range.
_MTU = _integers(576, 9001)
_MTU_OR_UNSET = Kind(parse=lambda text: _MTU.parse(text) if text else None, allowed=_MTU.allowed)
_MAX_ENI = Kind(parse=_max_eni, allowed="an integer; 0 or less is unset")
_RANDOMIZE_SNAT = Kind(parse=SnatPort, allowed="prng, hashrandom or none")
_NETWORKS = Kind(parse=_networks, allowed="IPv4 networks separated by commas")
_TAGS = Kind(
    parse=_tags,
    allowed="a JSON object of up to 45 tags, keys of 1 to 128 characters and not in aws:, texts of up to 256",
)
# `eth`, `lo` and `vlan` belong to links that are not ours; the AWS plugin refuses exactly these.
_VETH_PREFIX = _matching(
    "(?!(?:eth|lo|vlan)$)[a-z][a-z0-9]{0,3}",
    "1 to 4 lower-case letters and digits, a letter first, but not eth, lo or vlan",
)
_CLUSTER_NAME = _matching(".{0,256}", "a text of at most 256 characters")
_URL = _matching("https?://[^/\\s?#]+/?", "http:// or https:// and a host, perhaps a port")
_DIRECTORY = Kind(parse=_absolute_path, allowed="an absolute path")
_SOCKET_PATH = Kind(parse=_socket_path, allowed="an absolute path of at most 107 bytes")
_LOG_LEVEL = Kind(
    parse=lambda text: LogLevel(text.upper()), allowed="debug, info, warn, error or fatal, in upper or lower case"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every setting of the agent, with a value.

    provenance: where each value comes from, by the setting's environment name.
    notices: sentences for the log at start: names that are set and have no effect.
    """

    # The pool
    warm_eni_target: Annotated[
        int,
        Setting("WARM_ENI_TARGET", _COUNT, default="1"),
        "How many ENIs' worth of free addresses to hold. Used only while both IP targets are 0.",
    ]
    warm_ip_target: Annotated[
        int,
        Setting("WARM_IP_TARGET", _COUNT, default="0"),
        "How many free addresses to hold. 0 is unset. Overrides `WARM_ENI_TARGET`.",
    ]
    minimum_ip_target: Annotated[
        int,
        Setting("MINIMUM_IP_TARGET", _COUNT, default="0"),
        "How many addresses to hold at least, in use and free together. 0 is unset. Overrides `WARM_ENI_TARGET`.",
    ]
    max_eni: Annotated[
        int | None,
        Setting("MAX_ENI", _MAX_ENI, default=""),
        "The most ENIs to use, the primary included. Unset, or above it: the instance type's limit.",
    ]
    ip_cooldown_s: Annotated[
        int,
        Setting("IP_COOLDOWN_PERIOD", _SECONDS, default="30"),
        "Seconds before an address a pod gave back goes to another. Too short, and peers that still cache the "
        "old pod reach the new one; too long, and a busy node holds more addresses than it uses.",
    ]
    settle_addresses_s: Annotated[
        int,
        Setting("ENOKI_SETTLE_ADDRESSES_S", _SECONDS, default="600"),
        "Seconds an address above the targets must have been idle before EC2 gets it back. Above 300, a job "
        "that starts and ends every five minutes costs no EC2 call.",
    ]
    settle_enis_s: Annotated[
        int,
        Setting("ENOKI_SETTLE_ENIS_S", _SECONDS, default="900"),
        "Seconds an ENI above the targets must have been empty before it is detached and deleted.",
    ]
    # The CNI request
    socket: Annotated[
        Path,
        Setting("ENOKI_SOCKET", _SOCKET_PATH, default="/run/enoki/agent.sock"),
        "The Unix socket the agent listens on. The CNI plugin reads the same name.",
    ]
    add_deadline_s: Annotated[
        int,
        Setting("ENOKI_ADD_DEADLINE_S", _integers(1, 300), default="20"),
        "Seconds an ADD waits for an address before it answers with the reason. Keep it below the plugin's own limit.",
    ]
    # The datapath
    eni_mtu: Annotated[
        int,
        Setting("AWS_VPC_ENI_MTU", _MTU, default="9001"),
        "MTU of the ENIs' links, in bytes.",
    ]
    pod_mtu: Annotated[
        int,
        Setting("POD_MTU", _MTU_OR_UNSET, default=""),
        "MTU of pods' links, in bytes. Unset: `AWS_VPC_ENI_MTU`.",
    ]
    veth_prefix: Annotated[
        str,
        Setting("AWS_VPC_K8S_CNI_VETHPREFIX", _VETH_PREFIX, default="eni"),
        "What the names of pods' links on the host start with. Change it only on a node without pods.",
    ]
    external_snat: Annotated[
        bool,
        Setting("AWS_VPC_K8S_CNI_EXTERNALSNAT", _BOOLEAN, default="false"),
        "true: a NAT gateway translates what leaves the VPC, so the node does not.",
    ]
    randomize_snat: Annotated[
        SnatPort,
        Setting("AWS_VPC_K8S_CNI_RANDOMIZESNAT", _RANDOMIZE_SNAT, default="prng"),
        "How source NAT picks ports: fully random, random by hash, or the pod's own port when it is free.",
    ]
    exclude_snat_cidrs: Annotated[
        tuple[IPv4Network, ...],
        Setting("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", _NETWORKS, default=""),
        "Destinations outside the VPC that see the pod's own address (peered VPCs, a VPN).",
    ]
    names_directory: Annotated[
        Path,
        Setting("ENOKI_NAMES_DIRECTORY", _DIRECTORY, default="/etc/iproute2"),
        "Where the node's iproute2 looks for names of tables and protocols. Read-only or missing: numbers only.",
    ]
    # EC2
    manage_untagged_eni: Annotated[
        bool,
        Setting("MANAGE_UNTAGGED_ENI", _BOOLEAN, default="true"),
        "true: use ENIs of this instance that carry none of our tags. Keep others' ENIs out with the tag "
        "`node.k8s.amazonaws.com/no_manage` = `true`.",
    ]
    additional_eni_tags: Annotated[
        tuple[tuple[str, str], ...],
        Setting("ADDITIONAL_ENI_TAGS", _TAGS, default="{}"),
        "Tags for the ENIs the agent makes. Keys that contain `k8s.amazonaws.com` are left out.",
    ]
    cluster_name: Annotated[
        str,
        Setting("CLUSTER_NAME", _CLUSTER_NAME, default=""),
        "Name of the EKS cluster: tags on ENIs, and which cluster's subnets are used.",
    ]
    subnet_discovery: Annotated[
        bool,
        Setting("ENABLE_SUBNET_DISCOVERY", _BOOLEAN, default="true"),
        "true: make ENIs in any subnet of the zone that is tagged `kubernetes.io/role/cni`, and in the node's "
        "own. false: only in the node's own.",
    ]
    imds_endpoint: Annotated[
        str,
        Setting("AWS_EC2_METADATA_SERVICE_ENDPOINT", _URL, default="http://169.254.169.254"),
        "Where the instance metadata service is. EC2's is found by the SDK: `AWS_ENDPOINT_URL_EC2`.",
    ]
    # The agent
    log_level: Annotated[
        LogLevel,
        Setting("AWS_VPC_K8S_CNI_LOGLEVEL", _LOG_LEVEL, default="info"),
        "The least severe lines to log. (The AWS plugin's default is debug.)",
    ]
    provenance: Mapping[str, Provenance] = field(repr=False)
    notices: tuple[str, ...] = ()


# --- What the AWS plugin reads and we do not -------------------------------------------------------------------------

_INERT = {
    "false": """ANNOTATE_POD_IP AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG DISABLE_NETWORK_RESOURCE_PROVISIONING DISABLE_POD_V6
        DISABLE_TCP_EARLY_DEMUX ENABLE_BANDWIDTH_PLUGIN ENABLE_IMDS_ONLY_MODE ENABLE_IPv6 ENABLE_MULTI_NIC
        ENABLE_POD_ENI ENABLE_PREFIX_DELEGATION ENABLE_V6_EGRESS""",
    "true": """AWS_MANAGE_ENIS_NON_SCHEDULABLE AWS_VPC_CNI_NODE_PORT_SUPPORT DISABLE_INTROSPECTION
        DISABLE_LEAKED_ENI_CLEANUP DISABLE_METRICS ENABLE_IPv4""",
    "true false": "ENABLE_V4_EGRESS",  # the AWS plugin reads it in IPv6 clusters only
    "": """AWS_EC2_ENDPOINT AWS_EXTERNAL_SERVICE_CIDRS AWS_VPC_K8S_CNI_BACKING_STORE CLUSTER_ENDPOINT HTTP_TIMEOUT
        INTROSPECTION_BIND_ADDRESS""",
    "0x80 128": "AWS_VPC_K8S_CNI_CONNMARK",
    "0 1": "WARM_PREFIX_TARGET",  # without prefix delegation it asks for nothing; 1 is the published manifest's value
    "none": "NETWORK_POLICY_ENFORCING_MODE",
    "strict": "POD_SECURITY_GROUP_ENFORCING_MODE",
    "k8s.amazonaws.com/eniconfig": "ENI_CONFIG_ANNOTATION_DEF ENI_CONFIG_LABEL_DEF",
    # Where the published manifest sends the logs is nobody's wish; ours go to stderr.
    "stderr /host/var/log/aws-routed-eni/ipamd.log": "AWS_VPC_K8S_CNI_LOG_FILE",
    "stderr /var/log/aws-routed-eni/plugin.log": "AWS_VPC_K8S_PLUGIN_LOG_FILE",
    "debug info": "AWS_VPC_K8S_PLUGIN_LOG_LEVEL",
}

NOT_HONOURED: Mapping[str, frozenset[str]] = {
    name: frozenset(inert.split()) for inert, names in _INERT.items() for name in names.split()
}
"""Names of the AWS plugin that nothing reads yet, with the values (lower case) under which a node behaves the same.

Left out are names that change nothing but a label: MY_NODE_NAME, MY_POD_NAME, VPC_CNI_VERSION.
"""

RESERVED_TAG_MARK = "k8s.amazonaws.com"
"""Tag keys that contain it are Kubernetes' own; the AWS plugin leaves them out of ADDITIONAL_ENI_TAGS too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Documented:
    """A setting together with the field it fills and the text that explains it."""

    field_name: str
    setting: Setting
    doc: str


def documented() -> tuple[Documented, ...]:
    """Every setting, in the order of `Settings`."""
    found: list[Documented] = []
    for field_name, hint in get_type_hints(Settings, include_extras=True).items():
        match getattr(hint, "__metadata__", ()):
            case (Setting() as setting, str(doc)):
                found.append(Documented(field_name=field_name, setting=setting, doc=doc))
    return tuple(found)


def load(environ: Mapping[str, str] = os.environ) -> Settings:  # noqa: TID251  # the one place
    """Read the environment.

    Raises: SettingsInvalid with every problem found.
    """
    values: dict[str, Any] = {}
    provenance: dict[str, Provenance] = {}
    problems: list[str] = []
    for one in documented():
        setting = one.setting
        text = environ.get(setting.name, "")
        provenance[setting.name] = Provenance.ENVIRONMENT if text else Provenance.DEFAULT
        try:
            values[one.field_name] = setting.kind.parse(text or setting.default)
        except ValueError:
            problems.append(f'{setting.name} is "{text}"; allowed: {setting.kind.allowed}')
    if problems:
        raise SettingsInvalid(tuple(problems))
    if values["pod_mtu"] is None:
        values["pod_mtu"] = values["eni_mtu"]
    tags: tuple[tuple[str, str], ...] = values["additional_eni_tags"]
    values["additional_eni_tags"] = tuple(tag for tag in tags if RESERVED_TAG_MARK not in tag[0])
    return Settings(**values, provenance=provenance, notices=_notices(environ, tags))


def _notices(environ: Mapping[str, str], tags: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    notices: list[str] = []
    without_effect = [
        f"{name}={environ[name]}" for name, inert in NOT_HONOURED.items() if not _asks_nothing(environ.get(name), inert)
    ]
    if without_effect:
        notices.append(f"settings of the AWS plugin without effect in this version: {', '.join(without_effect)}")
    reserved = [key for key, _ in tags if RESERVED_TAG_MARK in key]
    if reserved:
        notices.append(f"ADDITIONAL_ENI_TAGS: keys with {RESERVED_TAG_MARK} are left out: {', '.join(reserved)}")
    return tuple(notices)


def _asks_nothing(text: str | None, inert: frozenset[str]) -> bool:
    if not text:
        return True
    try:
        return str(_boolean(text)).lower() in inert or text.lower() in inert
    except ValueError:
        return text.lower() in inert
