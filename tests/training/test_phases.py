"""A budget is divided without loss, and the learning rate runs once through each phase."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.training.phases import plan_phases
from bench.training.recipe import Recipe
from bench.training.schedule import learning_rate_factor
from bench.training.seeds import stream
from methods.base import Phase


@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6), st.integers(6, 400))
def test_phases_fill_the_budget_exactly(shares: list[float], epochs: int) -> None:
    phases = [Phase(str(at), share / sum(shares)) for at, share in enumerate(shares)]
    planned = plan_phases(phases, epochs)
    assert sum(part.epochs for part in planned) == epochs
    assert all(part.epochs >= 1 for part in planned)
    assert [part.first_epoch for part in planned] == [
        sum(before.epochs for before in planned[:at]) for at in range(len(planned))
    ]
    for part in planned:
        assert abs(part.epochs - part.phase.fraction * epochs) <= len(phases)


def test_a_budget_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        plan_phases([Phase("a", 0.5), Phase("b", 0.5)], 1)
    with pytest.raises(ValueError, match=r"0\.9"):
        plan_phases([Phase("a", 0.4), Phase("b", 0.5)], 10)


def test_schedules() -> None:
    cosine = Recipe(epochs=10)
    assert learning_rate_factor(cosine, 0, 100, 10) == 1.0
    assert learning_rate_factor(cosine, 50, 100, 10) == pytest.approx(0.5)
    assert learning_rate_factor(cosine, 99, 100, 10) < 0.001
    step = Recipe(epochs=10, schedule="step", step_at=(0.5, 0.8), step_factor=0.1)
    assert [learning_rate_factor(step, at, 100, 10) for at in (49, 50, 80)] == pytest.approx([1, 0.1, 0.01])
    warm = Recipe(epochs=10, schedule="constant", warmup_epochs=2)
    assert [learning_rate_factor(warm, at, 100, 10) for at in (0, 9, 19, 50)] == pytest.approx(
        [0.05, 0.5, 1, 1]
    )


def test_streams_differ_by_every_part_of_their_name() -> None:
    seeds = {stream(base, name, at) for base in range(3) for name in ("order", "init") for at in range(3)}
    assert len(seeds) == 18
    assert stream(0, "order", 1) == stream(0, "order", 1)
