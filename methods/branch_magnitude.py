"""Branch magnitude: the residual branches that add least to their streams go whole.

After Elkerdawy, Elhoushi, Singh, Zhang & Ray, To Filter Prune, or to Layer Prune, That Is The Question, arXiv
2007.05667: a criterion made for filters, averaged over a layer, ranks the layers; the least go in one shot, what is
left is fine-tuned. A residual network runs on without any of its branches: Veit, Wilber & Belongie, arXiv 1605.06431.

The score of a branch is the size of what it adds to a channel of the stream, by its last layer alone:

    s = √(mean_c a_c²)        a_c = |γ_c|, where that layer is a normalisation;  ‖W_c‖₂, of row c, where it is not.

Behind a normalisation, channel c has the standard deviation |γ_c| over the images; behind a convolution it has ‖W_c‖₂
if its inputs are uncorrelated and of unit size. So both are in one unit, and the mean over the channels makes wide and
narrow stages comparable. γ is the filter criterion of network slimming (arXiv 1708.06519), ‖W_c‖ that of Li et al.
(arXiv 1608.08710). Shifts do not count: they are the same for all images, and the next normalisation may hold them too.

Deviations and decisions, with reasons:
- Only residual branches are ranked: where one is dropped its shortcut is left. The paper also takes layers from
  networks without shortcuts; there the next layer would have to read what it was not made for.
- The score is not relative to the size of the stream, which only data would tell, though a stream grows from branch to
  branch and the share of each shrinks (De & Smith, arXiv 2002.10444).
- Scales begin at 1 and move slowly. After 16 epochs of the digits those of `resnet20` lay within 3 % of each other, and
  their order said nothing of what the loss was without a branch: at a short budget this is close to a random choice.
- A branch that is dropped stays at zero while the rest is fine-tuned, by the parameters of its last layer: what is
  evaluated is what was trained. Its other layers get no gradient any more.
- A scale or an activation behind the last layer (the layer scale of ConvNeXt) does not count.
- Where a branch lies within another, each is ranked by itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from methods.base import LayerAction, Site, SparsityPlan, StepContext, Traits
from methods.finetuning import FinetunedMethod
from methods.ranking import removed_count, smallest, unit_norms


class BranchMagnitude(FinetunedMethod):
    """Plain training, the weakest residual branches dropped at once, fine-tuning."""

    name = "branch-magnitude"
    title = "Residual branches by magnitude"
    paper = "after Elkerdawy et al. 2020, To Filter Prune, or to Layer Prune, That Is The Question, arXiv 2007.05667"
    strengths = (0.25, 0.5, 0.75)
    strength_meaning = "The fraction of the residual branches that is dropped, rounded down."
    capturable = True

    branches: Sequence[Site]

    @property
    def traits(self) -> Traits:
        return Traits(granularity="layer", strength="ratio", trains_once=self.config.finetune == 0)

    def supports(self, network: nn.Module, sites: Sequence[Site]) -> str | None:
        return None if branches_of(sites) else "it has no residual branch that could be dropped"

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        super().attach(network, sites, context)
        self.branches = branches_of(sites)

    def scores(self) -> Tensor:
        """s of each branch: (branches,)."""
        return torch.stack([self._score(branch) for branch in self.branches])

    def _score(self, branch: Site) -> Tensor:
        weight = self.network.get_parameter(f"{branch.name}.weight")
        # A scale of a normalisation is a row of one entry.
        return unit_norms([weight.unsqueeze(-1)]).square().mean().sqrt()

    def select(self, strength: float) -> SparsityPlan:
        """The last layers of the floor(strength · branches) weakest, switched off."""
        scores = self.scores()
        weakest = smallest(scores, removed_count(strength, len(scores)))
        return SparsityPlan(
            weight_masks={
                name: torch.zeros_like(parameter, dtype=torch.bool)
                for branch, goes in zip(self.branches, weakest.tolist(), strict=True)
                if goes
                for name, parameter in self._last_layer(branch).named_parameters(prefix=branch.name)
            }
        )

    def _last_layer(self, branch: Site) -> nn.Module:
        return self.network.get_submodule(branch.name)

    def plan(self, strength: float) -> SparsityPlan:
        off = super().plan(strength).weight_masks
        dropped = [branch.name for branch in self.branches if f"{branch.name}.weight" in off]
        return SparsityPlan(
            layer_actions=tuple(LayerAction("drop", (name,)) for name in dropped),
            notes=(f"residual branches dropped: {len(dropped)} of {len(self.branches)}",),
        )


def branches_of(sites: Sequence[Site]) -> list[Site]:
    """Those among the sites, in the order of execution."""
    return [site for site in sites if site.kind == "branch"]
