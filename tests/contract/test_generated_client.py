"""A Python client that openapi-python-client makes of openapi.yaml drives the live socket.

Strict: a document that the generator warns about, or makes less of than it says, fails here.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from tests.contract.openapi_document import DOCUMENT, PATH
from tests.contract.scripted_node import ScriptedNode, running

PACKAGE = "enoki_generated_client"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The generated package, importable while the module's tests run."""
    directory = tmp_path_factory.mktemp("client")
    binaries = Path(sys.executable).parent
    argv = ["generate", "--meta", "none", "--fail-on-warning", "--path", str(PATH)]
    done = subprocess.run(
        [str(binaries / "openapi-python-client"), *argv, "--output-path", str(directory / PACKAGE)],
        env={"PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(directory), "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    words = done.stdout + done.stderr
    assert done.returncode == 0, words
    assert "warning" not in words.lower(), words
    sys.path.insert(0, str(directory))
    try:
        yield importlib.import_module(PACKAGE)
    finally:
        sys.path.remove(str(directory))
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


@pytest.fixture
def node() -> ScriptedNode:
    return ScriptedNode()


@pytest.fixture
def client(package: ModuleType, node: ScriptedNode, tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "agent.sock"
    with running(node, path):
        transport = httpx.HTTPTransport(uds=str(path))
        with package.Client(base_url="http://enoki", httpx_args={"transport": transport}) as made:
            yield made


def call(name: str, client: Any, **arguments: Any) -> Any:
    """The decoded answer of one operation, by its tag and name."""
    return importlib.import_module(f"{PACKAGE}.api.{name}").sync_detailed(client=client, **arguments)


def test_there_is_a_function_for_every_operation(package: ModuleType) -> None:
    for operations in DOCUMENT["paths"].values():
        for operation in operations.values():
            module = importlib.import_module(f"{PACKAGE}.api.{operation['tags'][0]}.{operation['operationId']}")
            assert callable(module.sync_detailed)


def test_the_pool_and_its_holders(client: Any) -> None:
    pool = call("node.pool", client).parsed
    assert (pool.counts.free_count, pool.counts.held_count) == (4, 1)
    assert pool.conditions[0].cause == "subnet_exhausted"
    (held,) = call("node.allocations", client, namespace="default", pod="web-0").parsed
    assert (held.addresses, held.pod) == (["10.0.1.9"], "web-0")
    assert call("node.allocations", client, pod="other").parsed == []
    (eni,) = call("node.enis", client).parsed
    assert eni.blocks == ["10.0.1.9/32", "10.0.1.16/28"]


def test_explanations(client: Any) -> None:
    explained = call("explain.explain_pod", client, namespace="default", pod="web-0")
    assert explained.status_code == 200
    assert explained.parsed.steps
    unknown = call("explain.explain_pod", client, namespace="default", pod="nobody")
    assert (unknown.status_code, unknown.parsed.status) == (404, 404)


def test_add_and_del(package: ModuleType, client: Any, node: ScriptedNode) -> None:
    models = importlib.import_module(f"{PACKAGE}.models")
    request = {
        "container_id": "c1",
        "netns": "/run/netns/c1",
        "ifname": "eth0",
        "args": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0",
        "config": {"cniVersion": "1.0.0", "name": "enoki", "type": "enoki"},
    }
    added = call("cni.cni_add", client, body=models.CniRequest.from_dict(request))
    assert added.status_code == 200
    assert added.parsed.ips[0].address == "10.0.1.9/32"
    deleted = call("cni.cni_del", client, body=models.CniRequest.from_dict(request))
    assert deleted.status_code in {200, 204}
    assert [one.container_id for one in node.calls] == ["c1", "c1"]
    refused = call("cni.cni_add", client, body=models.CniRequest.from_dict(request | {"ifname": "../x"}))
    assert (refused.status_code, refused.parsed.code) == (400, 4)
