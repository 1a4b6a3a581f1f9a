"""The corner of an L-curve: where a little less penalty begins to cost much loss.

Hansen, Analysis of Discrete Ill-Posed Problems by Means of the L-Curve, SIAM Review 34(4), 1992. The smoothing is
the natural cubic spline of Reinsch, Numerische Mathematik 10, 1967, for equally spaced points.
"""

from __future__ import annotations

import torch
from torch import Tensor


def smooth(values: Tensor, spacing: float, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """The natural cubic spline g that minimises Σ (values − g)² + smoothing·∫ g''², at its knots.

    values: (n,) float64, n ≥ 3, of equally spaced points. Returns g, g', g'', each (n,).
    """
    n, h = len(values), spacing
    second_difference = torch.zeros(n, n - 2, dtype=values.dtype)
    gram = torch.zeros(n - 2, n - 2, dtype=values.dtype)
    for at in range(n - 2):
        second_difference[at : at + 3, at] = torch.tensor([1.0, -2.0, 1.0], dtype=values.dtype) / h
        gram[at, at] = 2 * h / 3
        if at:
            gram[at, at - 1] = gram[at - 1, at] = h / 6
    inner = torch.linalg.solve(
        gram + smoothing * second_difference.T @ second_difference, second_difference.T @ values
    )
    curve = values - smoothing * second_difference @ inner
    bend = torch.nn.functional.pad(inner, (1, 1))
    rise = (curve[1:] - curve[:-1]) / h
    slope = torch.empty_like(curve)
    slope[:-1] = rise - h * (2 * bend[:-1] + bend[1:]) / 6
    slope[-1] = rise[-1] + h * (bend[-2] + 2 * bend[-1]) / 6
    return curve, slope, bend


def curvature(x: Tensor, y: Tensor, spacing: float, smoothing: float) -> Tensor:
    """κ = (x'y'' − y'x'') / (x'² + y'²)^{3/2}, (n,), positive at a corner that bends towards the origin when the
    points run downwards first and to the right then."""
    _, dx, ddx = smooth(x, spacing, smoothing)
    _, dy, ddy = smooth(y, spacing, smoothing)
    speed = (dx.square() + dy.square()).clamp_min(torch.finfo(x.dtype).tiny)
    return (dx * ddy - dy * ddx) / speed.pow(1.5)


def corner(multipliers: Tensor, losses: Tensor, penalties: Tensor, smoothing: float = 0.01) -> int:
    """The index of the corner among runs at ascending, log-spaced λ: x = log E, y = log P over log λ.

    multipliers, losses, penalties: (n,), positive, n ≥ 4. The ends, whose curvature a natural spline has at zero, are
    never chosen.
    """
    grid = multipliers.double().log()
    spacing = float(grid[1] - grid[0])
    bends = curvature(losses.double().log(), penalties.double().log(), spacing, smoothing)
    return 1 + int(bends[1:-1].argmax())
