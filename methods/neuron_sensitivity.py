"""How much the output of a network answers to its neurons: the three sensitivities of SeReNe.

Tartaglione et al., SeReNe: Sensitivity based Regularization of Neurons, arXiv 2102.03773; formulas as in the
code, EIDOSLAB/SeReNe at d553078, with its defects repaired.

y_k, k = 1 … C, are the logits; p_i is the pre-activation of neuron i, for convolutions a map. Means are over
the images of the batch and over the places of the map, absolute values are taken before:
- full: S_i = 1/C Σ_k mean |∂y_k/∂p_i|, C vector-Jacobian products;
- lower bound: S_i = 1/C mean |∂(Σ_k y_k)/∂p_i| ≤ full, one product;
- local: S_i = 1 where mean p_i > 0, otherwise 0: the slope of a ReLU at the mean.

Deviations, with reasons:
- The derivative is that of each image. The code differentiates the batch's mean and then averages again,
  which makes `full` too small by the batch size.
- Logits, not probabilities: those sum to 1, so their lower bound is zero everywhere.
- Where a normalisation over the batch lies between p_i and y, its statistics are held constant (`held_statistics`).
  Otherwise the product is the derivative of the sum over the batch, most of which cancels there, and S would be
  several times smaller in front of a normalisation than behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from methods.held_statistics import HeldStatistics
from methods.past_pooling import past_pooling
from methods.unit_axis import unit_axis

Kind = Literal["full", "lower-bound", "local"]


def full(
    logits: Tensor,
    preactivations: Sequence[GradientEdge],
    classes_at_once: int | None = None,
    axes: Sequence[int] | None = None,
) -> list[Tensor | None]:
    """S of each pre-activation, (units,); None where the logits do not depend on it.

    logits: (N, C), its graph is kept. axes: of the units in each; 1 by default. classes_at_once: how many of the C
    products run as one batched product. Where not given, all of them, on the CPU one: a product for ten
    classes leaves its caches there and takes half as long again as ten products. Where the pre-activations are
    pooled, the magnitudes of the classes are added up behind the pooling.
    """
    axes = axes or [1] * len(preactivations)
    chunk = classes_at_once or (1 if logits.device.type == "cpu" else logits.shape[1])
    try:
        return _full(logits, preactivations, axes, chunk)
    except RuntimeError as error:
        # torch has no batched backward pass for every network: not for a normalised channels-last one on a GPU.
        if chunk == 1 or "vmap" not in str(error):
            raise
        return _full(logits, preactivations, axes, 1)


def _full(
    logits: Tensor, preactivations: Sequence[GradientEdge], axes: Sequence[int], chunk: int
) -> list[Tensor | None]:
    count = logits.shape[1]
    ends = past_pooling(logits, preactivations)
    totals: list[Tensor | None] = [None] * len(preactivations)
    for classes in torch.eye(count, dtype=logits.dtype, device=logits.device).split(chunk):
        batched = len(classes) > 1
        directions = classes.unsqueeze(1).expand(-1, *logits.shape) if batched else classes.expand_as(logits)
        gradients = torch.autograd.grad(
            logits, ends, directions, retain_graph=True, is_grads_batched=batched, allow_unused=True
        )
        for at, gradient in enumerate(gradients):
            if gradient is None:
                continue
            if ends[at] is preactivations[at]:
                mean = _mean_magnitude(gradient.flatten(0, 1) if batched else gradient, axes[at])
                part = mean * len(classes)
            else:
                part = _magnitudes(gradient).sum(dim=0) if batched else _magnitudes(gradient)
            before = totals[at]
            totals[at] = part if before is None else before + part
    for at, (end, edge) in enumerate(zip(ends, preactivations, strict=True)):
        total = totals[at]
        if total is not None and end is not edge:
            (at_p,) = torch.autograd.grad(end, edge, total, retain_graph=True)
            totals[at] = _mean_magnitude(at_p, axes[at])
    return [None if total is None else total / count for total in totals]


def lower_bound(
    logits: Tensor, preactivations: Sequence[GradientEdge], axes: Sequence[int] | None = None
) -> list[Tensor | None]:
    """As `full`, from the gradient of the sum of the logits."""
    gradients = torch.autograd.grad(
        logits, preactivations, torch.ones_like(logits), retain_graph=True, allow_unused=True
    )
    return [
        None if gradient is None else _mean_magnitude(gradient, axis) / logits.shape[1]
        for gradient, axis in zip(gradients, axes or [1] * len(gradients), strict=True)
    ]


def local(preactivation: Tensor, axis: int = 1) -> Tensor:
    """S of one pre-activation (N, units, …) by its values: (units,), zeros and ones. axis: of the units."""
    means = preactivation.detach().movedim(axis, 0).flatten(1).mean(dim=1)
    return (means > 0).to(_at_least_float32(means.dtype))


def _magnitudes(gradient: Tensor) -> Tensor:
    """|·|. The gradient is used up, unless it is one row of values expanded."""
    return gradient.abs() if 0 in gradient.stride() else gradient.abs_()


def _mean_magnitude(gradient: Tensor, axis: int) -> Tensor:
    """Mean |·| over all dimensions of (N, units, …) but that of the units; the gradient is used up. A norm would
    need no tensor of magnitudes, but on a CPU it takes three times as long."""
    others = [dim for dim in range(gradient.dim()) if dim != axis % gradient.dim()]
    sums = _magnitudes(gradient).sum(dim=others, dtype=_at_least_float32(gradient.dtype))
    return sums / (gradient.numel() // gradient.shape[axis])


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """S is 1 − a small number wherever it matters to a decay of a thousandth a step: bf16 would round that away."""
    return torch.promote_types(dtype, torch.float32)


class SensitivityProbe:
    """Watches pre-activations during training's forward passes and gives their sensitivities.

    What is kept of a pre-activation is its place in the graph, taken before the next module runs: an
    activation that works in place does not disturb it.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], kind: Kind) -> None:
        """layers: the modules whose outputs are the pre-activations."""
        self.kind = kind
        self._edges: dict[str, GradientEdge] = {}
        self._local: dict[str, Tensor] = {}
        self._axes = {layer: unit_axis(network.get_submodule(layer)) for layer in layers}
        # First, as the output of a normalisation is watched behind the fork.
        self._statistics = HeldStatistics(network) if kind != "local" else None
        self._handles = [
            network.get_submodule(layer).register_forward_hook(self._watch(layer)) for layer in layers
        ]

    def _watch(self, layer: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if not torch.is_grad_enabled():
                return
            if self.kind == "local":
                self._local[layer] = local(output, self._axes[layer])
            else:
                self._edges[layer] = get_gradient_edge(output)

        return hook

    def measure(self, logits: Tensor) -> dict[str, Tensor]:
        """Layer → S (units,), of the forward pass that gave `logits`, whose graph is kept. A layer that the
        logits do not depend on is left out."""
        if self.kind == "local":
            found, self._local = self._local, {}
            return found
        edges, self._edges = self._edges, {}
        measure = full if self.kind == "full" else lower_bound
        assert self._statistics is not None
        with self._statistics.held():
            measured = measure(logits, list(edges.values()), axes=[self._axes[layer] for layer in edges])
        return {layer: each for layer, each in zip(edges, measured, strict=True) if each is not None}

    def remove(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._statistics is not None:
            self._statistics.remove()
