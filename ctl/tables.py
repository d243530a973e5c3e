"""Answers for people: tables, with colours on terminals only. Nothing is ever cut: what is too long for the terminal is
wrapped, by the terminal in a table and by words in a tree."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

PIPE_WIDTH = 1000
"""A pipe has no width: nothing is wrapped there."""
GAP = "  "
"""Between two columns."""

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
    return Console(file=file, width=width, markup=False, highlight=False, emoji=False)


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


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Text:
    """Columns under their names."""
    heads = [Text(column, style="bold") for column in columns]
    return _aligned([heads, *([cell(value) for value in row] for row in rows)])


def facts(pairs: Iterable[tuple[str, Any]]) -> Text:
    """Names and values, one pair per line."""
    return _aligned([[Text(name, style="bold"), cell(value)] for name, value in pairs])


def findings(checks: Sequence[Mapping[str, Any]]) -> Text:
    """The doctor's checks, each with its fix below it: on a narrow terminal the fix is what must not be far away."""
    lines = _aligned([[cell(one["verdict"]), cell(one["name"]), cell(one["message"])] for one in checks]).split()
    made: list[Text] = []
    for one, line in zip(checks, lines, strict=True):
        made.append(line)
        if one["fix"]:
            made.append(Text.assemble(" " * 9, ("fix: ", "bold"), cell(one["fix"])))
    return Text("\n").join(made)


def _aligned(rows: Sequence[Sequence[Text]]) -> Text:
    """No blanks at the end of a line: a terminal that wraps would show them as empty lines."""
    widths = [max(one.cell_len for one in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        line = Text()
        for one, width in zip(row, widths, strict=True):
            line.append_text(one).append(" " * (width - one.cell_len) + GAP)
        line.rstrip()
        lines.append(line)
    return Text("\n").join(lines)


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


def log_line(line: Mapping[str, Any]) -> Text:
    """One line of the agent's log, as people read it; a traceback keeps its lines."""
    head = f"{short_time(line['ts'], digits=3)} {line['level']:<7} {line['event']}"
    more = {name: value for name, value in line.items() if name not in {"ts", "level", "event", "logger", "traceback"}}
    text = Text.assemble(cell(head), GAP, cell(pairs(more)))
    for traced in str(line.get("traceback", "")).splitlines():
        text.append("\n    ").append_text(cell(traced))
    text.rstrip()
    return text


def pairs(values: Mapping[str, Any]) -> str:
    """name=value name=value; what is empty is left out."""
    return " ".join(f"{name}={value}" for name, value in values.items() if value != "")


def short_time(text: str | None, *, digits: int = 0) -> str | None:
    """UTC, with so many digits after the second."""
    if text is None:
        return None
    seconds, _, fraction = text.removesuffix("Z").replace("T", " ").partition(".")
    return f"{seconds}.{fraction[:digits]:0<{digits}}Z" if digits else f"{seconds}Z"
