"""What a start imports: what is not there when the door opens, and what is never there."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"aiobotocore", "aiohttp", "botocore", "fastapi", "pydantic", "pyroute2.netlink", "uvicorn"}


@cache
def modules_after(statement: str) -> set[str]:
    """The modules that an interpreter has after a statement, where httpx is not installed (it is for tests only)."""
    program = f"import sys, json; sys.modules['httpx'] = None\n{statement}\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout))


def test_the_door_opens_before_the_libraries_are_imported() -> None:
    loaded = modules_after("import agent.__main__")

    assert "agent.runtime.door" in loaded
    assert not HEAVY & loaded


@pytest.mark.parametrize(
    "unused",
    [
        "kubernetes_asyncio.client.models.v1_pod",  # 38 MiB with the others: docs/decisions/0058
        "kubernetes_asyncio.client.api",
        "multiprocessing",
        "kubernetes_asyncio.dynamic",
        "pyroute2.ndb",  # docs/decisions/0052
        "pyroute2.iproute",
        "uvicorn.main",  # with click: docs/decisions/0059
        "click",
        "sqlite3",
        "boto3",
        "yaml",
        "agent.adoption",
        "rich",
    ],
)
def test_a_whole_agent_never_imports(unused: str) -> None:
    loaded = modules_after("import agent.__main__, agent.assembly")

    used = {"agent.node", "pyroute2.netlink.rtnl.rtmsg", "kubernetes_asyncio.client.rest"}
    assert used <= loaded
    assert unused not in loaded


def test_an_agent_that_serves_has_no_pydantic_1() -> None:
    serving = "import agent.__main__ as main; main.spare_libraries(); from api.app import create_app; create_app(None)"

    loaded = modules_after(serving)

    assert "fastapi" in loaded
    assert not [name for name in loaded if name.startswith("pydantic.v1.")]
