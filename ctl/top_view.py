"""Pure: what `enokictl top` draws, out of the API's answers. Rich texts; nothing here knows a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address, ip_network
from typing import Any

from rich.text import Text

from ctl.tables import cell

CELLS = {
    "free": ("\u2591", "green"),
    "held": ("\u2588", "cyan"),
    "cooling": ("\u2593", "yellow"),
    "retiring": ("\u2592", "magenta"),
    "quarantined": ("!", "bold red"),
}
"""One character per address, told apart without colour too."""
_BUCKET = re.compile(r'^(\w+)_bucket\{(.*?)le="([^"]+)"(.*?)\} (\S+)$')

Json = Mapping[str, Any]


def summary(startup: Json, pool: Json, budget: Json) -> Text:
    """One line of figures, and the pool's reason."""
    counts = pool["counts"]
    ready = "ready" if startup["ready"] else "starting"
    figures = [f"{name.removesuffix('_count')} {count}" for name, count in counts.items()]
    text = Text.assemble((ready, "green" if startup["ready"] else "yellow"), "  ", "  ".join(figures))
    text.append(f"  waiting {pool['waiter_count']}", style="bold red" if pool["waiter_count"] else "")
    text.append(f"  EC2 calls {budget['call_count']}, {budget['throttled_count']} throttled\n")
    return text.append_text(cell(pool["reason"]))


def strips(enis: Sequence[Json], pool: Json) -> Text:
    """Every ENI with its blocks: a /28 is a strip of 16 cells, single addresses share one."""
    states = {one["eni_id"]: {ip_address(a["address"]): a["state"] for a in one["addresses"]} for one in pool["enis"]}
    text = Text()
    for eni in enis:
        known = states.get(eni["eni_id"], {})
        text.append(f"{eni['eni_id']}  device {eni['device']}  {eni['primary_address']}", style="bold")
        text.append("" if eni["managed"] else "  not ours", style="dim")
        text.append(f"  {eni['counts']['held_count']} held, {eni['counts']['free_count']} free\n")
        prefixes = [block for block in map(ip_network, eni["blocks"]) if block.num_addresses > 1]
        inside = set()
        for block in prefixes:
            addresses = [one for one in known if one in block]
            inside |= set(addresses)
            text.append(f"  {block!s:<20}").append_text(strip([known[one] for one in sorted(addresses, key=int)]))
            text.append("\n")
        single = [known[one] for one in sorted(known, key=int) if one not in inside]
        if single:
            text.append(f"  {'single addresses':<20}").append_text(strip(single)).append("\n")
    return text if text.plain else Text("no ENI is known yet", style="dim")


def strip(states: Sequence[str]) -> Text:
    """One cell per address."""
    text = Text()
    for state in states:
        text.append(*CELLS.get(state, ("?", "")))
    return text


def legend() -> Text:
    """What the cells mean."""
    text = Text()
    for state, (character, style) in CELLS.items():
        text.append(character, style=style).append(f" {state}   ")
    return text


def troubles(pool: Json) -> Text:
    """What the pool cannot do."""
    text = Text()
    for one in pool["conditions"]:
        again = "" if one["retry_after_s"] is None else f" (next try in {one['retry_after_s']:.0f} s)"
        text.append(one["cause"], style="bold red").append(": ").append_text(cell(one["message"])).append(f"{again}\n")
    return text if text.plain else Text("EC2 refuses nothing", style="dim")


def calls(plan: Json | None, budget: Json) -> Text:
    """EC2 calls in flight, and the counts by action."""
    text = Text()
    for one in () if plan is None else plan["in_flight"]:
        text.append("in flight  ", style="yellow").append(one["action"]).append("  ").append_text(cell(one["reason"]))
        text.append("\n")
    for action in budget["actions"]:
        failed = sum(call["count"] for call in action["calls"] if call["outcome"] != "ok")
        made = sum(call["count"] for call in action["calls"])
        text.append(f"{action['action']:<34}{made:>6}").append(
            f"{failed:>6} failed\n", style="red" if failed else "dim"
        )
    return text if text.plain else Text("no call yet", style="dim")


def latencies(metrics: str) -> Text:
    """Half and nearly all of the ADDs, by step and whole, from the histograms."""
    text = Text()
    found = histograms(metrics, "enoki_add_step_seconds") | histograms(metrics, "enoki_cni_seconds")
    for labels, buckets in sorted(found.items()):
        if buckets[-1][1]:
            text.append(f"{labels:<28}{shown_s(quantile(buckets, 0.5)):>10}{shown_s(quantile(buckets, 0.99)):>10}")
            text.append(f"{buckets[-1][1]:>8.0f} times\n", style="dim")
    return text if text.plain else Text("no ADD yet", style="dim")


def histograms(metrics: str, name: str) -> dict[str, list[tuple[float, float]]]:
    """(upper bound in seconds, cumulated count) by the other labels' values."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in metrics.splitlines():
        match = _BUCKET.match(line)
        if match is not None and match[1] == name:
            labels = " ".join(re.findall(r'"([^"]*)"', match[2] + match[4]))
            found.setdefault(labels, []).append((float(match[3]), float(match[5])))
    return found


def quantile(buckets: Sequence[tuple[float, float]], share: float) -> float:
    """The upper bound of the bucket that holds it: no more is known."""
    wanted = buckets[-1][1] * share
    return next(bound for bound, count in buckets if count >= wanted)


def shown_s(seconds: float) -> str:
    """With a unit; "<" because it is an upper bound."""
    if seconds == float("inf"):
        return "long"
    return f"<{seconds * 1000:g} ms" if seconds < 1 else f"<{seconds:g} s"
