"""A client for the part of the Container Runtime Interface that runs pod sandboxes, as the kubelet uses it.

The messages are encoded by hand: seven calls do not justify generated stubs and the protobuf runtime. Field numbers
are those of `pkg/apis/runtime/v1/api.proto` in kubernetes/cri-api (package `runtime.v1`), quoted beside each use;
published numbers never change meaning, so the client works with every containerd that serves `runtime.v1`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, assert_never

import grpc

QUERY_DEADLINE_S = 10.0
CHANGE_DEADLINE_S = 120.0
"""Of RunPodSandbox, StopPodSandbox and RemovePodSandbox: the kubelet's default `runtimeRequestTimeout`, two minutes."""

_RECONNECT_MS = 50


class _Wire(IntEnum):
    """Wire types (Protocol Buffers documentation, "Encoding", "Message Structure")."""

    VARINT = 0
    FIXED64 = 1
    LENGTH_DELIMITED = 2
    FIXED32 = 5


Fields = dict[int, list[int | bytes]]


class CriFailed(Exception):
    """The runtime answered with an error.

    code: the gRPC status code's name, for example `UNKNOWN` or `NOT_FOUND`.
    details: the runtime's text; for a failed CNI call it contains the plugin's `msg`.
    """

    def __init__(self, method: str, code: str, details: str) -> None:
        super().__init__(f"{method}: {code}: {details}")
        self.code = code
        self.details = details


class SandboxState(IntEnum):
    """`enum PodSandboxState`."""

    READY = 0
    NOT_READY = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """`VersionResponse`: for example `containerd`, `1.7.24`, `v1`."""

    runtime_name: str
    runtime_version: str
    api_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """`RuntimeCondition`: `RuntimeReady` or `NetworkReady`, and why not."""

    kind: str
    met: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxConfig:
    """What the kubelet says about a pod, as far as a sandbox without containers needs it.

    cgroup_parent: absolute cgroup path in cgroupfs notation; the runtime makes the sandbox's cgroup below it.
    log_directory: absolute; the runtime makes it.
    host_ports: TCP ports of the node, and the pod's port that each leads to.
    annotations: of the pod.
    """

    name: str
    namespace: str
    uid: str
    cgroup_parent: str
    log_directory: Path
    host_ports: Mapping[int, int] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    def encoded(self, *, network: int = 0) -> bytes:
        """`PodSandboxConfig`. network: `enum NamespaceMode`; 0 is a namespace of the pod's own."""
        metadata = text(1, self.name) + text(2, self.uid) + text(3, self.namespace)
        linux = text(1, self.cgroup_parent)
        if network:
            # security_context = 2: namespace_options = 1: network = 1
            linux += embedded(2, embedded(1, number(1, network)))
        # port_mappings: protocol = 1 (TCP is 0), container_port = 2, host_port = 3
        ports = (number(2, inside) + number(3, outside) for outside, inside in self.host_ports.items())
        annotations = (text(1, key) + text(2, value) for key, value in self.annotations.items())
        return (
            embedded(1, metadata)  # metadata: name = 1, uid = 2, namespace = 3
            + text(2, "" if network else self.name)  # hostname; a pod in the node's network has the node's
            + text(3, str(self.log_directory))
            + b"".join(embedded(5, port) for port in ports)
            + b"".join(embedded(7, annotation) for annotation in annotations)
            + embedded(8, linux)  # linux: cgroup_parent = 1
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """`PodSandbox`: one line of the runtime's list."""

    sandbox_id: str
    name: str
    namespace: str
    state: SandboxState


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxStatus:
    """`PodSandboxStatus`.

    addresses: empty once the sandbox is stopped.
    netns: path of the network namespace; empty when the runtime no longer has one.
    """

    sandbox_id: str
    name: str
    namespace: str
    state: SandboxState
    addresses: tuple[IPv4Address | IPv6Address, ...]
    netns: str


class Cri:
    """A connection to the runtime's Unix socket. Every method may be called from any thread.

    All raise CriFailed, with code `DEADLINE_EXCEEDED` after the deadline and `UNAVAILABLE` when nobody listens.
    """

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(
            f"unix:{socket}",
            options=[
                ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS),
                ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
            ],
        )

    def __enter__(self) -> Cri:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._channel.close()

    def version(self) -> Version:
        answer = self.call("Version", b"", QUERY_DEADLINE_S)
        return Version(
            runtime_name=text_of(answer, 2),
            runtime_version=text_of(answer, 3),
            api_version=text_of(answer, 4),
        )

    def status(self) -> tuple[Condition, ...]:
        answer = self.call("Status", b"", QUERY_DEADLINE_S)
        # StatusResponse: status = 1; RuntimeStatus: conditions = 1
        return tuple(
            Condition(
                kind=text_of(each, 1), met=number_of(each, 2) == 1, reason=text_of(each, 3), message=text_of(each, 4)
            )
            for each in messages(message(answer, 1), 1)
        )

    def has_image(self, reference: str) -> bool:
        # ImageStatusRequest: image = 1; ImageSpec: image = 1. ImageStatusResponse: image = 1, absent when unknown.
        request = embedded(1, text(1, reference))
        return 1 in self.call("ImageStatus", request, QUERY_DEADLINE_S, service="ImageService")

    def run_sandbox(self, config: SandboxConfig) -> str:
        """Start a sandbox; its id, which is also CNI_CONTAINERID."""
        # RunPodSandboxRequest: config = 1; RunPodSandboxResponse: pod_sandbox_id = 1
        return text_of(self.call("RunPodSandbox", embedded(1, config.encoded()), CHANGE_DEADLINE_S), 1)

    def stop_sandbox(self, sandbox_id: str) -> None:
        """End its process and give its network back. Stopping twice is fine."""
        self.call("StopPodSandbox", text(1, sandbox_id), CHANGE_DEADLINE_S)

    def remove_sandbox(self, sandbox_id: str) -> None:
        """Forget a stopped sandbox. Removing twice is fine."""
        self.call("RemovePodSandbox", text(1, sandbox_id), CHANGE_DEADLINE_S)

    def sandbox_status(self, sandbox_id: str) -> SandboxStatus:
        # PodSandboxStatusRequest: pod_sandbox_id = 1, verbose = 2; PodSandboxStatusResponse: status = 1, info = 2
        answer = self.call("PodSandboxStatus", text(1, sandbox_id) + flag(2, value=True), QUERY_DEADLINE_S)
        status = message(answer, 1)
        network = message(status, 5)  # PodSandboxNetworkStatus: ip = 1, additional_ips = 2; PodIP: ip = 1
        texts = [text_of(network, 1), *(text_of(more, 1) for more in messages(network, 2))]
        info = {text_of(entry, 1): text_of(entry, 2) for entry in messages(answer, 2)}  # map entry: key = 1, value = 2
        return SandboxStatus(
            **_identity(status),
            addresses=tuple(ip_address(text) for text in texts if text),
            netns=_netns(info),
        )

    def sandboxes(self) -> list[Sandbox]:
        answer = self.call("ListPodSandbox", b"", QUERY_DEADLINE_S)
        return [Sandbox(**_identity(item)) for item in messages(answer, 1)]  # ListPodSandboxResponse: items = 1

    def call(self, method: str, request: bytes, deadline_s: float, *, service: str = "RuntimeService") -> Fields:
        """One request, encoded; the answer's fields."""
        call = self._channel.unary_unary(f"/runtime.v1.{service}/{method}")
        try:
            return _decoded(call(request, timeout=deadline_s))
        except grpc.RpcError as exc:
            raise CriFailed(method, exc.code().name, exc.details() or "") from exc


