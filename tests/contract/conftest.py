"""Two of a kind, held to one contract.

Every test of the plugin runs twice: with the executable of a checkout, and with the static one that hosts get. So does
every test that asks for `kube`: with the simulated API server, and with a real one where there is one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests import static_shim
from tests.contract import kube_servers
from tests.contract.kube_servers import KubeServer
from tests.contract.shim_process import SHIM, testing
from tests.control_plane import ControlPlane, missing, prepare

_ONLY_FROM_SOURCE = {
    "test_it_finds_its_package_through_chains_of_links_and_in_a_fresh_copy",
    "test_an_add_loads_nothing_but_the_interpreter",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Ask for both kinds in the modules about the plugin."""
    if metafunc.module.__name__.rpartition(".")[2].startswith("test_shim_"):
        metafunc.fixturenames.append("plugin_kind")
        static = [] if metafunc.function.__name__ in _ONLY_FROM_SOURCE else ["static"]
        metafunc.parametrize("plugin_kind", ["source", *static], indirect=True)


@pytest.fixture(scope="session")
def static_plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The static executable; skips where it cannot be linked."""
    if lacking := static_shim.missing():
        pytest.skip(f"needs {lacking} to link the plugin: run `make setup`")
    return static_shim.build_in(tmp_path_factory.mktemp("static-shim"))


@pytest.fixture
def plugin_kind(request: pytest.FixtureRequest) -> Iterator[None]:
    """`source` or `static`: which executable `shim()` starts."""
    program = SHIM if request.param == "source" else request.getfixturevalue("static_plugin")
    with testing(program):
        yield


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real one, prepared as `prepare` says; skips where nobody says where its programs are."""
    if lacking := missing():
        pytest.skip(lacking)
    number = os.getpid()  # up to 4,194,304 (proc(5), pid_max)
    address = IPv4Address((127 << 24) + (1 << 23) + number)
    directory = tmp_path_factory.mktemp("control-plane")
    try:
        with ControlPlane(directory=directory, address=address) as plane:
            prepare(plane)
            yield plane
    finally:
        shutil.rmtree(directory, ignore_errors=True)  # etcd's files are tens of MB


@pytest.fixture(params=["simulated", "real"])
async def kube(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[KubeServer]:
    """Each of the two API servers, with the service account that the manifests make and nothing else."""
    if request.param == "simulated":
        async with kube_servers.simulated(tmp_path) as server:
            yield server
    else:
        async with kube_servers.real(request.getfixturevalue("control_plane"), tmp_path) as server:
            yield server
