"""Statistics of paired blocks: against numpy, and against a truth that is known."""

import numpy as np
import pytest

from bench.measure.blocks import PairedSamples
from bench.measure.spread import _resampled_medians, block_spread, percentiles, speedup


def test_median_and_percentiles_are_over_all_blocks() -> None:
    blocks = [np.arange(0.0, 40.0), np.arange(40.0, 101.0)]
    assert percentiles(blocks) == (50.0, 10.0, 90.0)


def test_block_spread_is_the_range_of_block_medians() -> None:
    blocks = [np.array([1.0, 2.0, 900.0]), np.array([2.1]), np.array([1.0, 1.9, 2.0])]
    assert block_spread(blocks) == pytest.approx((2.1 - 1.9) / 2.0)


def test_speedup_is_the_ratio_of_medians_not_of_means() -> None:
    samples = PairedSamples([np.array([6.0, 6.0, 600.0])], [np.array([2.0, 3.0, 9.0])])
    assert speedup(samples).value == 2.0


def test_resampled_medians_are_numpy_s() -> None:
    generator = np.random.default_rng(5)
    samples = [generator.lognormal(size=size) for size in (1, 2, 7, 4, 3)]
    draws = generator.multinomial(5, np.full(5, 0.2), size=200)
    expected = [
        np.median(np.concatenate([np.tile(block, times) for block, times in zip(samples, draw, strict=True)]))
        for draw in draws
    ]
    np.testing.assert_array_equal(_resampled_medians(samples, draws), expected)


def test_a_drift_that_hits_both_networks_cancels() -> None:
    drift = [1.0, 1.3, 0.8, 1.1, 2.0, 0.9, 1.0, 1.7]
    ratio = speedup(PairedSamples([np.array([2 * f]) for f in drift], [np.array([f]) for f in drift]))
    assert (ratio.value, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


def fake(generator: np.random.Generator, ratio: float, blocks: int = 12) -> PairedSamples:
    """Blocks with a shared and an own random shift, samples with a long tail."""

    def block(level: float) -> np.ndarray:
        own = 1 + 0.02 * generator.standard_normal()
        return level * own * (1 + 0.05 * generator.exponential(size=40))

    shared = 1 + 0.1 * generator.standard_normal(blocks)
    return PairedSamples([block(ratio * s) for s in shared], [block(s) for s in shared])


def test_the_interval_covers_the_known_ratio() -> None:
    generator = np.random.default_rng(11)
    trials = [speedup(fake(generator, 1.7), resamples=300) for _ in range(200)]
    assert all(trial.low <= trial.value <= trial.high for trial in trials)
    covered = sum(trial.low <= 1.7 <= trial.high for trial in trials)
    assert 0.85 <= covered / len(trials) <= 0.995  # nominal 0.95; twelve blocks cover a little less
    assert np.median([trial.high - trial.low for trial in trials]) < 0.3


def test_the_same_samples_give_the_same_interval() -> None:
    samples = fake(np.random.default_rng(2), 1.2)
    assert speedup(samples) == speedup(samples)


def test_networks_swapped_give_the_inverse() -> None:
    samples = fake(np.random.default_rng(3), 1.4)
    there, back = speedup(samples), speedup(PairedSamples(samples.compact, samples.dense))
    assert back.value == pytest.approx(1 / there.value)
    assert back.low == pytest.approx(1 / there.high, rel=1e-2)
