"""The Kumaraswamy distribution against numerical integration and simulation."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate, special
from torch import Tensor

from methods import kumaraswamy

ALPHA = 1e-4
SHAPES = [(0.31326, 1.0), (2.12693, 1.0), (0.05, 0.4), (0.7, 3.0), (5.0, 0.1), (1.0, 1.0), (3.0, 8.0)]


def quantile(v: float, a: float, b: float) -> float:
    """log π at probability 1 − v: π = (1 − v^(1/b))^(1/a)."""
    return math.log(-math.expm1(math.log(v) / b)) / a


def over_uniform(integrand: object, a: float, b: float) -> float:
    """∫ integrand(log π(v), v) dv over (0, 1), by v = σ(t), which spreads both ends out."""

    def at(t: float) -> float:
        v = special.expit(t)
        log_pi = quantile(v, a, b) if v < 1 else -math.inf
        return integrand(log_pi, v) * v * special.expit(-t)  # type: ignore[operator, no-any-return]

    return float(integrate.quad(at, -30, 30, limit=400, epsabs=1e-13, epsrel=1e-12)[0])


def float64(a: float, b: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_kl_is_the_integral_of_the_log_ratio(a: float, b: float) -> None:
    def log_ratio(log_pi: float, v: float) -> float:
        # 1 − π^a = v^(1/b)
        log_q = math.log(a * b) + (a - 1) * log_pi + (b - 1) / b * math.log(v)
        return log_q - math.log(ALPHA) - (ALPHA - 1) * log_pi

    found = kumaraswamy.kl_to_beta(*float64(a, b), ALPHA).item()
    assert found == pytest.approx(over_uniform(log_ratio, a, b), rel=1e-8)


@pytest.mark.parametrize(("a", "b"), SHAPES)
def test_mean_is_the_integral_of_pi(a: float, b: float) -> None:
    found = kumaraswamy.mean(*float64(a, b)).item()
    assert found == pytest.approx(over_uniform(lambda log_pi, v: math.exp(log_pi), a, b), rel=1e-8)


def test_published_values() -> None:
    """Papers file, §3a."""
    a, b = kumaraswamy.shapes(torch.tensor([-1.0, 2.0]), torch.tensor([0.5413, 0.5413]))
    assert a.tolist() == pytest.approx([0.31326, 2.12693], abs=1e-5)
    assert b.tolist() == pytest.approx([1.0, 1.0], abs=1e-4)
    assert kumaraswamy.kl_to_beta(a, b, ALPHA).tolist() == pytest.approx([7.050, 8.965], abs=1e-3)
    assert kumaraswamy.mean(a, b).tolist() == pytest.approx([0.2385, 0.6802], abs=1e-4)


def test_kl_of_the_prior_itself_is_zero() -> None:
    """Beta(α, 1) is Kumaraswamy(α, 1)."""
    for alpha in (1e-4, 0.3, 2.0):
        assert kumaraswamy.kl_to_beta(*float64(alpha, 1.0), alpha).item() == pytest.approx(0.0, abs=1e-12)


def test_mean_with_b_of_one() -> None:
    """Kuma(a, 1): E[π] = a/(1 + a), also where the logarithms of the Γ are in the hundreds of thousands."""
    a = torch.tensor([4.5e-5, 1e-3, 0.1, 1.0, 8.0], dtype=torch.float64)
    torch.testing.assert_close(kumaraswamy.mean(a, torch.ones_like(a)), a / (1 + a), rtol=1e-9, atol=0.0)


def test_samples_follow_the_distribution() -> None:
    """The inverse of F(π) = 1 − (1 − π^a)^b, and the mean over many draws."""
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for a, b in SHAPES:
        shapes = [x.expand_as(u) for x in float64(a, b)]
        pi = torch.sigmoid(kumaraswamy.sample_log_odds(*shapes, u))
        inside = (pi > 1e-12) & (pi < 1 - 1e-12)
        below = 1 - (1 - pi[inside] ** a) ** b
        torch.testing.assert_close(below, 1 - u[inside], rtol=0, atol=1e-6)
        error = pi.std().item() / math.sqrt(len(u))
        assert abs(pi.mean().item() - kumaraswamy.mean(*float64(a, b)).item()) < 4 * error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_are_finite_over_the_whole_range(dtype: torch.dtype) -> None:
    """a_uc −10…8, b_uc −8…50 and u to its edges; outside the cut the gradient is zero."""
    a_uc, b_uc, u = torch.meshgrid(
        torch.linspace(-10, 8, 37, dtype=dtype),
        torch.linspace(-8, 50, 59, dtype=dtype),
        torch.tensor([1e-6, 1e-3, 0.5, 0.999, 1 - 1e-6], dtype=dtype),
        indexing="ij",
    )
    for part in ("sample", "kl"):
        leaves = a_uc.clone().requires_grad_(), b_uc.clone().requires_grad_()
        a, b = kumaraswamy.shapes(*leaves)
        if part == "sample":
            log_odds = kumaraswamy.sample_log_odds(a, b, u)
            assert log_odds.isfinite().all()
            value = torch.sigmoid((log_odds + torch.logit(u.flip(2))) / 0.1)
        else:
            value = kumaraswamy.kl_to_beta(a, b, ALPHA)
            assert (value > -1e-3).all()
        assert value.isfinite().all()
        value.sum().backward()
        for leaf in leaves:
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()
    assert kumaraswamy.mean(*kumaraswamy.shapes(a_uc, b_uc)).isfinite().all()

    beyond = torch.tensor([-30.0, 60.0], requires_grad=True)
    a, b = kumaraswamy.shapes(beyond[:1], beyond)
    kumaraswamy.kl_to_beta(a, b, ALPHA).sum().backward()
    assert torch.equal(beyond.grad, torch.zeros(2))


def test_gradient_of_a_sample_is_that_of_the_naive_formula() -> None:
    """Where the naive formula works."""
    a, b = (
        torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in ([0.3, 2.0, 5.0], [1.0, 0.5, 4.0])
    )
    u = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    stable = torch.autograd.grad(kumaraswamy.sample_log_odds(a, b, u).sum(), (a, b))
    pi = (1 - u ** (1 / b)) ** (1 / a)
    naive = torch.autograd.grad(torch.logit(pi).sum(), (a, b))
    for one, other in zip(stable, naive, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
