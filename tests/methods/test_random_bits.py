"""Draws of 16 bits: their distribution, the independence of the four that share a number, the ends of the range."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from methods.random_bits import bernoulli, logistic, sixteen_bits


def test_every_value_is_as_likely() -> None:
    bits = sixteen_bits((2**20,), torch.Generator().manual_seed(2)).int() + 2**15
    assert stats.chisquare(torch.bincount(bits, minlength=2**16).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("probability", [0.0, 2**-16, 0.3, 0.5, 0.66, 0.99, 1.0])
def test_frequency_is_the_probability(probability: float) -> None:
    drawn = bernoulli((100, 50, 51), probability, torch.Generator().manual_seed(3))
    assert drawn.dtype == torch.bool
    assert stats.binomtest(int(drawn.sum()), drawn.numel(), probability).pvalue > 1e-3


def test_draws_that_share_a_number_are_independent() -> None:
    drawn = bernoulli((100_000, 4), 0.66, torch.Generator().manual_seed(4)).double()
    correlations = torch.corrcoef(drawn.T) - torch.eye(4)
    assert correlations.abs().max() < 4.5 / math.sqrt(len(drawn))


def test_noise_is_logistic_and_independent() -> None:
    """Its distribution function in every lane of the 64 bits, and no lane tells of the next."""
    noise = logistic((25_000, 4), torch.Generator().manual_seed(5)).double()
    for lane in noise.T:
        assert stats.kstest(lane.numpy(), "logistic").pvalue > 1e-3
    assert noise.abs().max() <= math.log(2**17 - 1) + 1e-3
    correlations = torch.corrcoef(noise.T) - torch.eye(4)
    assert correlations.abs().max() < 4.5 / math.sqrt(len(noise))
    assert logistic((3, 5), torch.Generator()).shape == (3, 5)
