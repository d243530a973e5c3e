"""From the members of a CNI request to a checked `CniCall`. Pure; every failure is a `CniError`.

What passes here may be built into names, aliases and paths without looking again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NoReturn

from api.cni_body import Envelope
from api.cni_runtime import NO_WISH, parse_runtime
from api.problems import CniCode, CniError
from api.service import Attachment, CniCall, RefusedCall, Verb

SUPPORTED_VERSIONS = ("0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST_VERSION = SUPPORTED_VERSIONS[-1]

_SINCE: Mapping[Verb, str] = {Verb.CHECK: "0.4.0", Verb.STATUS: "1.1.0", Verb.GC: "1.1.0"}
"""The first spec version that has the command (CNI spec, CONVENTIONS and release notes)."""

# CNI spec 1.1, section 2, "Parameters": starts with an alphanumeric, then these. The spec sets no length; runtimes use
# 64 hex digits, and a link alias (255 bytes) must hold the whole id.
_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,127}")
# Linux: 1 to 15 bytes, no `/`, no `:`, no white space, not `.` or `..` (dev_valid_name()); `%` is a format
# (dev_alloc_name()). Printable ASCII only, so that it can be put into a link alias.
_IFNAME = re.compile(r"[!-~]{1,15}")
_IFNAME_FORBIDDEN = frozenset("/:%")
# CNI spec 1.1, section 1, "Network configuration lists": the same form as a container id.
_NETWORK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,252}")
# RFC 1123 as Kubernetes applies it: a namespace is a label (63), a pod name a subdomain (253).
_NAMESPACE = re.compile(r"[a-z0-9](?:[a-z0-9\-]{0,61}[a-z0-9])?")
_POD_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9\-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9\-]*[a-z0-9])?)*")
# A UUID, or for static pods a hash.
_POD_UID = re.compile(r"[A-Za-z0-9\-]{1,64}")
_PATH_MAX_BYTES = 4095
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_ARGS = frozenset({"IgnoreUnknown", "K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_UID", "K8S_POD_INFRA_CONTAINER_ID"})

MTU_RANGE_BYTES = (576, 9001)
"""RFC 791's minimum; the most EC2 carries inside a VPC (EC2 user guide, "Network MTU for your EC2 instance")."""


def answer_version(config: Mapping[str, Any]) -> str:
    """The cniVersion to answer in: the configuration's own, or our newest when we do not speak that."""
    version = config.get("cniVersion")
    return version if isinstance(version, str) and version in SUPPORTED_VERSIONS else NEWEST_VERSION


def parse_call(verb: Verb, envelope: Envelope, request_id: str) -> CniCall:
    """Check everything the runtime said against the CNI and Kubernetes rules.

    For DEL only what identifies the attachment is held against it: a container whose ADD was refused for its pod's name
    must still be removable.

    Raises: CniError 1 (cniVersion), 4 (environment), 7 (network configuration).
    """
    config = envelope.config
    name = _network_name(config)
    version = _version(config, verb)
    if verb in {Verb.STATUS, Verb.GC}:
        return CniCall(verb=verb, request_id=request_id, cni_version=version, network_name=name, config=config)
    pod = _pod(parse_args(envelope.args), lenient=verb is Verb.DEL)
    wish = NO_WISH if verb is Verb.DEL else parse_runtime(config)
    return CniCall(
        verb=verb,
        request_id=request_id,
        cni_version=version,
        network_name=name,
        container_id=_matching("CNI_CONTAINERID", envelope.container_id, _CONTAINER_ID),
        ifname=_ifname(envelope.ifname),
        netns=_netns(envelope.netns, required=verb is not Verb.DEL),
        pod_namespace=pod["K8S_POD_NAMESPACE"],
        pod_name=pod["K8S_POD_NAME"],
        pod_uid=pod["K8S_POD_UID"],
        pod_infra_container_id=pod["K8S_POD_INFRA_CONTAINER_ID"],
        mtu=None if verb is Verb.DEL else _mtu(config),
        port_mappings=wish.port_mappings,
        ingress=wish.ingress,
        egress=wish.egress,
        prev_result=_prev_result(config, verb),
        config=config,
    )


def names_in(verb: Verb, envelope: Envelope, request_id: str) -> RefusedCall:
    """Whatever of a call's names is as it should be, to say whose call was refused."""
    try:
        pod = _pod(parse_args(envelope.args), lenient=True)
    except CniError:
        pod = {}
    ids = {"container_id": (envelope.container_id, _CONTAINER_ID), "ifname": (envelope.ifname, _IFNAME)}
    return RefusedCall(
        verb=verb,
        request_id=request_id,
        pod_namespace=pod.get("K8S_POD_NAMESPACE", ""),
        pod_name=pod.get("K8S_POD_NAME", ""),
        **{name: value for name, (value, pattern) in ids.items() if pattern.fullmatch(value)},
    )


def parse_args(text: str) -> dict[str, str]:
    """Decode CNI_ARGS: `K=V` pairs joined by `;`, as libcni writes and reads them. Returns the keys we know.

    Raises: CniError 4 for a pair without exactly one `=`, a key twice, or an unknown key without IgnoreUnknown.
    """
    found: dict[str, str] = {}
    for pair in text.split(";") if text else ():
        key, equals, value = pair.partition("=")
        if not equals or "=" in value or not key:
            _bad_environment("CNI_ARGS must be KEY=VALUE pairs joined by semicolons", f"found {pair[:100]!r}")
        if key in found:
            _bad_environment("CNI_ARGS names a key twice", key[:100])
        found[key] = value
    ignore_unknown = found.get("IgnoreUnknown", "0").lower()
    if ignore_unknown not in {"0", "1", "true", "false"}:
        _bad_environment("IgnoreUnknown in CNI_ARGS must be 1, 0, true or false")
    unknown = found.keys() - _ARGS
    if unknown and ignore_unknown in {"0", "false"}:
        _bad_environment("CNI_ARGS has unknown keys and no IgnoreUnknown=1", ", ".join(sorted(unknown))[:200])
    return {key: value for key, value in found.items() if key in _ARGS}


