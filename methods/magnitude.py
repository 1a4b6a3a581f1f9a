"""Magnitude pruning: the smallest weights, or the units of the smallest norm, go.

One-shot: Han et al., arXiv 1506.02626 (weights); Li et al., arXiv 1608.08710 (filters). Gradual: Zhu & Gupta,
To prune, or not to prune, arXiv 1710.01878, eq. 1.

Deviations, with reasons:
- Units are ranked by the ℓ2 norm over the rows of all their producers (Li et al.: ℓ1 of one layer), so that
  units coupled over several layers have one rank; Li et al. see no notable difference between the norms.
- `scope="global"` over units compares norms divided by the mean norm of the units still there in their site.
  Raw norms grow with the length of a row, which would empty whole layers. One unit per site always stays.
  Weights are compared as they are.
- Gradual: s_i = 0; the ramp begins after the first third of the time before `finetune`, and the masks are
  renewed every hundredth of the budget (the paper gives absolute steps for long trainings). What is removed
  stays removed: zeros are enforced on the parameters, whereas a masked weight keeps its value in the authors'
  code.
- Gradual is one phase: the last `finetune` of the training holds the final masks under the one learning-rate
  schedule, as in the paper, in place of a fine-tuning with a schedule of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from methods.base import Phase, SparsityPlan, Traits, prunable_weights
from methods.finetuning import FinetunedConfig, FinetunedMethod
from methods.ranking import removed_count, smallest, unit_norms

UPDATE_INTERVAL = 0.01
"""Of the budget: the time between two updates of the masks, Δt in eq. 1."""


def gradual_sparsity(final: float, progress: float) -> float:
    """s_t of eq. 1 with s_i = 0: `final` · (1 − (1 − progress)³). progress: of the ramp, cut to 0…1."""
    return final * (1 - (1 - min(max(progress, 0.0), 1.0)) ** 3)


class MagnitudeConfig(FinetunedConfig):
    """granularity: what is removed. schedule: all at once before fine-tuning, or bit by bit. scope: the same
    fraction in every layer (site), or one ranking over all."""

    granularity: Literal["unit", "weight"] = "unit"
    schedule: Literal["one-shot", "gradual"] = "one-shot"
    scope: Literal["layer", "global"] = "layer"


class Magnitude(FinetunedMethod):
    """Units or weights by magnitude, one-shot or gradual, per layer or global; then fine-tuning."""

    name = "magnitude"
    title = "Magnitude pruning"
    paper = (
        "Han et al. 2015, arXiv 1506.02626; Li et al. 2017, arXiv 1608.08710; "
        "Zhu & Gupta 2017, arXiv 1710.01878"
    )
    strengths = (0.5, 0.75, 0.85, 0.9)
    strength_meaning = "The fraction of units (or of prunable weights) that is removed."
    Config = MagnitudeConfig
    capturable = True

    @property
    def traits(self) -> Traits:
        at_the_end = self.config.schedule == "one-shot" and self.config.finetune == 0
        return Traits(granularity=self.config.granularity, strength="ratio", trains_once=at_the_end)

    def phases(self, epochs: int) -> Sequence[Phase]:
        if self.config.schedule == "gradual":
            return (Phase("sparsify", 1.0),)
        return super().phases(epochs)

    def after_step(self) -> None:
        if self.config.schedule == "gradual":
            sparsity = self.scheduled_sparsity()
            if sparsity is not None:
                self.masks.set(self.select(sparsity))
        super().after_step()

    def scheduled_sparsity(self) -> float | None:
        """The sparsity to prune to after the present step; None where the masks stay as they are."""
        context = self.context
        assert context.strength is not None
        interval = max(1, round(UPDATE_INTERVAL * context.steps))
        # The step before the last, so that it is reached also where `finetune` is 0.
        last = math.ceil((1 - self.config.finetune) * context.steps) - 1
        first = last // 3
        if context.step == last:
            return context.strength
        if not first <= context.step < last or context.step % interval:
            return None
        return gradual_sparsity(context.strength, (context.step - first) / (last - first))

    def select(self, strength: float) -> SparsityPlan:
        """Removes the smallest scores; what the present masks have removed goes first."""
        of_units = self.config.granularity == "unit"
        held = self.masks.kept if of_units else self.masks.weights
        scores = self._unit_scores() if of_units else self._weight_scores()
        ranked = {
            name: score.masked_fill(~held[name], -1.0) if name in held else score
            for name, score in scores.items()
        }
        if self.config.scope == "layer":
            kept = {name: ~smallest_entries(score, strength) for name, score in ranked.items()}
        else:
            kept = keep_globally(ranked, strength, at_least_one=of_units)
        return SparsityPlan(kept=kept) if of_units else SparsityPlan(weight_masks=kept)

    def _weight_scores(self) -> dict[str, Tensor]:
        return {name: weight.detach().abs() for name, weight in prunable_weights(self.network, self.sites)}

    def _unit_scores(self) -> dict[str, Tensor]:
        """Norms; for a global ranking relative to their mean over the units that the site still has."""
        scores = {}
        for site in self.sites:
            norms = unit_norms([self.network.get_parameter(f"{layer}.weight") for layer in site.producers])
            if self.config.scope == "global":
                there = norms[self.masks.kept[site.name]] if site.name in self.masks.kept else norms
                norms = norms / there.mean().clamp_min(torch.finfo(norms.dtype).tiny)
            scores[site.name] = norms
        return scores


def smallest_entries(scores: Tensor, fraction: float) -> Tensor:
    """True at the floor(fraction · n) smallest of all n entries of one tensor; same shape as `scores`."""
    count = removed_count(fraction, scores.numel())
    return smallest(scores.flatten(), count).view_as(scores)


def keep_globally(scores: dict[str, Tensor], fraction: float, at_least_one: bool) -> dict[str, Tensor]:
    """False at the floor(fraction · n) smallest of the n entries of all tensors together.

    at_least_one: the largest entry of each tensor stays whatever its rank; then at most n less the number of
    tensors are removed.
    """
    flat = [score.flatten() for score in scores.values()]
    count = removed_count(fraction, sum(score.numel() for score in flat))
    if at_least_one:
        flat = [score.index_fill(0, score.argmax(), torch.inf) for score in flat]
        count = min(count, sum(score.numel() - 1 for score in flat))
    removed = smallest(torch.cat(flat), count).split([score.numel() for score in flat])
    return {
        name: ~chosen.view_as(score) for (name, score), chosen in zip(scores.items(), removed, strict=True)
    }
