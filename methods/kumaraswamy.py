"""The Kumaraswamy distribution on (0, 1): density a b x^(a−1) (1 − x^a)^(b−1), with a, b > 0.

Kumaraswamy, J. Hydrology 46 (1980) 79–88; its divergence from a Beta: Nalisnick & Smyth, Stick-Breaking
Variational Autoencoders, arXiv 1605.06197; as used here: Lee et al., arXiv 1805.10896. It is a Beta in all but
name whose inverse distribution function is closed, so that a sample is differentiable in a and b.

All functions work element by element on tensors of one shape and are differentiable but for `mean`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

EULER_GAMMA = 0.5772156649015329


def shapes(a_uc: Tensor, b_uc: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) of the unconstrained parameters: softplus, a_uc cut below −10 and b_uc to −10…50, beyond which the
    gradient is zero."""
    return functional.softplus(a_uc.clamp(min=-10.0)), functional.softplus(b_uc.clamp(-10.0, 50.0))


def log_one_minus_exp(x: Tensor) -> Tensor:
    """log(1 − eˣ) for x < 0, without loss where eˣ is near 0 or 1; where x is so near 0 that float32 has lost it,
    x = −1e-30 stands for it.

    Each branch is kept inside its own range, because the gradient of the branch not taken would be 0 · ∞.
    """
    x = x.clamp(max=-1e-30)
    near = torch.log(-torch.expm1(x.clamp(min=-math.log(2))))
    far = torch.log1p(-torch.exp(x.clamp(max=-math.log(2))))
    return torch.where(x > -math.log(2), near, far)


def sample_log_odds(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """logit π for π = (1 − u^(1/b))^(1/a), the inverse distribution function at 1 − u; u uniform on (0, 1).

    In log space throughout: π itself underflows at small a and rounds to 1 at small b.
    """
    log_pi = log_one_minus_exp(torch.log(u) / b) / a
    return log_pi - log_one_minus_exp(log_pi)


def kl_to_beta(a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """KL(Kumaraswamy(a, b) ‖ Beta(alpha, 1)), each element apart.

    (a − α)/a · (−γ − ψ(b) − 1/b) + log(a b / α) − (b − 1)/b; ψ(b) + 1/b is ψ(b + 1), which does not cancel at
    small b.
    """
    return (1 - alpha / a) * (-EULER_GAMMA - torch.digamma(b + 1)) + torch.log(a * b / alpha) - (b - 1) / b


@torch.no_grad()
def mean(a: Tensor, b: Tensor) -> Tensor:
    """E[π] = b Γ(1 + 1/a) Γ(b) / Γ(1 + 1/a + b), in float64: at small a the logarithms of the Γ are large and
    nearly cancel."""
    a, b = a.double(), b.double()
    return torch.exp(torch.lgamma(1 + 1 / a) + torch.lgamma(1 + b) - torch.lgamma(1 + 1 / a + b))