def valid_attachments(config: Mapping[str, Any]) -> frozenset[Attachment]:
    """The attachments GC must keep: `cni.dev/valid-attachments` (CNI spec 1.1, section 2, GC).

    libcni also writes them as `cni.dev/attachments`; whatever either lists is kept. Null is an empty list, as libcni
    writes one.

    Raises: CniError 7 when neither is there or an entry is malformed: GC must not guess what may go.
    """
    keys = [key for key in ("cni.dev/valid-attachments", "cni.dev/attachments") if key in config]
    if not keys:
        _bad_config("`cni.dev/valid-attachments` is missing")
    return frozenset(_attachment(entry) for key in keys for entry in _list(config, key))


def _attachment(entry: object) -> Attachment:
    container_id, ifname = (entry.get("containerID"), entry.get("ifname")) if isinstance(entry, dict) else (None, None)
    if not isinstance(container_id, str) or not isinstance(ifname, str):
        _bad_config("an entry of `cni.dev/valid-attachments` must have a containerID and an ifname")
    return container_id, ifname


def _list(config: Mapping[str, Any], key: str) -> list[object]:
    value = config[key]
    if value is None:
        return []
    if not isinstance(value, list):
        _bad_config(f"`{key}` must be a list")
    return value


def _version(config: Mapping[str, Any], verb: Verb) -> str:
    version = config.get("cniVersion")
    if not isinstance(version, str) or version not in SUPPORTED_VERSIONS:
        raise CniError(
            CniCode.VERSION_UNSUPPORTED,
            "the network configuration's cniVersion is not supported",
            f"configuration: {ascii(version)[:100]}; supported: {', '.join(SUPPORTED_VERSIONS)}",
        )
    since = _SINCE.get(verb, SUPPORTED_VERSIONS[0])
    if SUPPORTED_VERSIONS.index(version) < SUPPORTED_VERSIONS.index(since):
        raise CniError(
            CniCode.VERSION_UNSUPPORTED,
            f"{verb} needs cniVersion {since} or later",
            f"configuration: {version}",
        )
    return version


def _network_name(config: Mapping[str, Any]) -> str:
    name, plugin = config.get("name"), config.get("type")
    if not isinstance(name, str) or not _NETWORK_NAME.fullmatch(name):
        _bad_config("`name` of the network configuration is missing or malformed")
    if not isinstance(plugin, str) or not plugin or "/" in plugin or _CONTROL.search(plugin):
        _bad_config("`type` of the network configuration is missing or malformed")
    return name


def _mtu(config: Mapping[str, Any]) -> int | None:
    value = config.get("mtu")
    if value is None or value == "":
        return None
    # The AWS plugin's configuration has it as a string.
    number = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{1,5}", value) else value
    low, high = MTU_RANGE_BYTES
    if type(number) is not int or not low <= number <= high:
        found = ascii(value)[:100]
        _bad_config(f"`mtu` of the network configuration must be a number from {low} to {high}", f"found {found}")
    return number


def _prev_result(config: Mapping[str, Any], verb: Verb) -> Mapping[str, Any] | None:
    value = config.get("prevResult")
    if verb is Verb.ADD or value is None:
        return None
    if isinstance(value, dict):
        return value
    if verb is not Verb.DEL:
        _bad_config("`prevResult` of the network configuration must be an object")
    return None


def _pod(args: Mapping[str, str], *, lenient: bool) -> dict[str, str]:
    patterns = {
        "K8S_POD_NAMESPACE": _NAMESPACE,
        "K8S_POD_NAME": _POD_NAME,
        "K8S_POD_UID": _POD_UID,
        "K8S_POD_INFRA_CONTAINER_ID": _CONTAINER_ID,
    }
    try:
        pod = {
            key: _matching(f"{key} in CNI_ARGS", args[key], pattern) if args.get(key) else ""
            for key, pattern in patterns.items()
        }
        if bool(pod["K8S_POD_NAMESPACE"]) != bool(pod["K8S_POD_NAME"]):
            _bad_environment("CNI_ARGS must have both K8S_POD_NAMESPACE and K8S_POD_NAME, or neither")
    except CniError:
        if lenient:
            return dict.fromkeys(patterns, "")
        raise
    return pod


def _matching(what: str, value: str, pattern: re.Pattern[str]) -> str:
    if not value:
        _bad_environment(f"{what} is missing")
    if not pattern.fullmatch(value):
        _bad_environment(f"{what} is malformed", ascii(value)[:200])
    return value


def _ifname(value: str) -> str:
    _matching("CNI_IFNAME", value, _IFNAME)
    if value in {".", ".."} or _IFNAME_FORBIDDEN.intersection(value):
        _bad_environment("CNI_IFNAME is malformed", ascii(value))
    return value


def _netns(value: str, *, required: bool) -> str:
    if not value and not required:
        return ""
    if not value:
        _bad_environment("CNI_NETNS is missing")
    if not value.startswith("/") or _CONTROL.search(value) or len(value.encode("utf-8")) > _PATH_MAX_BYTES:
        _bad_environment("CNI_NETNS must be an absolute path", ascii(value)[:200])
    return value


def _bad_environment(msg: str, details: str = "") -> NoReturn:
    raise CniError(CniCode.ENVIRONMENT_INVALID, msg, details)


def _bad_config(msg: str, details: str = "") -> NoReturn:
    raise CniError(CniCode.NETWORK_CONFIG_INVALID, msg, details)
