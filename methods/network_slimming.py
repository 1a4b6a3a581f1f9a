"""Network slimming: an ℓ1 penalty on the scales of batch norm, one global threshold on them, fine-tuning.

Liu, Li, Shen, Huang, Yan & Zhang, Learning Efficient Convolutional Networks through Network Slimming, arXiv
1708.06519. Symbols of the paper: γ the scales of the norms, λ `sparsity`. Training minimises l + λ·Σ|γ| by subgradient;
then the channels with the smallest |γ| over all layers together go, and what is left is fine-tuned without penalty.

Deviations, with reasons:
- A removed channel is off as the suite means it: its shift β goes with its scale, because that is what removal leaves.
- At least one unit of every site stays, so that no layer is emptied by the global threshold.
- A unit whose site has several norms (residual streams, depthwise convolutions) counts by the largest |γ|: it goes
  only where no layer uses it. The paper puts channel selection layers into the branches in place of that.
- Sites without a norm (linear layers without batch norm) stay whole; the ratio counts units of sites with norms.
- One round of pruning; the paper's repeated rounds share no budget with the other methods.
- Scales that have been trained (a start from published weights or from a checkpoint) stay as they are: one value in
  their place would leave nothing of what was learnt. Only norms whose γ are all still 1 begin at `initial_scale`.
- λ defaults to 1e-3 in place of the 1e-4 and 1e-5 that the paper takes for 160 epochs: what a budget can shrink is the
  product of λ, rate and steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from methods.base import Phase, Site, SparsityPlan, StepContext, Traits
from methods.finetuning import FinetunedConfig, FinetunedMethod
from methods.magnitude import keep_globally


class NetworkSlimmingConfig(FinetunedConfig):
    """sparsity: λ. initial_scale: of the γ of fresh norms when training begins, 0.5 as in the paper."""

    sparsity: float = Field(default=1e-3, ge=0)
    initial_scale: float = Field(default=0.5, gt=0)


class NetworkSlimming(FinetunedMethod):
    """Sparse scales of batch norm, a global threshold, fine-tuning."""

    name = "network-slimming"
    title = "Network slimming"
    paper = "Liu et al. 2017, Learning Efficient Convolutional Networks through Network Slimming, arXiv 1708.06519"
    strengths = (0.3, 0.5, 0.7, 0.85)
    strength_meaning = "The fraction of all units behind batch norms that is removed, by one threshold."
    Config = NetworkSlimmingConfig
    capturable = True

    scales: dict[str, list[Tensor]]
    """Site → γ of each of its norms, (size,)."""

    @property
    def traits(self) -> Traits:
        return Traits(granularity="unit", strength="ratio", trains_once=self.config.finetune == 0)

    def supports(self, network: nn.Module, sites: Sequence[Site]) -> str | None:
        norms = (nn.BatchNorm1d, nn.BatchNorm2d)
        if not any(isinstance(module, norms) and module.affine for module in network.modules()):
            return "it has no batch normalisation with a scale to penalise"
        return (
            None
            if _scales(network, sites)
            else "no units of it that could be removed lie behind a batch norm"
        )

    def phases(self, epochs: int) -> Sequence[Phase]:
        finetune = self.config.finetune
        sparsify = Phase("sparsify", 1 - finetune)
        return (sparsify, Phase("finetune", finetune)) if finetune else (sparsify,)

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        super().attach(network, sites, context)
        self.scales = _scales(network, sites)

    @torch.no_grad()
    def start_phase(self, phase: Phase) -> None:
        if phase.name == "sparsify":
            for scale in self._each():
                if bool((scale == 1).all()):
                    scale.fill_(self.config.initial_scale)
        super().start_phase(phase)

    def _each(self) -> list[Tensor]:
        return [scale for scales in self.scales.values() for scale in scales]

    def penalty(self) -> Tensor | None:
        """λ·Σ|γ|; its subgradient at 0 is 0."""
        if self.context.phase.name != "sparsify":
            return None
        return self.config.sparsity * torch.cat(self._each()).abs().sum()

    def select(self, strength: float) -> SparsityPlan:
        scores = {
            name: torch.stack([scale.detach().abs() for scale in scales]).amax(dim=0)
            for name, scales in self.scales.items()
        }
        return SparsityPlan(kept=keep_globally(scores, strength, at_least_one=True))


def _scales(network: nn.Module, sites: Sequence[Site]) -> dict[str, list[Tensor]]:
    """Site → the γ of its norms, each (size,); of the sites that have any."""
    found = {
        site.name: [
            scale
            for norm in site.norms
            if isinstance(scale := getattr(network.get_submodule(norm), "weight", None), Tensor)
        ]
        for site in sites
    }
    return {name: scales for name, scales in found.items() if scales}
