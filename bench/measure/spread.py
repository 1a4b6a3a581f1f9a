"""Statistics of paired blocks of samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bench.measure.blocks import PairedSamples, Samples

RESAMPLES = 1000


@dataclass(frozen=True)
class Ratio:
    """low, high: 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def percentiles(samples: Samples) -> tuple[float, float, float]:
    """Of all blocks together: median, 10th and 90th percentile."""
    p10, median, p90 = np.percentile(np.concatenate(samples), [10, 50, 90])
    return float(median), float(p10), float(p90)


def block_spread(samples: Samples) -> float:
    """How far the medians of the blocks lie apart: their range as a share of their median."""
    medians = [np.median(block) for block in samples]
    return float(np.ptp(medians) / np.median(medians))


def speedup(samples: PairedSamples, resamples: int = RESAMPLES) -> Ratio:
    """Dense over compact, the ratio of the medians over all samples.

    The bootstrap draws whole pairs of blocks with replacement: samples of one block are not independent, and
    what slowed a block slowed its neighbour too. Percentile interval; the seed is fixed, so the same samples
    give the same interval.
    """
    blocks = len(samples.dense)
    draws = np.random.default_rng(0).multinomial(blocks, np.full(blocks, 1 / blocks), size=resamples)
    ratios = _resampled_medians(samples.dense, draws) / _resampled_medians(samples.compact, draws)
    low, high = np.percentile(ratios, [2.5, 97.5])
    value = np.median(np.concatenate(samples.dense)) / np.median(np.concatenate(samples.compact))
    return Ratio(float(value), float(low), float(high))


def _resampled_medians(samples: Samples, draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """draws: (resamples, blocks), how often each block was drawn → the median of each resample, (resamples,).

    All samples are sorted once; a resample then is a sample weighted by how often its block was drawn.
    """
    values = np.concatenate(samples)
    block = np.repeat(np.arange(len(samples)), [len(block) for block in samples])
    by_value = np.argsort(values, kind="stable")
    values, block = values[by_value], block[by_value]
    # of each block, how many of its samples are among the first so many
    seen = np.cumsum(block[:, None] == np.arange(len(samples)), axis=0)
    total = draws @ seen[-1]
    middle = (_first_above(ranks, draws, seen) for ranks in ((total - 1) // 2, total // 2))
    below, above = (values[places] for places in middle)
    result: NDArray[np.float64] = (below + above) / 2
    return result


def _first_above(
    ranks: NDArray[np.int64], draws: NDArray[np.int64], seen: NDArray[np.int64]
) -> NDArray[np.int64]:
    """By bisection for all resamples at once: the first sample up to which more than `ranks` were drawn,
    (resamples,)."""
    low, high = np.zeros_like(ranks), np.full_like(ranks, len(seen) - 1)
    while (low < high).any():
        middle = (low + high) // 2
        enough = (draws * seen[middle]).sum(1) > ranks
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return low
