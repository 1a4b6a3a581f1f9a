"""Targeted dropout: dropout aimed at what a magnitude criterion would prune, so that pruning it later does
little harm.

Gomez et al., Learning Sparse Networks Using Targeted Dropout, arXiv 1905.13678; code for-ai/TD at 877e3b9.
No auxiliary parameter, no regulariser, no fine-tuning: the training is ordinary but for the noise.

Symbols of the paper: γ `targeted_fraction`, α `drop_rate`. W (O, D) is a layer's weight with one row per
output unit.
- weights: per unit the floor(γD) smallest |w| are candidates C; each forward pass draws M ~ Bernoulli(α) per
  entry, for the minibatch as a whole, and computes with W ⊙ (1 − C ⊙ M). No rescaling by 1/(1 − α).
- units: per site the floor(γO) units of the smallest ‖w_o‖₂ are candidates; one Bernoulli(α) each.
- evaluation mode: all candidates are off, no noise.
- ramp (code, "piecewise"): γ_t and α_t of `ramp_at`.

Candidates and noise are constants for autograd: a dropped entry gets no gradient of the data in that step,
but weight decay as ever. The parameters themselves are never overwritten.

Deviations, with reasons:
- One Bernoulli per unit, as the paper's prose has it; the code draws one per weight of a candidate unit
  (`unit_noise="weight"`).
- A dropped unit is off as the suite means it: its bias and the scale and shift of its norm are zero too,
  because that is what removal leaves. The code masks the kernel alone, so the rest of the network could lean
  on a constant that removal takes away. With `unit_noise="weight"` no unit is dropped whole in training, so
  biases and norms stay.
- Units whose sites have several producers (residual streams) are ranked by the norm over all of them and
  share the draw. For one producer this is the paper.
- Layers: those that produce a site, the suite's one rule. The code spares the first convolution and, in
  pruning and evaluation, all fully connected layers.
- Ties are broken by index, so that there are exactly floor(γD) candidates; the code's strict comparison
  targets nothing once that many weights are zero.
- α is rounded to a multiple of 2⁻¹⁶ (`bernoulli`).
- The ramp's legs are fractions of the budget: the code's 20,000 and 40,000 steps of about 100,000.
- The Xtreme variant (a fixed number of weights of each filter) is left out.
- The validation curve of a ramped run is at γ_t: its first leg is no network of the end's sparsity.
- Strength 0 keeps everything, as everywhere in the suite. The paper has no such point: its 0 % row is a
  network with the fraction γ switched off. Here every strength above zero removes at least γ. At zero a
  network with batch norm may be far from dense: its running statistics are those of dropped units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from methods.base import Config, Method, Site, SparsityPlan, StepContext, Traits, prunable_weights
from methods.masks import FunctionalMask, unit_parameters
from methods.random_bits import bernoulli
from methods.ranking import removed_count, smallest, unit_norms

DEFAULTS = {"weight": (0.66, 0.75), "unit": (0.90, 0.75)}
"""(α, γ) that keep most accuracy at 70 % pruned in the paper's Table 2. With a ramp its Table 6 has
(.99, .99) for weights and (.99, .90) for units."""

RAMP_LEG = 0.2
"""Of the budget: how long each of the two legs of γ_t takes."""


class TargetedDropoutConfig(Config):
    """drop_rate: α, targeted_fraction: γ; where not given, those of the paper for the granularity.
    unit_noise: what a draw drops of a candidate unit, of no effect on granularity `weight`."""

    granularity: Literal["unit", "weight"] = "unit"
    drop_rate: float = Field(default=DEFAULTS["unit"][0], ge=0, le=1)
    targeted_fraction: float = Field(default=DEFAULTS["unit"][1], ge=0, lt=1)
    ramp: bool = False
    unit_noise: Literal["unit", "weight"] = "unit"

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        if isinstance(given, dict) and str(given.get("granularity")) in DEFAULTS:
            rate, fraction = DEFAULTS[given["granularity"]]
            return {"drop_rate": rate, "targeted_fraction": fraction, **given}
        return given


class TargetedDropout(Method):
    """Training with noise on the smallest weights or units, then pruning of the smallest in one go."""

    name = "targeted-dropout"
    title = "Targeted dropout"
    paper = "Gomez et al. 2019, Learning Sparse Networks Using Targeted Dropout, arXiv 1905.13678"
    strengths = (0.75, 0.8, 0.85, 0.9)
    strength_meaning = (
        "The fraction of weights of every unit, or of units of every site, that is removed after training; "
        "at least the targeted fraction."
    )
    Config = TargetedDropoutConfig

    @property
    def traits(self) -> Traits:
        return Traits(granularity=self.config.granularity, strength="ratio", trains_once=True)

    @property
    def capturable(self) -> bool:
        """A ramp has other candidates in every step, and how many is decided on the host."""
        return not self.config.ramp

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        super().attach(network, sites, context)
        if self.config.granularity == "weight":
            layers = [name.rpartition(".")[0] for name, _ in prunable_weights(network, sites)]
            self._targets: list[_Weights | _Units] = [
                _Weights(network.get_submodule(layer)) for layer in layers
            ]
        else:
            self._targets = [_Units(network, site, self.config.unit_noise) for site in sites]
        self._hook = network.register_forward_pre_hook(self._before_forward)

    def ramp_at(self, step: int) -> tuple[float, float]:
        """(γ_t, α_t) at `step`: γ reaches 95 % in the first leg, 100 % in the second; α takes both."""
        gamma, alpha = self.config.targeted_fraction, self.config.drop_rate
        if not self.config.ramp:
            return gamma, alpha
        first = min(step / (RAMP_LEG * self.context.steps), 1.0)
        second = min(max(step / (RAMP_LEG * self.context.steps) - 1.0, 0.0), 1.0)
        return gamma * (0.95 * first + 0.05 * second), alpha * (first + second) / 2

    @torch.no_grad()
    def _before_forward(self, network: nn.Module, inputs: Any) -> None:
        """Draws the masks of this forward pass; in evaluation mode the candidates themselves are the mask."""
        gamma, alpha = self.ramp_at(self.context.step)
        generator = self.context.generator if network.training else None
        for target in self._targets:
            target.draw(gamma, alpha, generator)

    def detach(self) -> None:
        self._hook.remove()
        for target in self._targets:
            target.remove()

    def plan(self, strength: float) -> SparsityPlan:
        gamma = self.config.targeted_fraction
        fraction = 0.0 if strength == 0 else max(strength, gamma)
        notes: tuple[str, ...] = ()
        if fraction > strength:
            notes = (f"removed the targeted fraction {gamma:g} for strength {strength:g}",)
        if self.config.granularity == "weight":
            masks = {
                name: ~smallest_per_row(weight, fraction)
                for name, weight in prunable_weights(self.network, self.sites)
            }
            return SparsityPlan(weight_masks=masks, notes=notes)
        kept = {}
        for site in self.sites:
            norms = unit_norms([self.network.get_parameter(f"{layer}.weight") for layer in site.producers])
            kept[site.name] = ~smallest(norms, removed_count(fraction, site.size))
        return SparsityPlan(kept=kept, notes=notes)


def smallest_per_row(weight: Tensor, fraction: float) -> Tensor:
    """True at the floor(fraction · D) smallest |w| of each row (dim 0); D is the product of the other
    dimensions."""
    rows = weight.detach().flatten(1).abs()
    if rows.device.type == "cpu" and rows.dtype == torch.float32:
        rows = rows.view(torch.int32)  # floats from zero on rank as their bits do, and integers are faster
    return smallest(rows, removed_count(fraction, rows.shape[1])).view_as(weight)


class _Weights:
    """The weight of one layer, its entries candidates per output unit."""

    def __init__(self, layer: nn.Module) -> None:
        self._kernel = FunctionalMask(layer, "weight")

    def draw(self, gamma: float, alpha: float, generator: torch.Generator | None) -> None:
        dropped = smallest_per_row(self._kernel.parameter, gamma)
        if generator is not None:
            dropped &= bernoulli(dropped.shape, alpha, generator)
        self._kernel.kept = ~dropped

    def remove(self) -> None:
        self._kernel.remove()


class _Units:
    """The units of one site as candidates. noise: `unit` or `weight`."""

    def __init__(self, network: nn.Module, site: Site, noise: str) -> None:
        self._size, self._noise = site.size, noise
        producers = [network.get_submodule(layer) for layer in site.producers]
        self._kernels: list[FunctionalMask] = []
        self._rest: list[FunctionalMask] = []
        for module, name in list(unit_parameters(network, site)):
            is_kernel = name == "weight" and any(module is producer for producer in producers)
            (self._kernels if is_kernel else self._rest).append(FunctionalMask(module, name))

    def draw(self, gamma: float, alpha: float, generator: torch.Generator | None) -> None:
        norms = unit_norms([kernel.parameter for kernel in self._kernels])
        dropped = smallest(norms, removed_count(gamma, self._size))
        if generator is not None and self._noise == "weight":
            for kernel in self._kernels:
                of_rows = dropped.view(-1, *(1,) * (kernel.parameter.dim() - 1))
                kernel.kept = ~(of_rows & bernoulli(kernel.parameter.shape, alpha, generator))
            for mask in self._rest:
                mask.kept = None
            return
        if generator is not None:
            dropped &= bernoulli(dropped.shape, alpha, generator)
        for mask in (*self._kernels, *self._rest):
            mask.kept = ~dropped.view(-1, *(1,) * (mask.parameter.dim() - 1))

    def remove(self) -> None:
        for mask in (*self._kernels, *self._rest):
            mask.remove()
