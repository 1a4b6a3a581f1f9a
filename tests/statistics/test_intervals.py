import math

import pytest
from scipy import stats

from bench.statistics.intervals import paired_difference, ratio_of_means, t_interval


def test_three_seeds_by_hand() -> None:
    """mean 2, standard deviation 1; t(0.975, 2) = 4.3027 from the printed tables."""
    interval = t_interval([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half_width == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert interval.n == 3


def test_agrees_with_scipy() -> None:
    values = [0.91, 0.94, 0.90, 0.935, 0.921]
    low, high = stats.t.interval(0.9, 4, loc=0.9212, scale=stats.sem(values))
    interval = t_interval(values, confidence=0.9)
    assert (interval.mean - interval.half_width, interval.mean + interval.half_width) == pytest.approx(
        (low, high)
    )


def test_one_seed_has_no_interval() -> None:
    assert t_interval([0.5])[:1] == (0.5,)
    assert math.isnan(t_interval([0.5]).half_width)
    assert t_interval([]).n == 0
    assert math.isnan(t_interval([]).mean)


def test_nan_is_left_out() -> None:
    assert t_interval([1.0, math.nan, 3.0])[::2] == (2.0, 2)


def test_pairing_takes_out_what_the_seeds_share() -> None:
    reference = {0: 0.90, 1: 0.95, 2: 0.99, 3: 0.5}
    values = {seed: reference[seed] - 0.02 for seed in (0, 1, 2)} | {9: 0.1}
    difference = paired_difference(values, reference)
    assert difference.n == 3
    assert difference.mean == pytest.approx(-0.02)
    assert difference.half_width == pytest.approx(0, abs=1e-12)


def test_no_seed_in_common() -> None:
    assert paired_difference({0: 1.0}, {1: 1.0}).n == 0


def test_a_ratio_of_means_by_hand() -> None:
    """12 / 8; the pairs add (12 - 1.5 · 6) / 8 = 0.375 and as much less, of standard deviation 0.5303; t(0.975, 1) =
    12.7062."""
    interval = ratio_of_means([12, 12, math.nan], [6, 10, 1])
    assert interval.mean == 1.5
    assert interval.half_width == pytest.approx(12.7062 * 0.5303301 / math.sqrt(2), rel=1e-5)
    assert interval.n == 2


def test_over_one_and_the_same_it_is_the_interval_of_the_mean() -> None:
    assert ratio_of_means([1.0, 2.0, 3.0], [4.0] * 3) == pytest.approx(t_interval([0.25, 0.5, 0.75]))


def test_a_ratio_without_spread_or_over_nothing() -> None:
    assert ratio_of_means([3.0], [2.0])[::2] == (1.5, 1)
    assert math.isnan(ratio_of_means([3.0], [2.0]).half_width)
    assert math.isnan(ratio_of_means([], []).mean)
    assert math.isinf(ratio_of_means([3.0], [0.0]).mean)
