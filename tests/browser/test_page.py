"""The page for people, with a real agent behind it: what it shows, live, on any width, by keyboard, in both colours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from lab.lab import Lab, LabNode
from lab.pods import Pod
from tests.browser.chromium import Chromium
from tests.browser.conftest import ORIGIN
from tests.system.agent_process import agent
from tests.system.vpc_control import VpcControl

TAB, ENTER, RIGHT, END, HOME = ("Tab", 9), ("Enter", 13), ("ArrowRight", 39), ("End", 35), ("Home", 36)
SHOWN = (
    "document.querySelectorAll('button.cell').length >= 5 && document.getElementById('link').dataset.state === 'live'"
)

TROUBLE = "document.getElementById('trouble')"

OUTSIDE = """
[...document.querySelectorAll("main section *")].filter((one) => one.checkVisibility()).filter((one) => {
  const card = one.closest("main > section, .column > section");
  return one.getBoundingClientRect().right > card.getBoundingClientRect().right - 8;
}).map((one) => one.innerText)
"""

CONTRASTS = """
(() => {
  // WCAG 2.2: relative luminance, and the contrast of two colours (1.4.3 and 1.4.11).
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const colour = channels(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest("noscript")) continue;
    const [a, b] = [luminance(channels(getComputedStyle(node).color)), luminance(ground(node))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), walker.currentNode.data.trim()]);
  }
  return found;
})()
"""


def opened(page: Chromium) -> None:
    page.open(ORIGIN + "/")
    page.wait_for(SHOWN)


def row_of(pod: Pod) -> str:
    return (
        f"[...document.querySelectorAll('#pods tbody tr')].find((row) => row.innerText.includes('default/{pod.name}'))"
    )


def press(page: Chromium, key: tuple[str, int]) -> None:
    page.press(key[0], code=key[1])


def test_everything_is_there_and_nothing_comes_from_elsewhere(page: Chromium, pods: list[Pod], tmp_path: Path) -> None:
    address = pods[0].start()
    opened(page)
    cell = page.wait_for(f"document.querySelector('button.cell[data-key=\"{address}\"][data-state=held]').ariaLabel")
    assert cell == f"{address}, held by default/web-0"
    words = page.wait_for(f"{row_of(pods[0])}.innerText")
    assert address in words
    page.wait_for(f"document.getElementById('events').innerText.includes('default/web-0 got {address}')")
    assert page.evaluate("document.querySelectorAll('#counts dd')[0].innerText") == "1"
    assert {f"{urlsplit(url).scheme}://{urlsplit(url).netloc}" for url in page.requested_urls} == {ORIGIN}
    assert page.errors == []
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_a_pod_that_comes_and_goes_is_seen_without_reloading(page: Chromium, pods: list[Pod]) -> None:
    opened(page)
    page.evaluate("window.sameDocument = true")
    address = pods[1].start()
    page.wait_for(row_of(pods[1]))
    page.wait_for(f"document.getElementById('news').innerText === 'default/web-1 got {address}'")
    pods[1].stop()
    page.wait_for(f"!({row_of(pods[1])})")
    page.wait_for(f"document.querySelector('button.cell[data-key=\"{address}\"]').dataset.state === 'free'")
    assert page.evaluate("window.sameDocument")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 768, 1280])
def test_every_text_can_be_read_and_nothing_scrolls_sideways(
    page: Chromium, pods: list[Pod], scheme: str, width: int
) -> None:
    pods[0].start()
    page.size(width, 700, mobile=width < 500)
    page.colours(scheme)
    opened(page)
    page.wait_for(row_of(pods[0]))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.querySelectorAll('*')].every((one) => one.scrollWidth <= innerWidth)")
    assert page.evaluate(OUTSIDE) == []
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 40
    assert [pair for pair in contrasts if pair[0] < 4.5] == []
    lightness = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(lightness.split("(")[1].split(",")[0]) < 64) == (scheme == "dark")


def test_fingers_find_what_they_press(page: Chromium) -> None:
    page.size(320, 700, mobile=True)
    opened(page)
    # WCAG 2.2, 2.5.8: 24 by 24 CSS pixels.
    sizes = page.evaluate(
        "[...document.querySelectorAll('button, nav a')].map((one) => one.getBoundingClientRect())"
        ".map((box) => Math.min(box.width, box.height))"
    )
    assert min(sizes) >= 24


def test_by_keyboard(page: Chromium) -> None:
    opened(page)
    focused = "[document.activeElement.tagName, document.activeElement.innerText]"
    order = []
    for _ in range(4):
        press(page, TAB)
        order.append(page.evaluate(focused))
    first = page.evaluate("document.querySelector('button.cell').innerText")
    assert order == [["A", "Skip to the pool"], ["A", "API"], ["A", "Metrics"], ["BUTTON", first]]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"

    cells = page.evaluate(
        "[...document.querySelector('.strip').querySelectorAll('button')].map((one) => one.innerText)"
    )
    walked = []
    for key in (RIGHT, RIGHT, END, RIGHT, HOME):
        press(page, key)
        walked.append(page.evaluate("document.activeElement.innerText"))
    assert walked == [cells[1], cells[2], cells[-1], cells[-1], cells[0]]
    # The address of a pod of the test before this one may still cool down.
    page.wait_for(f"document.getElementById('detail').innerText.endsWith('.{cells[0]}, free')")
    assert page.evaluate("document.querySelectorAll('.strip:first-of-type button[tabindex=\"0\"]').length") >= 1

    page.open(ORIGIN + "/")
    page.wait_for(SHOWN)
    press(page, TAB)
    press(page, ENTER)
    assert page.evaluate("document.activeElement.id") == "main"


def test_focus_stays_while_the_page_changes(page: Chromium, pods: list[Pod]) -> None:
    opened(page)
    page.evaluate("[...document.querySelectorAll('button.cell')].at(-1).focus()")
    before = page.evaluate("document.activeElement.dataset.key")
    address = pods[2].start()
    page.wait_for(f"document.querySelector('button.cell[data-key=\"{address}\"][data-state=held]')")
    assert page.evaluate("document.activeElement.dataset.key") == before


def test_what_a_screen_reader_is_told(page: Chromium, pods: list[Pod]) -> None:
    pods[0].start()
    opened(page)
    page.wait_for(row_of(pods[0]))
    tree = page.call("Accessibility.getFullAXTree")["nodes"]
    seen = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]}
    roles = {role for role, _ in seen}
    assert {("heading", "Pool"), ("heading", "Pods"), ("heading", "Events"), ("table", "Pods")} <= seen
    assert {"main", "navigation", "status", "columnheader", "cell", "button", "list"} <= roles
    assert all(name for role, name in seen if role in {"button", "link", "table", "group"})
    live = page.evaluate("[...document.querySelectorAll('[role=status]')].map((one) => one.id)")
    assert live == ["link", "news"]


def test_trouble_is_named_with_its_remedy(page: Chromium, vpc: Lab, node: LabNode) -> None:
    vpc.stop_agent(0)
    fault: dict[str, Any] = {"kind": "error", "code": "UnauthorizedOperation", "http_status": 403}
    # More than two ENIs hold: a third is wanted.
    with VpcControl(vpc).fault("CreateNetworkInterface", **fault), agent(vpc, node, WARM_IP_TARGET="13") as other:
        other.wait_until_ready()
        opened(page)
        words = page.wait_for(f"{TROUBLE}.innerText.includes('iam_denied') && {TROUBLE}.innerText")
        shown(page)
    vpc.start_agents([0])
    assert "CreateNetworkInterface" in words


def shown(page: Chromium) -> None:
    """What is in trouble fits a phone, and can be read."""
    assert page.evaluate(
        f"{TROUBLE}.checkVisibility() && {TROUBLE}.querySelectorAll('.quiet')[0].innerText.length > 10"
    )
    page.size(320, 700, mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert [pair for pair in page.evaluate(CONTRASTS) if pair[0] < 4.5] == []


def test_prefixes_are_shown_as_strips(page: Chromium, vpc: Lab, node: LabNode) -> None:
    vpc.stop_agent(0)
    with agent(vpc, node, ENABLE_PREFIX_DELEGATION="true") as other:
        other.wait_until_ready()
        page.size(320, 700, mobile=True)
        opened(page)
        strip = page.wait_for("document.querySelector('.block')?.innerText")
        assert strip.splitlines()[0].endswith("/28")
        assert page.evaluate("document.querySelector('.block').querySelectorAll('button').length") == 16
        assert page.evaluate(OUTSIDE) == []
    vpc.start_agents([0])


def test_an_agent_that_goes_and_comes_back(page: Chromium, vpc: Lab, pods: list[Pod]) -> None:
    opened(page)
    page.evaluate("window.sameDocument = true")
    vpc.kill_agent(0)
    page.wait_for("document.getElementById('link').dataset.state === 'lost'")
    vpc.start_agents([0])
    page.wait_for("document.getElementById('link').dataset.state === 'live'")
    pods[0].start()
    page.wait_for(row_of(pods[0]))
    assert page.evaluate("window.sameDocument")


def test_the_page_that_is_shown_without_an_agent_fills_by_itself(page: Chromium, vpc: Lab) -> None:
    opened(page)
    # The page is in the browser; every answer of the agent but the page's own files fails at first.
    page.call("Network.setBlockedURLs", urls=["*/v1/*"])
    page.open(ORIGIN + "/?again")
    page.wait_for("document.getElementById('link').dataset.state === 'lost'")
    page.call("Network.setBlockedURLs", urls=[])
    page.wait_for(SHOWN)
    page.errors.clear()  # the blocked requests


def test_words_of_events(page: Chromium) -> None:
    opened(page)
    event = {
        "kind": "cni_failed",
        "fields": {"verb": "ADD", "namespace": "a", "pod": "b", "cause": "c", "message": "d"},
    }
    said = page.evaluate(f"import('/dev/events.js').then((it) => it.told({json.dumps(event)}))")
    assert said == {"text": "ADD of a/b failed: d", "bad": True, "group": ""}
    hostile = {"kind": "finding", "fields": {"finding": "x", "message": "<img src=x onerror=alert(1)>"}}
    said = page.evaluate(f"import('/dev/events.js').then((it) => it.told({json.dumps(hostile)}))")
    assert said["text"] == "x: <img src=x onerror=alert(1)>"
    assert page.evaluate("document.querySelectorAll('#events img').length") == 0
