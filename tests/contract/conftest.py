"""Every test of the plugin runs twice: with the executable of a checkout, and with the static one that hosts get."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import static_shim
from tests.contract.shim_process import SHIM, testing

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
