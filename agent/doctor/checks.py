"""Pure: every check, in the order of the answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.doctor import cloud_checks, host_checks, kernel_checks
from agent.doctor.facts import Facts, Judgement, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One check and what it found. title: what is as it should be when it is ok."""

    name: str
    title: str
    judgement: Judgement


NAMES = (*cloud_checks.CHECKS, *host_checks.CHECKS, *kernel_checks.NAMES)
_WORST_FIRST = (Verdict.FAILING, Verdict.WARNING, Verdict.OK)


def examine(facts: Facts) -> tuple[Checked, ...]:
    """Every check."""
    return tuple(_examined(facts))


def worst(found: tuple[Checked, ...]) -> Verdict:
    """Of all that could be looked at."""
    verdicts = {one.judgement.verdict for one in found}
    return next((one for one in _WORST_FIRST if one in verdicts), Verdict.OK)


def _examined(facts: Facts) -> Iterator[Checked]:
    for name, check in {**cloud_checks.CHECKS, **host_checks.CHECKS}.items():
        yield Checked(name=name, title=_first_line(check.__doc__), judgement=check(facts))
    for name, words in kernel_checks.NAMES.items():
        yield Checked(name=name, title=_first_line(words), judgement=kernel_checks.judge(name, facts))


def _first_line(words: str | None) -> str:
    return (words or "").partition("\n")[0].rstrip(".")
