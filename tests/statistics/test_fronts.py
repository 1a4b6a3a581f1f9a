import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.statistics.fronts import pareto_front

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=25)


def test_by_hand() -> None:
    costs = [5.0, 1.0, 3.0, 3.0, 4.0, 9.0]
    accuracies = [0.9, 0.5, 0.8, 0.7, 0.8, 0.85]
    assert pareto_front(costs, accuracies) == [1, 2, 0]


def test_equal_points_both_stay_and_nan_goes() -> None:
    assert pareto_front([1.0, 1.0, math.nan, 0.0], [0.5, 0.5, 0.9, math.nan]) == [0, 1]
    assert pareto_front([], []) == []


@given(POINTS)
def test_exactly_the_points_that_nothing_dominates(points: list[tuple[int, int]]) -> None:
    def dominated(i: int) -> bool:
        cost, accuracy = points[i]
        return any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points)

    front = pareto_front([cost for cost, _ in points], [accuracy for _, accuracy in points])
    assert sorted(front) == [i for i in range(len(points)) if not dominated(i)]
    assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 costs"):
        pareto_front([1.0, 2.0], [0.5])
