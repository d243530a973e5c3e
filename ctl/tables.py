"""Answers for people: tables, with colours on terminals only."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

PIPE_WIDTH = 1000
"""A pipe has no width: nothing is cut or wrapped there."""

_COLOUR = {
    "ok": "green",
    "done": "green",
    "waiting": "yellow",
    "running": "yellow",
    "pending": "yellow",
    "unknown": "yellow",
    "failing": "bold red",
    "failed": "bold red",
    "warning": "yellow",
    "free": "green",
    "held": "cyan",
    "cooling": "yellow",
    "retiring": "yellow",
    "quarantined": "bold red",
}


def console(stream: TextIO | None = None) -> Console:
    """NO_COLOR is honoured; nothing in an answer is taken for markup."""
    file = stream or sys.stdout
    width = None if file.isatty() else PIPE_WIDTH
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False, soft_wrap=True)


def cell(value: Any) -> Text:
    """One value. Control characters are dropped: an answer must not steer the terminal."""
    if value is None or value == "":
        return Text("-", style="dim")
    if isinstance(value, bool):
        value = "yes" if value else "no"
    if isinstance(value, list):
        value = ", ".join(str(item) for item in value) or "-"
    text = "".join(character for character in str(value) if character.isprintable())
    return Text(text, style=_COLOUR.get(text, ""))


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Table:
    """Columns under their names."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        made.add_column(column, no_wrap=True)
    for row in rows:
        made.add_row(*(cell(value) for value in row))
    return made


def facts(pairs: Iterable[tuple[str, Any]]) -> Table:
    """Names and values, one pair per line."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column()
    for name, value in pairs:
        made.add_row(Text(name), cell(value))
    return made


def step_tree(answer: Mapping[str, Any]) -> Tree:
    """An explanation."""
    tree = Tree(Text.assemble(cell(answer["state"]), f"  {answer['subject']}: ", cell(answer["summary"])))
    for step in answer["steps"]:
        _add(tree, step)
    return tree


def _add(tree: Tree, step: Mapping[str, Any]) -> None:
    branch = tree.add(Text.assemble(cell(step["state"]), f"  {step['step']}: ", cell(step["message"])))
    if step["cause"]:
        branch.add(Text.assemble("cause: ", cell(step["cause"])))
    if step["since"]:
        branch.add(Text.assemble("since: ", cell(short_time(step["since"]))))
    if step["evidence"]:
        branch.add(Text.assemble("evidence: ", cell(pairs(step["evidence"]))))
    if step["remedy"]:
        branch.add(Text.assemble("remedy: ", cell(step["remedy"])))
    if step["next_try_s"] is not None:
        branch.add(Text(f"next try: in {step['next_try_s']:.0f} s"))
    for deeper in step["because"]:
        _add(branch, deeper)


def pairs(values: Mapping[str, Any]) -> str:
    """name=value name=value"""
    return " ".join(f"{name}={value}" for name, value in values.items())


def short_time(text: str | None) -> str | None:
    """UTC to the second."""
    return None if text is None else text.partition(".")[0].removesuffix("Z").replace("T", " ") + "Z"
