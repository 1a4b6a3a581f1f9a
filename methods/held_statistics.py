"""Derivatives of each image in a network that is normalised over the batch.

A batch normalisation in training has the mean and the variance of the batch in it. Through them an image's values move
the outputs of all others, and since whatever is normalised sums to nothing, the derivative of a sum over the batch is
nearly zero whatever that of each image is. With the statistics held constant a normalisation is an affine map,
dy/dx = γ/√(σ² + ε), images do not touch each other, and one product gives the derivatives of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class HeldStatistics:
    """Lets one forward pass have both derivatives: that of training, and inside `held()` the one with the statistics of
    the batch held constant. What the network computes is not changed."""

    def __init__(self, network: nn.Module) -> None:
        self.holding = False
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        self._handles = [norm.register_forward_hook(self._fork) for norm in norms]

    def _fork(self, norm: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if not torch.is_grad_enabled() or not norm.training:
            return None
        (x,) = inputs
        with torch.no_grad():
            others = [dim for dim in range(x.dim()) if dim != 1]
            variance = torch.var(x, others, correction=0)
            slope = (variance.to(torch.promote_types(x.dtype, torch.float32)) + norm.eps).rsqrt()
            slope = slope * norm.weight if norm.affine else slope
        forked: Tensor = _Fork.apply(output, x, slope.view(-1, *[1] * (x.dim() - 2)), self)
        return forked

    @contextmanager
    def held(self) -> Iterator[None]:
        """Backward passes in here see constants."""
        self.holding = True
        try:
            yield
        finally:
            self.holding = False

    def remove(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _Fork(torch.autograd.Function):
    """Gives the output of a normalisation as it is. Its gradient goes to the normalisation, or past it."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, x: Tensor, slope: Tensor, statistics: HeldStatistics) -> Tensor:
        ctx.mark_dirty(output)  # so that it needs no copy, and an activation may overwrite it
        ctx.save_for_backward(slope)
        ctx.statistics = statistics
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if not ctx.statistics.holding:
            return gradient, None, None, None
        (slope,) = ctx.saved_tensors
        return None, (gradient * slope).to(gradient.dtype), None, None
