"""The corner of an L-curve: the spline against scipy's, the corner of curves whose corner is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.interpolate import make_smoothing_spline

from methods.l_curve import corner, curvature, smooth


@pytest.mark.parametrize("smoothing", [1e-6, 0.01, 1.0, 100.0])
def test_spline_is_the_smoothing_spline(smoothing: float) -> None:
    spacing = 0.7
    knots = spacing * np.arange(9)
    noisy = np.sin(knots) + 0.1 * np.random.default_rng(0).normal(size=9)
    expected = make_smoothing_spline(knots, noisy, lam=smoothing)
    for order, found in enumerate(smooth(torch.tensor(noisy), spacing, smoothing)):
        np.testing.assert_allclose(found.numpy(), expected.derivative(order)(knots), atol=1e-8)


def test_curvature_of_a_circle_and_its_sign() -> None:
    """A circle of radius 2, run counter-clockwise: down and then right, as an L-curve runs, bends to the left."""
    angle = torch.linspace(torch.pi, 1.5 * torch.pi, 41, dtype=torch.float64)
    spacing = float(angle[1] - angle[0])
    there = curvature(2 * angle.cos(), 2 * angle.sin(), spacing, 1e-12)
    back = curvature(2 * angle.cos().flip(0), 2 * angle.sin().flip(0), spacing, 1e-12)
    assert there[10:-10].tolist() == pytest.approx([0.5] * 21, rel=1e-2)
    assert back[10:-10].tolist() == pytest.approx([-0.5] * 21, rel=1e-2)


@pytest.mark.parametrize("at", [2, 4, 5])
def test_corner_is_where_the_loss_begins_to_rise(at: int) -> None:
    """Up to `at` the penalty falls at no cost; from there on the loss rises and the penalty hardly falls."""
    steps = torch.arange(8)
    losses = (0.02 + 1.2 * (steps - at).clamp_min(0)).exp()
    penalties = (3 - 1.2 * steps.clamp_max(at) - 0.1 * (steps - at).clamp_min(0)).exp()
    assert corner(torch.logspace(-4, -1, 8), losses, penalties) == at
