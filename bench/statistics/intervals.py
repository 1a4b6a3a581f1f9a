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


def ratio_of_means(
    numerators: Iterable[float], denominators: Iterable[float], confidence: float = 0.95
) -> Interval:
    """The mean of the numerators over that of the denominators, which are paired, with the t interval of what each pair
    adds to it (to first order)."""
    pairs = [
        (float(over), float(under))
        for over, under in zip(numerators, denominators, strict=True)
        if not math.isnan(over) and not math.isnan(under)
    ]
    over, under = (
        t_interval(side, confidence).mean for side in (zip(*pairs, strict=True) if pairs else ((), ()))
    )
    if under == 0:
        return Interval(math.inf, math.nan, len(pairs))
    ratio = over / under
    spread = t_interval(((one - ratio * other) / under for one, other in pairs), confidence)
    return Interval(ratio, spread.half_width, len(pairs))


def paired_difference(
    values: Mapping[int, float], reference: Mapping[int, float], confidence: float = 0.95
) -> Interval:
    """The interval of `values - reference` over the seeds that both have (seed → value). What the seeds share
    (data order, initial weights) drops out, so this is narrower than the two intervals on their own."""
    shared = sorted(values.keys() & reference.keys())
    return t_interval((values[seed] - reference[seed] for seed in shared), confidence)
