"""`enokictl top` with textual's pilot, against a scripted node."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.widgets import Static

from ctl import top_view
from ctl.client import Client
from ctl.top import Top
from tests.contract.scripted_node import WAIT_S, ScriptedNode, running
from tests.contract.shim_process import ROOT

METRICS = """\
enoki_add_step_seconds_bucket{le="0.001",step="wire"} 90.0
enoki_add_step_seconds_bucket{le="0.004",step="wire"} 99.0
enoki_add_step_seconds_bucket{le="+Inf",step="wire"} 100.0
"""


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so():
            await asyncio.sleep(0.01)


async def test_it_shows_the_node_and_goes_on_when_the_agent_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    app = Top(Client(str(path)), every_s=0.05)
    async with app.run_test(size=(120, 50)) as pilot:

        def part(name: str) -> str:
            return str(app.query_one(f"#{name}", Static).render())

        await until(lambda: "no agent at" in part("node"))
        node = ScriptedNode()
        with running(node, path):
            await until(lambda: "ready" in part("node"))
            assert "waiting 0" in part("node")
            assert "eni-0123456789abcdef0" in part("addresses")
            assert "subnet_exhausted" in part("troubles")
            assert "DescribeNetworkInterfaces" in part("EC2")
            await pilot.press("p")
            await pilot.press("q")


@pytest.mark.parametrize("key", ["q", "ctrl+c"])
async def test_it_can_be_left(tmp_path: Path, key: str) -> None:
    app = Top(Client(str(tmp_path / "agent.sock")), every_s=0.05)
    async with app.run_test() as pilot:
        await pilot.press(key)
    assert (app.return_code, app._exit) == (0, True)


def test_without_textual_it_says_how_to_get_it() -> None:
    program = "import sys; sys.modules['textual'] = None; from ctl.__main__ import main; sys.exit(main(['top']))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=WAIT_S, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'enoki[top]'" in done.stderr


def test_a_prefix_is_a_strip_of_cells() -> None:
    addresses = [
        {"address": f"10.0.1.{16 + number}", "state": "held" if number < 4 else "free"} for number in range(16)
    ]
    addresses.append({"address": "10.0.1.9", "state": "quarantined"})
    eni = {
        "eni_id": "eni-1",
        "device": 0,
        "primary_address": "10.0.1.5",
        "managed": True,
        "counts": {"held_count": 4, "free_count": 12},
        "blocks": ["10.0.1.16/28", "10.0.1.9/32"],
    }
    lines = top_view.strips([eni], {"enis": [{"eni_id": "eni-1", "addresses": addresses}]}).plain.splitlines()
    assert lines[1].split() == ["10.0.1.16/28", "\u2588" * 4 + "\u2591" * 12]
    assert lines[2].split() == ["single", "addresses", "!"]
    assert top_view.strips([], {"enis": []}).plain == "no ENI is known yet"


def test_latencies_are_upper_bounds_of_buckets() -> None:
    assert top_view.latencies(METRICS).plain.split() == ["wire", "<1", "ms", "<4", "ms", "100", "times"]
    assert top_view.latencies("").plain == "no ADD yet"


def test_calls_in_flight() -> None:
    plan = {"in_flight": [{"action": "create_eni", "reason": "short of 3"}]}
    words = top_view.calls(plan, {"actions": []}).plain
    assert words.split() == ["in", "flight", "create_eni", "short", "of", "3"]
