"""How the CNI routes look in the OpenAPI document. The routes themselves parse and render without these models."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from api.service import Verb


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class NetworkConfig(BaseModel):
    """The network configuration as the runtime writes it to the plugin's standard input (CNI spec, section 1)."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    cniVersion: str = Field(examples=["1.0.0"])  # noqa: N815 - the spec's spelling
    """0.3.1, 0.4.0, 1.0.0 or 1.1.0; at least 0.4.0 for CHECK, 1.1.0 for STATUS and GC."""
    name: str = Field(examples=["enoki"], pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,252}$")
    """The network's name; the same on all nodes."""
    type: str = Field(examples=["enoki"])
    """The plugin's executable."""
    mtu: int | str | None = Field(default=None, examples=[9001])
    """Of both ends of the veth pair, in bytes: 576 to 9001. The agent's own setting when absent."""
    prevResult: dict[str, Any] | None = None  # noqa: N815 - the spec's spelling
    """What ADD answered, for CHECK and DEL; the answer of the plugin before this one in a chain."""


class CniRequest(_Document):
    """The plugin's environment and, verbatim and last, its standard input."""

    container_id: str = Field(default="", examples=["3f5a9c0e7d"])
    """CNI_CONTAINERID; required but for STATUS and GC."""
    netns: str = Field(default="", examples=["/var/run/netns/cni-0f1c"])
    """CNI_NETNS; required for ADD and CHECK."""
    ifname: str = Field(default="", examples=["eth0"])
    """CNI_IFNAME; required but for STATUS and GC."""
    args: str = Field(default="", examples=["IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0"])
    """CNI_ARGS."""
    config: NetworkConfig
    """The plugin's standard input, as it came."""


class CniInterface(_Document):
    """One end of the veth pair; the pod's end has a sandbox."""

    name: str
    """Of the link."""
    mac: str
    """Its MAC address."""
    mtu: int | None = None
    """From cniVersion 1.1.0 on."""
    sandbox: str | None = None
    """Path of the pod's network namespace; absent for the host's end."""


class CniIp(_Document):
    """One address of the pod."""

    version: str | None = None
    """"4" or "6"; up to cniVersion 0.4.0."""
    address: str
    """With its prefix length: /32 or /128."""
    gateway: str
    """The pod's default gateway; a link-local address that every pod has."""
    interface: int
    """Index into `interfaces`."""


class CniRoute(_Document):
    """One route in the pod."""

    dst: str
    """Destination, as a range."""
    gw: str
    """The gateway it goes by."""


class CniResult(_Document):
    """The success object of ADD, in the form of the configuration's cniVersion."""

    cniVersion: str  # noqa: N815 - the spec's spelling
    """That of the configuration."""
    interfaces: list[CniInterface]
    """The host's end of the veth pair, then the pod's."""
    ips: list[CniIp]
    """The pod's addresses."""
    routes: list[CniRoute]
    """The pod's routes."""
    dns: dict[str, Any]
    """Always empty: the kubelet writes the pod's resolv.conf."""


class CniErrorObject(_Document):
    """An error object (CNI spec, section "Error")."""

    cniVersion: str  # noqa: N815 - the spec's spelling
    """That of the configuration; the newest when it could not be read."""
    code: int
    """1 version, 3 unknown container, 4 environment, 6 undecodable, 7 network configuration, 11 try again later, 50 and
    51 not available, 101 superseded, 102 drifted, 103 the kernel refused, 104 not root, 999 bug."""
    msg: str
    """The name of the cause, a colon, and what happened. `kubectl describe pod` shows it."""
    details: str | None = None
    """The evidence, the remedy, and when to try again."""


_NODE_REQUEST: dict[str, Any] = {"config": {"cniVersion": "1.1.0", "name": "enoki", "type": "enoki"}}
_POD_REQUEST: dict[str, Any] = {
    "container_id": "3f5a9c0e7d",
    "netns": "/var/run/netns/cni-0f1c",
    "ifname": "eth0",
    "args": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
    "config": {"cniVersion": "1.0.0", "name": "enoki", "type": "enoki"},
}
_VALID = [{"containerID": "3f5a9c0e7d", "ifname": "eth0"}]
REQUEST_EXAMPLES: dict[Verb, dict[str, Any]] = {
    Verb.ADD: _POD_REQUEST,
    Verb.DEL: _POD_REQUEST,
    Verb.CHECK: _POD_REQUEST,
    Verb.STATUS: _NODE_REQUEST,
    Verb.GC: {"config": _NODE_REQUEST["config"] | {"cni.dev/valid-attachments": _VALID}},
}
RESULT_EXAMPLE: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "interfaces": [
        {"name": "eni2b7c0f3a1d4", "mac": "02:00:0a:00:01:09"},
        {"name": "eth0", "mac": "06:00:0a:00:01:09", "sandbox": "/var/run/netns/cni-0f1c"},
    ],
    "ips": [{"address": "10.0.1.9/32", "gateway": "169.254.1.1", "interface": 1}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
    "dns": {},
}

