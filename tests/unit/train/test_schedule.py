"""The schedule ends with the training, whatever ends it."""

from __future__ import annotations

import pytest

from tasks.train.schedule import Budget, one_cycle


def test_the_cycle_warms_up_and_comes_to_rest() -> None:
    values = [one_cycle(step / 100) for step in range(101)]
    peak = values.index(max(values))
    assert values[0] == pytest.approx(0.1)
    assert values[peak] == pytest.approx(1.0, abs=0.01)
    assert 10 <= peak <= 20
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert values[-1] == pytest.approx(0.01)
    assert one_cycle(1.5) == values[-1]


def test_steps_or_time_decide_whichever_is_nearer_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("tasks.train.schedule.time.monotonic", lambda: now)
    budget = Budget(steps=1000, seconds=50.0)
    assert budget.fraction(100) == pytest.approx(0.1)
    budget.start()
    now = 125.0
    assert budget.fraction(100) == pytest.approx(0.5)
    assert budget.fraction(800) == pytest.approx(0.8)
    assert not budget.spent
    now = 150.0
    assert budget.spent


def test_without_a_limit_time_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    budget = Budget(steps=10, seconds=None)
    budget.start()
    monkeypatch.setattr("tasks.train.schedule.time.monotonic", lambda: 1e9)
    assert budget.fraction(5) == 0.5
    assert not budget.spent
