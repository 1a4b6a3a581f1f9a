"""Pruning up to a tolerated loss: one threshold on magnitudes for the whole network, found by bisection.

The prune stage of SeReNe and LOBSTER (EIDOSLAB/SeReNe at d553078, `threshold_scheduler_magnitude.py`). The
threshold T is the highest known to keep the loss within a bound; what is smaller than T is removed.

Deviations, with reasons:
- The bisection runs over the sorted magnitudes rather than over the interval between the smallest and the
  largest. It ends, after log2 of their number probes, at two neighbours of which one respects the bound and
  the other does not; the code stops when two losses differ by less than 5 % of the bound and leaves some
  of the tolerance unused.
- Magnitudes are those of the weights with the normalisation folded in: of a weight before a normalisation
  only the ratio to its row counts.
- The largest neuron of every site, or the largest weight of every layer, stays: at no loss would that lead
  to a network with nothing in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from methods.base import Evaluation, Site, SparsityPlan, prunable_weights
from methods.errors import NotFinite
from methods.masks import Masks


def highest_tolerated(loss_at: Callable[[int], float], count: int, bound: float) -> int:
    """The highest index below `count` found whose loss is at most `bound`, -1 where none is found.

    Exact where the loss rises with the index; otherwise the index found respects the bound all the same and the
    next one does not.
    """
    tolerated, beyond = -1, count
    while beyond - tolerated > 1:
        middle = (tolerated + beyond) // 2
        if loss_at(middle) <= bound:
            tolerated = middle
        else:
            beyond = middle
    return tolerated


@torch.no_grad()
def folded_weight(network: nn.Module, producer: str, end: str) -> Tensor:
    """The weight of `producer` as it is with the normalisation `end` folded in; as it stands where end is the
    producer itself."""
    weight = network.get_submodule(producer).weight
    assert isinstance(weight, Tensor)
    if end == producer:
        return weight.detach()
    norm = network.get_submodule(end)
    scale = weight.new_ones(len(weight))
    if isinstance(norm.weight, Tensor):
        scale = scale * norm.weight
    if isinstance(variance := getattr(norm, "running_var", None), Tensor):
        eps = norm.eps
        assert isinstance(eps, float)
        scale = scale / (variance + eps).sqrt()
    return weight * scale.view(-1, *(1,) * (weight.dim() - 1))


def neuron_magnitudes(network: nn.Module, sites: Sequence[Site]) -> dict[str, Tensor]:
    """Site → max_j |w_ij| of each unit i, (size,): over the rows of all producers, normalisations folded in."""
    return {
        site.name: torch.stack(
            [
                folded_weight(network, producer, end).flatten(1).abs().amax(dim=1)
                for producer, end in zip(site.producers, site.ends, strict=True)
            ]
        ).amax(dim=0)
        for site in sites
    }


def weight_magnitudes(network: nn.Module, sites: Sequence[Site]) -> dict[str, Tensor]:
    """Parameter name → |w| of each of the prunable weights, normalisations folded in."""
    ends = {producer: end for site in sites for producer, end in zip(site.producers, site.ends, strict=True)}
    return {
        name: folded_weight(network, name.removesuffix(".weight"), ends[name.removesuffix(".weight")]).abs()
        for name, _ in prunable_weights(network, sites)
    }


@torch.no_grad()
def prune_within(
    masks: Masks,
    magnitudes: dict[str, Tensor],
    of_neurons: bool,
    validate: Callable[[], Evaluation],
    bound: float,
) -> float:
    """Remove from the network of `masks` what lies below the highest threshold whose validation loss is at most
    `bound`; the masks and the network are changed. What was removed before stays so.

    magnitudes: by site or by parameter (`of_neurons`), zero for what is removed. A threshold that leaves
    logits that are not finite is beyond any bound. Returns the threshold, 0 where nothing more could be removed.
    """
    if not magnitudes:
        return 0.0
    values = torch.cat([m.flatten() for m in magnitudes.values()]).unique()
    values = values[values > 0]
    before = masks.plan()
    held = before.kept if of_neurons else before.weight_masks
    saved = [(parameter, parameter.detach().clone()) for parameter in masks.network.parameters()]

    def remove_below(threshold: Tensor) -> None:
        kept = {
            name: (m >= threshold.clamp(max=m.max())) & held.get(name, m >= 0)
            for name, m in magnitudes.items()
        }
        masks.set(SparsityPlan(kept=kept) if of_neurons else SparsityPlan(weight_masks=kept))
        masks.enforce()

    def restore() -> None:
        masks.set(before)
        for parameter, values_before in saved:
            parameter.copy_(values_before)

    def loss_at(index: int) -> float:
        remove_below(values[index])
        try:
            return validate().loss
        except NotFinite:
            return math.inf
        finally:
            restore()

    found = highest_tolerated(loss_at, len(values), bound)
    if found < 0:
        return 0.0
    remove_below(values[found])
    return float(values[found])
