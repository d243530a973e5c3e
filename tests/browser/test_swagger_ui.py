"""Swagger UI in a browser: an operation is opened and executed, and no request leaves the machine."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

from lab.pods import Pod
from tests.browser.chromium import Chromium
from tests.browser.conftest import ORIGIN

POOL = "document.querySelector('#operations-node-pool')"


def test_an_operation_is_executed(page: Chromium, pods: list[Pod], tmp_path: Path) -> None:
    pods[0].start()
    page.open(ORIGIN + "/docs")
    page.wait_for(POOL)
    page.evaluate(f"{POOL}.querySelector('.opblock-summary-control').click()")
    page.wait_for(f"{POOL}.querySelector('button.execute')")
    page.screenshot(tmp_path / "opened.png")
    # A press on a button that has just been drawn may come too early for Swagger UI: pressed until it is heard.
    answer = f"{POOL}.querySelector('.live-responses-table .response .highlight-code code')"
    body = page.wait_for(f"{answer} ? {answer}.textContent : void {POOL}.querySelector('button.execute').click()")
    assert json.loads(body)["counts"]["held_count"] == 1
    page.screenshot(tmp_path / "executed.png")
    assert (tmp_path / "executed.png").read_bytes() != (tmp_path / "opened.png").read_bytes()

    origins = {f"{urlsplit(url).scheme}://{urlsplit(url).netloc}" for url in page.requested_urls}
    assert origins - {"data://"} == {ORIGIN}
    assert f"{ORIGIN}/v1/pool" in page.requested_urls
    assert page.errors == []


def test_what_would_change_something_cannot_be_executed(page: Chromium) -> None:
    page.open(ORIGIN + "/docs")
    page.wait_for("document.querySelector('#operations-cni-cni_add')")
    page.evaluate("document.querySelector('#operations-cni-cni_add .opblock-summary-control').click()")
    page.wait_for("document.querySelector('#operations-cni-cni_add .responses-wrapper')")
    assert page.evaluate("document.querySelector('#operations-cni-cni_add button.execute')") is None
    status = page.evaluate(
        "fetch('/v1/log-level', {method: 'PUT', body: '{\"level\":\"debug\"}'}).then((it) => it.status)"
    )
    assert status == 403


def test_other_origins_are_out_of_reach(page: Chromium) -> None:
    """What the policy is for: a page that was tricked cannot call home."""
    page.open(ORIGIN + "/")
    page.wait_for("document.getElementById('counts').children.length")
    assert (
        page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', (error) => error.message)") == "Failed to fetch"
    )
    assert any("Content Security Policy" in words for words in page.errors)
    page.evaluate(
        "new Promise((done) => { const one = document.createElement('script');"
        " one.src = 'https://example.com/x.js'; one.onerror = done; document.head.append(one); })"
    )
    assert len([words for words in page.errors if "Content Security Policy" in words]) >= 2