_REQUEST_ID = """

The header `X-Request-Id` (letters, digits and hyphens, at most 64) appears in the agent's log lines about this call,
and in those about the EC2 requests made for it."""

_DESCRIPTIONS: dict[Verb, str] = {
    Verb.ADD: """\
Gives a pod's interface an address and connects it: a veth pair, routes, limits, host ports. Asked again for the same
container and interface it answers as before. When no address is free the answer waits until EC2 grants one, as long as
the agent's deadline for an ADD allows. A caller that goes away meanwhile leaves nothing behind.""",
    Verb.DEL: """\
Takes the interface away and lets its address rest before another pod may have it. What is not attached (any more) is
gone already, which is success. Works while the agent starts.""",
    Verb.CHECK: """\
Compares the pod's link, addresses, routes and neighbours with what ADD made, changes nothing, and names the first
difference (code 102).""",
    Verb.STATUS: """\
Whether ADD can be served on this node at all; code 50 with the reason when not. Needs cniVersion 1.1.0.""",
    Verb.GC: """\
The configuration's `cni.dev/valid-attachments` lists the containers that exist; every other attachment of this network
is detached as by DEL. Needs cniVersion 1.1.0.""",
}

SUMMARIES: dict[Verb, str] = {
    Verb.ADD: "Attach a container",
    Verb.DEL: "Detach a container",
    Verb.CHECK: "Compare the kernel with what ADD made",
    Verb.STATUS: "Whether ADD can be served",
    Verb.GC: "Detach every attachment that is not listed",
}

_ERRORS: dict[int, tuple[str, dict[str, Any]]] = {
    400: (
        "The request can never succeed as it is.",
        {"cniVersion": "1.0.0", "code": 4, "msg": "request_invalid: CNI_IFNAME is malformed", "details": "'eth/0'"},
    ),
    403: (
        "The caller is not root, or asks on the readers' socket.",
        {"cniVersion": "1.1.0", "code": 104, "msg": "POST is for root only, and this is user 1000"},
    ),
    404: (
        "The container is not attached.",
        {"cniVersion": "1.0.0", "code": 3, "msg": "3f5a9c0e7d/eth0 is not attached"},
    ),
    409: (
        "Overtaken by a newer request (101), or the kernel has drifted (102).",
        {"cniVersion": "1.0.0", "code": 101, "msg": "a DEL of 3f5a9c0e7d/eth0 came while its ADD was running"},
    ),
    413: (
        "The body is too large.",
        {"cniVersion": "1.1.0", "code": 6, "msg": "the request is larger than 1048576 bytes"},
    ),
    500: ("A bug; the agent's log has the traceback.", {"cniVersion": "1.0.0", "code": 999, "msg": "internal error"}),
    503: (
        "The same request may succeed later.",
        {"cniVersion": "1.0.0", "code": 11, "msg": "subnet_exhausted: subnet-0a1b has no free address"},
    ),
}


def responses(verb: Verb) -> dict[int | str, dict[str, Any]]:
    """What a CNI route answers, for FastAPI's `responses`."""
    success: dict[int | str, dict[str, Any]] = (
        {
            200: {
                "model": CniResult,
                "description": "The result, for the runtime to read.",
                "content": {"application/json": {"example": RESULT_EXAMPLE}},
            }
        }
        if verb is Verb.ADD
        else {204: {"description": "Done; the plugin prints nothing."}}
    )
    return success | {
        status: {
            "model": CniErrorObject,
            "description": description,
            "content": {"application/json": {"example": example}},
        }
        for status, (description, example) in _ERRORS.items()
    }


def description(verb: Verb) -> str:
    """What the route does."""
    return _DESCRIPTIONS[verb] + _REQUEST_ID


def request_body(verb: Verb) -> dict[str, Any]:
    """The request body, for FastAPI's `openapi_extra`: the route reads the bytes itself."""
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/CniRequest"},
                    "example": REQUEST_EXAMPLES[verb],
                }
            },
        }
    }


def component_schemas() -> dict[str, Any]:
    """Schemas that `request_body` refers to, for `components.schemas`."""
    schema = CniRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**schema.pop("$defs"), "CniRequest": schema}
