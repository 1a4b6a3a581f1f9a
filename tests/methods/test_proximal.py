"""Closed-form proximal steps against a generic solver that knows only the function to minimise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from methods.proximal import group_shrinkage, soft_threshold


def solved(v: Tensor, t: float, ball: str) -> Tensor:
    """The proximal point by duality: v less its projection on the ball of radius t of the dual norm, found by SLSQP."""
    target = v.numpy()
    if ball == "max":
        limits = [{"type": "ineq", "fun": lambda u: t - u}, {"type": "ineq", "fun": lambda u: t + u}]
    else:
        limits = [{"type": "ineq", "fun": lambda u: 1 - u @ u / t**2, "jac": lambda u: -2 * u / t**2}]
    found = minimize(
        lambda u: 0.5 * np.sum((u - target) ** 2),
        np.zeros_like(target),
        jac=lambda u: u - target,
        constraints=limits,
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},
    )
    assert found.success
    return torch.tensor(target - found.x)


@pytest.mark.parametrize("t", [0.1, 0.7, 5.0])
def test_soft_threshold_solves_its_problem(t: float) -> None:
    v = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(soft_threshold(v, t), solved(v, t, "max"), atol=1e-6, rtol=0)


@pytest.mark.parametrize("t", [0.1, 1.5, 20.0])
def test_group_shrinkage_solves_its_problem(t: float) -> None:
    v = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(v * group_shrinkage(v.norm(), t), solved(v, t, "euclid"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("t", [0.0, 0.3, 2.0])
def test_no_perturbation_is_better(t: float) -> None:
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(6, generator=generator, dtype=torch.float64)

    def value(x: Tensor, norm: Tensor) -> Tensor:
        return 0.5 * (x - v).square().sum(dim=-1) + t * norm

    nudges = torch.randn(2000, 6, generator=generator, dtype=torch.float64)
    for size in (1e-3, 1e-1, 1.0):
        lasso, group = soft_threshold(v, t), v * group_shrinkage(v.norm(), t)
        near, far = lasso + size * nudges, group + size * nudges
        assert (value(near, near.abs().sum(dim=1)) >= value(lasso, lasso.abs().sum())).all()
        assert (value(far, far.norm(dim=1)) >= value(group, group.norm())).all()


def test_zeros_are_exact_and_stay() -> None:
    assert soft_threshold(torch.tensor([0.2, -0.2, 0.0, 0.5]), 0.2).tolist() == pytest.approx([0, 0, 0, 0.3])
    assert soft_threshold(torch.tensor([0.2, -0.2]), 0.2).count_nonzero() == 0
    factors = group_shrinkage(torch.tensor([0.0, 1.0, 2.0, 4.0]), 2.0)
    assert factors.tolist() == [0.0, 0.0, 0.0, 0.5]
    assert group_shrinkage(torch.zeros(2), 0.0).isfinite().all()
