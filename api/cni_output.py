"""What the runtime reads on the plugin's standard output, as bytes. Pure."""

from __future__ import annotations

import json
from ipaddress import IPv4Address

from api.problems import CniError
from api.service import Address, AddResult

# The pod's next hop: an address nobody has, behind a permanent neighbour entry. The same for every pod.
GATEWAY_V4 = "169.254.1.1"
GATEWAY_V6 = "fe80::1"


def render_result(result: AddResult, cni_version: str) -> bytes:
    """The success object of ADD in the form of `cni_version` (0.3.1, 0.4.0, 1.0.0 or 1.1.0).

    Differences (CNI spec, "Success" of each version): up to 0.4.0 an address says its IP `version`; from 1.1.0 on an
    interface says its `mtu`.
    """
    host: dict[str, object] = {"name": result.host_ifname, "mac": result.host_mac}
    pod: dict[str, object] = {"name": result.ifname, "mac": result.pod_mac}
    if cni_version == "1.1.0":
        host["mtu"] = pod["mtu"] = result.mtu
    pod["sandbox"] = result.netns
    with_family = cni_version in {"0.3.1", "0.4.0"}
    return _dump(
        {
            "cniVersion": cni_version,
            "interfaces": [host, pod],
            "ips": [_ip(address, with_family=with_family) for address in result.addresses],
            "routes": [_default_route(family) for family in sorted({a.version for a in result.addresses})],
            "dns": {},
        }
    )


def render_error(error: CniError, cni_version: str) -> bytes:
    """The error object (CNI spec 1.1, section "Error")."""
    body: dict[str, object] = {"cniVersion": cni_version, "code": error.code, "msg": error.msg}
    if error.details:
        body["details"] = error.details
    return _dump(body)


def _ip(address: Address, *, with_family: bool) -> dict[str, object]:
    family: dict[str, object] = {"version": str(address.version)} if with_family else {}
    # Index 1 is the pod's end in `interfaces`.
    return family | {
        "address": f"{address}/{address.max_prefixlen}",
        "gateway": GATEWAY_V4 if isinstance(address, IPv4Address) else GATEWAY_V6,
        "interface": 1,
    }


def _default_route(family: int) -> dict[str, object]:
    return {"dst": "0.0.0.0/0", "gw": GATEWAY_V4} if family == 4 else {"dst": "::/0", "gw": GATEWAY_V6}


def _dump(body: dict[str, object]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"
