"""The simulated EC2 against the service model AWS makes its SDKs from: every element and parameter exists there."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from typing import Any

import botocore.session
import httpx
import pytest

from sim.ec2.app import ACTIONS, VERSION
from sim.ec2.render import NAMESPACE
from tests.contract.sim_endpoint import Endpoint, running_sim, signed

ENVELOPE = {"requestId", "return"}
"""Elements of answers that the API reference shows and SDKs do not model."""
UNLISTED = {"NetworkInterfaceStatus": {"pending"}}
"""Values that EC2 answers with although the model's enumeration lacks them; the model's own examples have them."""


@pytest.fixture(scope="module")
def model() -> Any:
    return botocore.session.get_session().get_service_model("ec2")


@pytest.fixture(scope="module")
def sim() -> Iterator[Endpoint]:
    with running_sim() as endpoint:
        yield endpoint


def ask(sim: Endpoint, action: str, form: Mapping[str, str]) -> ET.Element:
    answer = httpx.post(sim.url, data={"Action": action, "Version": VERSION, **form}, headers=signed(), timeout=10)
    assert answer.status_code == 200, answer.text
    return ET.fromstring(answer.text)  # noqa: S314 - our own answer


def strangers(element: ET.Element, shape: Any, path: str) -> list[str]:
    """Paths of elements that the shape does not have, or whose text it does not allow."""
    match shape.type_name:
        case "structure":
            members = {m.serialization.get("name", name): m for name, m in shape.members.items()}
            found = []
            for child in element:
                name = child.tag.removeprefix(f"{{{NAMESPACE}}}")
                below = f"{path}/{name}"
                found += strangers(child, members[name], below) if name in members else [below]
            return found
        case "list":
            assert all(child.tag == f"{{{NAMESPACE}}}item" for child in element)
            return [s for child in element for s in strangers(child, shape.member, f"{path}/item")]
        case "integer" | "long":
            return [] if (element.text or "").lstrip("-").isdigit() else [path]
        case "boolean":
            return [] if element.text in {"true", "false"} else [path]
        case "string" if shape.metadata.get("enum"):
            return (
                [] if (element.text or "") in {"", *shape.metadata["enum"], *UNLISTED.get(shape.name, ())} else [path]
            )
        case _:
            return []


def test_the_version_and_the_actions_are_in_the_model(model: Any) -> None:
    assert model.api_version == VERSION
    assert set(ACTIONS) <= set(model.operation_names)


def test_every_answer_fits_the_model(sim: Endpoint, model: Any) -> None:
    instance_id = sim.launch()
    eni = sim.boto3().create_network_interface(SubnetId=sim.subnets[0])["NetworkInterface"]["NetworkInterfaceId"]
    attachment = f"{{{NAMESPACE}}}attachmentId"
    asked: set[str] = set()

    def check(action: str, **form: str) -> ET.Element:
        answer = ask(sim, action, {key.replace("_", "."): value for key, value in form.items()})
        assert answer.tag == f"{{{NAMESPACE}}}{action}Response"
        for element in [e for e in answer if e.tag.removeprefix(f"{{{NAMESPACE}}}") in ENVELOPE]:
            answer.remove(element)
        output = model.operation_model(action).output_shape
        assert [*answer] == [] if output is None else strangers(answer, output, action) == []
        asked.add(action)
        return answer

    check(
        "CreateNetworkInterface",
        SubnetId=sim.subnets[0],
        Description="d",
        ClientToken="t",
        SecondaryPrivateIpAddressCount="2",
        Ipv6AddressCount="1",
        Ipv6PrefixCount="1",
        TagSpecification_1_ResourceType="network-interface",
        TagSpecification_1_Tag_1_Key="k",
        TagSpecification_1_Tag_1_Value="v",
    )
    check("AssignPrivateIpAddresses", NetworkInterfaceId=eni, SecondaryPrivateIpAddressCount="1")
    check("AssignPrivateIpAddresses", NetworkInterfaceId=eni, Ipv4Prefix_1="10.0.0.64/28")
    six = check("AssignIpv6Addresses", NetworkInterfaceId=eni, Ipv6AddressCount="1", Ipv6PrefixCount="1")
    attached = check("AttachNetworkInterface", NetworkInterfaceId=eni, InstanceId=instance_id, DeviceIndex="1")
    for action in [name for name in ACTIONS if name.startswith("Describe")]:
        check(action)
    check("ModifyNetworkInterfaceAttribute", NetworkInterfaceId=eni, Description_Value="x")
    check("CreateTags", ResourceId_1=eni, Tag_1_Key="a", Tag_1_Value="b")
    check("DeleteTags", ResourceId_1=eni, Tag_1_Key="a")
    check("UnassignPrivateIpAddresses", NetworkInterfaceId=eni, Ipv4Prefix_1="10.0.0.64/28")
    address = six.findtext(f"{{{NAMESPACE}}}assignedIpv6Addresses/{{{NAMESPACE}}}item") or ""
    check("UnassignIpv6Addresses", NetworkInterfaceId=eni, Ipv6Addresses_1=address)
    check("DetachNetworkInterface", AttachmentId=attached.findtext(attachment) or "")
    check("DeleteNetworkInterface", NetworkInterfaceId=eni)
    assert asked == set(ACTIONS)


def test_a_wrong_element_would_be_noticed(model: Any) -> None:
    shape = model.operation_model("DescribeVpcs").output_shape
    document = (
        f'<R xmlns="{NAMESPACE}"><vpcSet><item><vpcID>v</vpcID><isDefault>no</isDefault>'
        "<state>gone</state></item></vpcSet></R>"
    )
    assert strangers(ET.fromstring(document), shape, "R") == [  # noqa: S314 - a literal
        "R/vpcSet/item/vpcID",
        "R/vpcSet/item/isDefault",
        "R/vpcSet/item/state",
    ]