def _identity(fields: Fields) -> dict[str, Any]:
    """What PodSandbox and PodSandboxStatus share: id = 1, metadata = 2 (name = 1, namespace = 3), state = 3."""
    metadata = message(fields, 2)
    return {
        "sandbox_id": text_of(fields, 1),
        "name": text_of(metadata, 1),
        "namespace": text_of(metadata, 3),
        "state": SandboxState(number_of(fields, 3)),
    }


def _netns(info: dict[str, str]) -> str:
    """containerd puts a JSON object under `info`, the OCI runtime spec (config-linux, "Namespaces") in it."""
    spec = json.loads(info.get("info", "{}")).get("runtimeSpec") or {}
    namespaces = (spec.get("linux") or {}).get("namespaces") or []
    return next((str(each.get("path", "")) for each in namespaces if each["type"] == "network"), "")


def _varint(number: int) -> bytes:
    """Base 128, least significant group first."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def embedded(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _Wire.LENGTH_DELIMITED) + _varint(len(value)) + value


def text(field: int, value: str) -> bytes:
    return embedded(field, value.encode())


def flag(field: int, *, value: bool) -> bytes:
    return number(field, int(value))


def number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _Wire.VARINT) + _varint(value)


def _decoded(data: bytes) -> Fields:
    """A message's values by field number, repeated ones in order."""
    fields: Fields = {}
    for number, value in _records(data):
        fields.setdefault(number, []).append(value)
    return fields


def _records(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        match _Wire(key & 7):
            case _Wire.VARINT:
                value, at = _read_varint(data, at)
                yield key >> 3, value
                continue
            case _Wire.LENGTH_DELIMITED:
                length, at = _read_varint(data, at)
            case _Wire.FIXED64:
                length = 8
            case _Wire.FIXED32:
                length = 4
            case unknown:
                assert_never(unknown)
        yield key >> 3, data[at : at + length]
        at += length


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at


def messages(fields: Fields, number: int) -> list[Fields]:
    return [_decoded(value) for value in fields.get(number, []) if isinstance(value, bytes)]


def message(fields: Fields, number: int) -> Fields:
    """An embedded message; an absent one has no fields (proto3 defaults)."""
    found = messages(fields, number)
    return found[-1] if found else {}


def text_of(fields: Fields, number: int) -> str:
    value = fields.get(number, [b""])[-1]
    assert isinstance(value, bytes), f"field {number} is not length-delimited"
    return value.decode()


def number_of(fields: Fields, number: int) -> int:
    value = fields.get(number, [0])[-1]
    assert isinstance(value, int), f"field {number} is not a varint"
    return value
