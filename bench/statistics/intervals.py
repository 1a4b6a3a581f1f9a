"""Means over seeds with their 95 % intervals, and differences paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Interval(NamedTuple):
    """mean ± half_width, in the unit of the values; n: how many values. NaN: too few of them."""

    mean: float
    half_width: float
    n: int


def t_interval(values: Iterable[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean. NaN values are left out; of fewer than two the half-width is NaN,
    since one seed says nothing about the spread."""
    finite = [float(value) for value in values if not math.isnan(value)]
    n = len(finite)
    if n == 0:
        return Interval(math.nan, math.nan, 0)
    mean = math.fsum(finite) / n
    if n == 1:
        return Interval(mean, math.nan, 1)
    from scipy.special import stdtrit

    quantile = float(stdtrit(n - 1, 0.5 + confidence / 2))
    return Interval(mean, quantile * statistics.stdev(finite, mean) / math.sqrt(n), n)


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], confidence: float = 0.95
) -> Interval:
    """The interval of `values - reference` over the seeds that both have (seed → value). What the seeds share
    (data order, initial weights) drops out, so this is narrower than the two intervals on their own."""
    shared = sorted(values.keys() & reference.keys())
    return t_interval((values[seed] - reference[seed] for seed in shared), confidence)
