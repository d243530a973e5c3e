"""`runtimeConfig` of the network configuration: host ports and bandwidth. Pure; every failure is a `CniError` 7.

The runtime puts here what the pod asks, for the capabilities that the configuration declares (CNI conventions,
"Dynamic Plugin specific fields"). What other plugins of the chain read is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, ip_address
from typing import Any, NoReturn

from api.problems import CniCode, CniError
from api.service import HostPort, RateLimit

_PROTOCOLS = ("tcp", "udp", "sctp")
_MOST_MAPPINGS = 1000
"""Far above any pod's ports; bounds what one request can make the node write."""
_MOST_BITS = 1 << 63
_MOST_BURST_BITS = 8 * (2**32 - 1)
"""The kernel counts a burst in 32 bits of bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeWish:
    """What the pod asks of the node. port_mappings: IPv4 ones; no two claim the same port of the node."""

    port_mappings: tuple[HostPort, ...] = ()
    ingress: RateLimit | None = None
    egress: RateLimit | None = None


NO_WISH = RuntimeWish()


def parse_runtime(config: Mapping[str, Any]) -> RuntimeWish:
    """Read `runtimeConfig.portMappings` and `runtimeConfig.bandwidth`.

    A mapping bound to an IPv6 address of the node is left out: pods have IPv4 addresses.
    Raises: CniError 7.
    """
    runtime = config.get("runtimeConfig")
    if runtime is None:
        return NO_WISH
    if not isinstance(runtime, dict):
        _refuse("`runtimeConfig` must be an object")
    bandwidth = runtime.get("bandwidth")
    if bandwidth is not None and not isinstance(bandwidth, dict):
        _refuse("`runtimeConfig.bandwidth` must be an object")
    return RuntimeWish(
        port_mappings=_port_mappings(runtime.get("portMappings")),
        ingress=_limit(bandwidth or {}, "ingress"),
        egress=_limit(bandwidth or {}, "egress"),
    )


def _port_mappings(value: object) -> tuple[HostPort, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > _MOST_MAPPINGS:
        _refuse(f"`runtimeConfig.portMappings` must be a list of at most {_MOST_MAPPINGS}")
    found = [mapping for entry in value if (mapping := _port_mapping(entry)) is not None]
    for index, one in enumerate(found):
        for other in found[:index]:
            if _same_port(one, other):
                _refuse(f"`runtimeConfig.portMappings` has host port {one.host_port}/{one.protocol} twice")
    return tuple(found)


def _port_mapping(entry: object) -> HostPort | None:
    if not isinstance(entry, dict):
        _refuse("an entry of `runtimeConfig.portMappings` must be an object")
    protocol = _member(entry, "protocol") or "tcp"
    if not isinstance(protocol, str) or protocol.lower() not in _PROTOCOLS:
        _refuse(f"`protocol` of a port mapping must be {', '.join(_PROTOCOLS)}", ascii(protocol)[:100])
    host_ip = _member(entry, "hostIP") or "0.0.0.0"
    try:
        address = ip_address(host_ip if isinstance(host_ip, str) else "")
    except (AddressValueError, ValueError):
        _refuse("`hostIP` of a port mapping must be an IP address", ascii(host_ip)[:100])
    host_port, container_port = _port(entry, "hostPort"), _port(entry, "containerPort")
    if not isinstance(address, IPv4Address):
        if not address.is_unspecified:
            return None
        address = IPv4Address(0)
    return HostPort(
        host_port=host_port,
        container_port=container_port,
        protocol=protocol.lower(),
        host_address=None if address.is_unspecified else address,
    )


def _same_port(one: HostPort, other: HostPort) -> bool:
    return (one.protocol, one.host_port) == (other.protocol, other.host_port) and (
        one.host_address is None or other.host_address is None or one.host_address == other.host_address
    )


def _port(entry: Mapping[str, Any], name: str) -> int:
    value = _member(entry, name)
    if type(value) is not int or not 1 <= value <= 65535:
        _refuse(f"`{name}` of a port mapping must be a number from 1 to 65535", ascii(value)[:100])
    return value


def _member(members: Mapping[str, Any], name: str) -> Any:
    """Whatever its case: containerd writes `HostPort` and `IngressRate`, and Go reads either."""
    if name in members:
        return members[name]
    return next((value for key, value in members.items() if key.lower() == name.lower()), None)


def _limit(bandwidth: Mapping[str, Any], direction: str) -> RateLimit | None:
    rate = _bits(bandwidth, f"{direction}Rate", _MOST_BITS)
    burst = _bits(bandwidth, f"{direction}Burst", _MOST_BURST_BITS)
    if not rate and not burst:
        return None
    if not rate or not burst:
        _refuse(f"`{direction}Rate` and `{direction}Burst` of the bandwidth must both be set, or neither")
    if rate < 8:
        _refuse(f"`{direction}Rate` of the bandwidth must be at least 8 bits per second")
    return RateLimit(rate_bits_per_s=rate, burst_bits=burst)


def _bits(bandwidth: Mapping[str, Any], name: str, most: int) -> int:
    value = _member(bandwidth, name) or 0
    if type(value) is not int or not 0 <= value <= most:
        _refuse(f"`{name}` of the bandwidth must be a number of bits from 0 to {most}", ascii(value)[:100])
    return value


def _refuse(msg: str, details: str = "") -> NoReturn:
    raise CniError(CniCode.NETWORK_CONFIG_INVALID, msg, details)
