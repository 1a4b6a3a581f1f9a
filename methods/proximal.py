"""Proximal steps: argmin over x of ½‖x − v‖² + t·Ω(x), in closed form, with exact zeros.

Parikh & Boyd, Proximal Algorithms, 2014, §6.5.
"""

from __future__ import annotations

import torch
from torch import Tensor


def soft_threshold(values: Tensor, threshold: Tensor | float) -> Tensor:
    """Of Ω(x) = ‖x‖₁, per entry: sign(v)·max(|v| − t, 0). threshold: t ≥ 0, broadcasts to `values`."""
    return values.sign() * (values.abs() - threshold).clamp_min(0.0)


def group_shrinkage(norms: Tensor, threshold: Tensor | float) -> Tensor:
    """Of Ω(x) = ‖x‖₂, the factor that takes a group v to its proximal point: max(1 − t/‖v‖, 0).

    norms: ‖v‖ of each group, any shape; a group that is zero stays so (factor 0).
    """
    return torch.where(norms > threshold, 1.0 - threshold / norms, 0.0)
