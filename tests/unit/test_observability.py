"""The runbook has a section for every cause; alert rules are sound and lead into it; the dashboard asks what exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.errors import Cause

ROOT = Path(__file__).resolve().parents[2]
OBSERVABILITY = ROOT / "deploy" / "observability"
RULES: dict[str, Any] = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())
DASHBOARD: dict[str, Any] = json.loads((OBSERVABILITY / "dashboard.json").read_text())
RUNBOOK = (ROOT / "docs" / "operations.md").read_text()
SECTIONS = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.+)$", RUNBOOK, re.MULTILINE)}


def metric_names() -> set[str]:
    """Every metric the rules and the dashboard ask for."""
    rules = [rule["expr"] for group in RULES["groups"] for rule in group["rules"]]
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    return {name for expression in rules + panels for name in re.findall(r"\b(?:enoki|awscni)_[a-z0-9_]+", expression)}


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_has_its_section(cause: Cause) -> None:
    assert str(cause) in SECTIONS


def test_no_section_is_about_a_cause_that_is_gone() -> None:
    about = RUNBOOK.partition("# Causes")[2].partition("# Other things")[0]
    assert set(re.findall(r"^## (.+)$", about, re.MULTILINE)) == set(Cause)


def test_every_alert_leads_into_the_runbook() -> None:
    for rule in (rule for group in RULES["groups"] for rule in group["rules"]):
        page, _, section = rule["annotations"]["runbook"].partition("#")
        assert (ROOT / page).exists()
        assert section in SECTIONS | {"{{ $labels.cause }}"}, rule["alert"]


def test_every_alert_is_tried() -> None:
    (group,) = RULES["groups"]
    tried = yaml.safe_load((OBSERVABILITY / "alerts_test.yaml").read_text())["tests"]
    fired = {one["alertname"] for test in tried for one in test["alert_rule_test"] if one["exp_alerts"]}
    assert fired == {rule["alert"] for rule in group["rules"]}


def test_promtool_agrees() -> None:
    promtool = shutil.which("promtool", path=f"{ROOT}/.venv/bin:/usr/bin")
    assert promtool is not None, "scripts/setup.sh puts it into .venv/bin"
    for argv in (["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]):
        done = subprocess.run(
            [promtool, *argv], cwd=OBSERVABILITY, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
