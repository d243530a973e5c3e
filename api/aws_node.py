"""For tools that know `aws-node`: the introspection paths and the metrics port of the AWS VPC CNI plugin (v1.23).

Two small ASGI applications, for reading only, on TCP when the settings ask for it. `/v1/pods` has the shape it had
until the AWS plugin dropped it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Network
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.node_routes import METRICS_TYPE
from api.schemas import AllocationView, EniView
from api.service import NodeService

_NEVER = "0001-01-01T00:00:00Z"
"""Go's zero time."""
_RANDOMIZE_SNAT = {"none": 0, "hashrandom": 1, "prng": 2}


def introspection_app(service: NodeService) -> ASGIApp:
    """GET `/v1/enis`, `/v1/pods` and the two settings paths; every other path lists them, as the AWS plugin does."""
    answers: Mapping[str, Callable[[], Any]] = {
        "/v1/enis": lambda: enis_document(service.enis(), service.allocations()),
        "/v1/eni-configs": service.eni_config,
        "/v1/pods": lambda: pods_document(service.enis(), service.allocations()),
        "/v1/networkutils-env-settings": lambda: _network_settings(_settings(service)),
        "/v1/ipamd-env-settings": lambda: _pool_settings(_settings(service)),
    }

    def answer(path: str) -> Response:
        known = answers.get(path)
        body = {"AvailableCommands": list(answers)} if known is None else known()
        if body is None:
            return Response("no ENIConfig is known for this node\n", 404, media_type="text/plain")
        return Response(json.dumps(body), media_type="application/json")

    return _reading(answer)


def metrics_app(service: NodeService) -> ASGIApp:
    """GET `/metrics`."""

    def answer(path: str) -> Response:
        if path != "/metrics":
            return Response("404 page not found\n", 404, media_type="text/plain")
        return Response(service.metrics(), media_type=METRICS_TYPE)

    return _reading(answer)


def _reading(answer: Callable[[str], Response]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] in {"GET", "HEAD"}:
            response = answer(scope["path"])
        else:
            response = Response(status_code=405, headers={"allow": "GET, HEAD"})
        await response(scope, receive, send)

    return app


def enis_document(enis: list[EniView], allocations: list[AllocationView]) -> dict[str, Any]:
    """Pure: `/v1/enis`, by network card."""
    document: dict[str, Any] = {}
    for card in sorted({eni.card for eni in enis}):
        ours = [eni for eni in enis if eni.card == card and eni.managed]
        document[str(card)] = {
            "TotalIPs": sum(block.num_addresses for eni in ours for block in eni.blocks if block.version == 4),
            "AssignedIPs": sum(eni.counts.held_count for eni in ours),
            "ENIs": {eni.eni_id: _eni(eni, allocations) for eni in ours},
        }
    return document


def pods_document(enis: list[EniView], allocations: list[AllocationView]) -> dict[str, Any]:
    """Pure: `/v1/pods`, by `<pod>_<namespace>_<container id>`."""
    device = {eni.eni_id: eni.device for eni in enis}
    return {
        f"{one.pod}_{one.namespace}_{one.container_id}": {
            "IP": str(one.addresses[0]),
            "DeviceNumber": device.get(one.eni_id, 0),
        }
        for one in allocations
    }


def _eni(eni: EniView, allocations: list[AllocationView]) -> dict[str, Any]:
    return {
        "ID": eni.eni_id,
        "IsPrimary": (eni.card, eni.device) == (0, 0),
        "IsTrunk": eni.interface_type == "trunk",
        "IsEFA": eni.interface_type.startswith("efa"),
        "DeviceNumber": eni.device,
        "IsExcludedForPodIPs": eni.excluded,
        "RouteTableID": eni.table_id or 0,
        "SubnetID": eni.subnet_id,
        "AvailableIPv4Cidrs": {
            str(block): _block(block, allocations) for block in eni.blocks if isinstance(block, IPv4Network)
        },
        "IPv6Cidrs": {},
    }


def _block(block: IPv4Network, allocations: list[AllocationView]) -> dict[str, Any]:
    return {
        "Cidr": {
            "IP": str(block.network_address),
            "Mask": base64.b64encode(block.netmask.packed).decode(),
        },
        "IPAddresses": {
            str(address): _address(str(address), one)
            for one in allocations
            for address in one.addresses
            if address in block
        },
        "IsPrefix": block.prefixlen < 32,
        "AddressFamily": "",
    }


def _address(address: str, held: AllocationView) -> dict[str, Any]:
    return {
        "Address": address,
        "IPAMKey": {"networkName": "", "containerID": "", "ifName": ""},
        "IPAMMetadata": {"k8sPodNamespace": held.namespace, "k8sPodName": held.pod, "interfacesCount": 1},
        "AssignedTime": _rfc3339(held.since),
        "UnassignedTime": _NEVER,
    }


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _settings(service: NodeService) -> dict[str, Any]:
    return {one.name: one.value for one in service.config().settings}


def _network_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "AWS_EXTERNAL_SERVICE_CIDRS": settings["AWS_EXTERNAL_SERVICE_CIDRS"] or None,
        "AWS_VPC_CNI_NODE_PORT_SUPPORT": settings["AWS_VPC_CNI_NODE_PORT_SUPPORT"],
        "AWS_VPC_ENI_MTU": settings["AWS_VPC_ENI_MTU"],
        "AWS_VPC_K8S_CNI_CONNMARK": settings["AWS_VPC_K8S_CNI_CONNMARK"],
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": settings["AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS"] or None,
        "AWS_VPC_K8S_CNI_EXTERNALSNAT": settings["AWS_VPC_K8S_CNI_EXTERNALSNAT"],
        "AWS_VPC_K8S_CNI_RANDOMIZESNAT": _RANDOMIZE_SNAT.get(str(settings["AWS_VPC_K8S_CNI_RANDOMIZESNAT"]), 2),
        "AWS_VPC_K8S_CNI_VETHPREFIX": settings["AWS_VPC_K8S_CNI_VETHPREFIX"],
    }


def _pool_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "WARM_ENI_TARGET": settings["WARM_ENI_TARGET"],
        "WARM_IP_TARGET": settings["WARM_IP_TARGET"],
        "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": settings["AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG"],
        "AWS_MANAGE_ENIS_NON_SCHEDULABLE": settings["AWS_MANAGE_ENIS_NON_SCHEDULABLE"],
        "ENABLE_SUBNET_DISCOVERY": settings["ENABLE_SUBNET_DISCOVERY"],
    }
