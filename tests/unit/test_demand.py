from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.ipam.demand import DemandHistory


def test_a_peak_is_remembered_for_the_window() -> None:
    demand = DemandHistory(600.0, 0.0)
    demand.note(10, 0.0)
    demand.note(3, 100.0)
    assert demand.peak_count(700.0, 600.0) == 10
    assert demand.peak_count(700.5, 600.0) == 3
    assert demand.peak_count(700.0, 60.0) == 3


def test_only_a_rise_breaks_the_quiet() -> None:
    demand = DemandHistory(600.0, 0.0)
    demand.note(10, 5.0)
    demand.note(3, 50.0)
    assert demand.quiet_s(65.0) == 60.0
    demand.note(4, 70.0)
    assert demand.quiet_s(70.0) == 0.0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=40), st.integers(1, 12), st.integers(0, 6))
def test_it_agrees_with_remembering_everything(steps: list[tuple[int, int]], window: int, wait: int) -> None:
    demand = DemandHistory(12.0, 0.0)
    now, current = 0, 0
    ended: list[tuple[int, int]] = []  # (until when, how much)
    for gap, count in steps:
        now += gap
        ended.append((now, current))
        current = count
        demand.note(count, float(now))
    now += wait
    expected = max([current, *(count for until, count in ended if until >= now - window)])
    assert demand.peak_count(float(now), float(window)) == expected
