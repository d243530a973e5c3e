"""docs/packet-walk.md is true: its commands run in a lab of their own, from the top, in one shell.

Each `sh` block may be followed by a `text` block: lines of its output that matter. Addresses, MACs and ids differ from
lab to lab; within one line the same address must stay the same, so that a translation would show.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from lab.lab import REPOSITORY, Lab
from lab.pods import delete_namespace
from tests.system.conftest import LabFactory

PAGE = REPOSITORY / "docs" / "packet-walk.md"
MARKER = "----- end of block -----"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PODS = "abcdef"

KINDS = (
    ("MAC", r"\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b"),
    ("ADDRESS", r"\b\d{1,3}(?:\.\d{1,3}){3}\b(?::\d+)?"),
    ("ENI", r"\beni-[0-9a-f]{17}\b"),
    ("SUBNET", r"\bsubnet-[0-9a-f]{17}\b"),
    ("LINK", r"\beni[0-9a-f]{11}\b"),
    ("ID", r"\bid=\d+"),
    ("TIME", r"\btime \d+ms|\bexpires [\dms]+"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A block of commands, and the lines that its output must have."""

    commands: str
    expected: tuple[str, ...]


def steps(page: str) -> list[Step]:
    found: list[Step] = []
    for kind, text in BLOCK.findall(page):
        if kind == "sh":
            found.append(Step(commands=text, expected=()))
        elif kind == "text":
            assert not found[-1].expected
            found[-1] = Step(commands=found[-1].commands, expected=tuple(text.splitlines()))
    return found


def essential(line: str) -> str:
    """The line without what differs from lab to lab: `ADDRESS1`, `ADDRESS2` in the order of their coming."""
    for name, pattern in KINDS:
        seen: dict[str, str] = {}

        def numbered(match: re.Match[str], name: str = name, seen: dict[str, str] = seen) -> str:
            return seen.setdefault(match[0], f"{name}{len(seen) + 1}")

        line = re.sub(pattern, numbered, line)
    return " ".join(line.split())


@pytest.fixture
def vpc(lab: LabFactory) -> Iterator[Lab]:
    made = lab(node_count=2, instance_type="t3.small")  # what `make lab` makes
    yield made
    for letter in PODS:
        delete_namespace(f"{made.plan.name}-pod-{letter}")


def test_the_page_is_true(vpc: Lab) -> None:
    page = PAGE.read_text()
    for ours in ("enoki-node-", "enoki-pod-", "/run/enoki/"):
        page = page.replace(ours, ours.replace("enoki", vpc.plan.name))
    walk = steps(page)
    assert len(walk) > 10
    script = "".join(f"{step.commands}\necho '{MARKER}'\n" for step in walk)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=REPOSITORY,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    outputs = done.stdout.split(f"{MARKER}\n")
    assert len(outputs) == len(walk) + 1
    problems = []
    for step, output in zip(walk, outputs, strict=False):
        lines = [essential(line) for line in output.splitlines()]
        problems += [
            f"{wanted!r} is not in the output of\n{step.commands}\n{output}"
            for wanted in step.expected
            if not any(essential(wanted) in line for line in lines)
        ]
    assert not problems, "\n".join(problems) + done.stderr


def test_a_translation_would_be_noticed() -> None:
    plain = "src=10.0.0.11 dst=10.0.0.9 src=10.0.0.9 dst=10.0.0.11"
    translated = "src=10.0.0.11 dst=10.0.0.9 src=10.0.0.9 dst=10.0.0.4"
    assert essential(plain) != essential(translated)
    assert essential(plain) == essential("src=10.1.2.3 dst=10.1.2.4 src=10.1.2.4 dst=10.1.2.3")
