"""The AWS plugin's introspection paths, field by field, as its v1.23 answers them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from agent import settings
from agent.service.configuration import config_view
from api.aws_node import enis_document, introspection_app, metrics_app
from api.node_schemas import ConfigView
from tests.contract.scripted_node import ALLOCATION, ScriptedNode

PATHS = ("/v1/enis", "/v1/eni-configs", "/v1/networkutils-env-settings", "/v1/ipamd-env-settings")


class Configured(ScriptedNode):
    """With settings that are not the default."""

    name: str | None = "zone-a"

    def config(self) -> ConfigView:
        environment = {
            "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": "true",
            "AWS_EXTERNAL_SERVICE_CIDRS": "192.0.2.0/24",
            "AWS_VPC_K8S_CNI_CONNMARK": "0x100",
            "AWS_VPC_CNI_NODE_PORT_SUPPORT": "false",
            "AWS_VPC_K8S_CNI_RANDOMIZESNAT": "hashrandom",
        }
        return config_view(settings.load(environment), "dev")

    def eni_config(self) -> str | None:
        return self.name


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=introspection_app(Configured()))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:61679") as made:
        yield made


async def get(client: httpx.AsyncClient, path: str) -> Any:
    answer = await client.get(path)
    assert answer.status_code == 200
    return answer.json()


async def test_every_other_path_lists_the_commands(client: httpx.AsyncClient) -> None:
    for path in ("/", "/v2", "/v1/enis/"):
        assert set((await get(client, path))["AvailableCommands"]) == {*PATHS, "/v1/pods"}
    assert (await client.post("/v1/enis")).status_code == 405


async def test_enis(client: httpx.AsyncClient) -> None:
    card = (await get(client, "/v1/enis"))["0"]
    assert {name: card[name] for name in ("TotalIPs", "AssignedIPs")} == {"TotalIPs": 17, "AssignedIPs": 1}
    eni = card["ENIs"][ALLOCATION.eni_id]
    assert {name: value for name, value in eni.items() if not name.endswith("Cidrs")} == {
        "ID": ALLOCATION.eni_id,
        "IsPrimary": True,
        "IsTrunk": False,
        "IsEFA": False,
        "DeviceNumber": 0,
        "IsExcludedForPodIPs": False,
        "RouteTableID": 254,
        "SubnetID": "subnet-0123456789abcdef0",
    }
    assert eni["IPv6Cidrs"] == {}
    assert eni["AvailableIPv4Cidrs"]["10.0.1.16/28"] == {
        "Cidr": {"IP": "10.0.1.16", "Mask": "////8A=="},
        "IPAddresses": {},
        "IsPrefix": True,
        "AddressFamily": "",
    }
    assert eni["AvailableIPv4Cidrs"]["10.0.1.9/32"]["IPAddresses"]["10.0.1.9"] == {
        "Address": "10.0.1.9",
        "IPAMKey": {"networkName": "", "containerID": "", "ifName": ""},
        "IPAMMetadata": {"k8sPodNamespace": "default", "k8sPodName": "web-0", "interfacesCount": 1},
        "AssignedTime": "2026-11-24T09:30:00Z",
        "UnassignedTime": "0001-01-01T00:00:00Z",
    }


def test_trunks_and_excluded_enis() -> None:
    [eni] = ScriptedNode().enis()
    trunk = eni.model_copy(update={"interface_type": "trunk", "excluded": True})
    shown = enis_document([trunk], [])["0"]["ENIs"][eni.eni_id]
    assert (shown["IsTrunk"], shown["IsEFA"], shown["IsExcludedForPodIPs"]) == (True, False, True)


async def test_pods_as_in_2018(client: httpx.AsyncClient) -> None:
    assert await get(client, "/v1/pods") == {"web-0_default_c1": {"IP": "10.0.1.9", "DeviceNumber": 0}}


async def test_the_settings_are_the_ones_in_force(client: httpx.AsyncClient) -> None:
    assert await get(client, "/v1/networkutils-env-settings") == {
        "AWS_EXTERNAL_SERVICE_CIDRS": ["192.0.2.0/24"],
        "AWS_VPC_CNI_NODE_PORT_SUPPORT": False,
        "AWS_VPC_ENI_MTU": 9001,
        "AWS_VPC_K8S_CNI_CONNMARK": 0x100,
        "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": None,
        "AWS_VPC_K8S_CNI_EXTERNALSNAT": False,
        "AWS_VPC_K8S_CNI_RANDOMIZESNAT": 1,
        "AWS_VPC_K8S_CNI_VETHPREFIX": "eni",
    }
    assert await get(client, "/v1/ipamd-env-settings") == {
        "WARM_ENI_TARGET": 1,
        "WARM_IP_TARGET": 0,
        "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": True,
        "AWS_MANAGE_ENIS_NON_SCHEDULABLE": False,
        "ENABLE_SUBNET_DISCOVERY": True,
    }


async def test_the_nodes_eni_config(client: httpx.AsyncClient) -> None:
    assert await get(client, "/v1/eni-configs") == "zone-a"
    unknown = Configured()
    unknown.name = None
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=introspection_app(unknown)), base_url="http://x"
    ) as other:
        assert (await other.get("/v1/eni-configs")).status_code == 404


async def test_the_metrics_port() -> None:
    transport = httpx.ASGITransport(app=metrics_app(ScriptedNode()))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:61678") as made:
        assert "enoki_ready 1.0" in (await made.get("/metrics")).text
        assert (await made.get("/v1/enis")).status_code == 404
