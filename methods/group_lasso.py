"""Group lasso: all parameters of a unit are one group, which a proximal step takes to exactly zero as a whole.

Yuan & Lin, Model selection and estimation in regression with grouped variables, JRSS B 68(1), 2006; on the filters of
networks Wen, Wu, Wang, Chen & Li, Learning Structured Sparsity in Deep Neural Networks, arXiv 1608.03665.

    min E(θ) + λ·Σ_g √p_g·‖θ_g‖₂        θ_g ← θ_g·max(1 − η·λ·√p_g / ‖θ_g‖, 0) after every step at the rate η

θ_g has p_g entries: for each end of the unit its scale and shift where the end is a normalisation, otherwise its row in
the producer and its bias. A unit that is zero is off.

Deviations, with reasons:
- Wen et al. take the subgradient and set what ends below a threshold to zero; the proximal step gives exact zeros.
- Biases are in the group: without them a unit of zero weights is still a constant.
- In front of a normalisation the size of a row means nothing, and would fall for nothing: there scale and shift are the
  group, all of what makes the unit an output. Where the readers are normalised too (`Site.scale_free`), one factor on
  all units means nothing either: after each step scales and shifts are brought back to their length at γ = 1, β = 0.
- √p_g is Yuan & Lin's; it makes one λ mean the same for short and for long rows.
- The step follows the optimiser's, η its rate. With momentum m or Adam the minimised function is not exactly the one
  above: a heavy ball multiplies what the gradient does by 1/(1 − m), which divides λ; Adam's steps have the scale of
  the rate whatever the gradient. λ therefore has to be chosen for the recipe.
- A unit at zero behind a ReLU gets no gradient: what is off stays off, but for what momentum still holds.
- One unit of every site stays: the one of the largest norm before the step, unshrunk.
- While fine-tuning there is no penalty, and the units stay as they were found (Wen et al. fine-tune as well).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from methods.base import Phase, Site, SparsityPlan, StepContext, Traits
from methods.finetuning import FinetunedMethod
from methods.proximal import group_shrinkage


class GroupLasso(FinetunedMethod):
    """Proximal group lasso over units, then fine-tuning of what is left."""

    name = "group-lasso"
    title = "Group lasso"
    paper = "Yuan & Lin 2006; Wen et al. 2016, Learning Structured Sparsity in Deep Neural Networks, arXiv 1608.03665"
    strengths = (3e-4, 1e-3, 3e-3, 1e-2)
    capturable = True
    strength_meaning = "λ, the weight of the penalty."

    groups: dict[str, list[Tensor]]
    """Site → the parameters whose row i is of group i."""

    @property
    def traits(self) -> Traits:
        return Traits(granularity="unit", strength="penalty", trains_once=False)

    def phases(self, epochs: int) -> Sequence[Phase]:
        finetune = self.config.finetune
        sparsify = Phase("sparsify", 1 - finetune)
        return (sparsify, Phase("finetune", finetune)) if finetune else (sparsify,)

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        super().attach(network, sites, context)
        self.groups = {site.name: grouped(network, site) for site in sites}
        self._length = {
            site.name: (site.size * len(site.norms)) ** 0.5
            for site in sites
            if site.scale_free and is_normalised(network, site)
        }

    def after_step(self) -> None:
        super().after_step()
        assert self.context.strength is not None
        if self.context.strength > 0 and self.context.phase.name == "sparsify":
            self._shrink(self.context.learning_rate * self.context.strength)

    @torch.no_grad()
    def _shrink(self, threshold: float) -> None:
        """The proximal step; threshold: η·λ."""
        for name, group in self.groups.items():
            norms = row_norms(group)
            size = sum(parameter[0].numel() for parameter in group)
            factor = group_shrinkage(norms, threshold * size**0.5)
            # Without asking the host, which would wait for a GPU in every step: the largest of a site that is all zero.
            largest = torch.arange(len(norms), device=norms.device) == norms.argmax()
            factor = torch.where(largest & ~factor.any(), 1.0, factor)
            if name in self._length:
                factor = factor * (self._length[name] / (factor * norms).norm())
            for parameter in group:
                parameter.mul_(factor.view(-1, *[1] * (parameter.dim() - 1)))

    def select(self, strength: float) -> SparsityPlan:
        """What the proximal steps have left, whatever `strength`; at 0 all."""
        return SparsityPlan(
            kept={name: (row_norms(group) > 0) | (strength == 0) for name, group in self.groups.items()}
        )


def is_normalised(network: nn.Module, site: Site) -> bool:
    """Whether all ends of the site are normalisations with scale and shift."""
    return all(_is_scaling(network, site, end) for end in site.ends)


def _is_scaling(network: nn.Module, site: Site, end: str) -> bool:
    return end in site.norms and isinstance(getattr(network.get_submodule(end), "weight", None), Tensor)


def grouped(network: nn.Module, site: Site) -> list[Tensor]:
    """The parameters that are penalised; row i is of unit i."""
    holders = [
        network.get_submodule(end if _is_scaling(network, site, end) else producer)
        for producer, end in zip(site.producers, site.ends, strict=True)
    ]
    parameters = [getattr(holder, name, None) for holder in holders for name in ("weight", "bias")]
    return [parameter for parameter in parameters if isinstance(parameter, Tensor)]


def row_norms(parameters: Sequence[Tensor]) -> Tensor:
    """‖θ_g‖₂ over the rows (dim 0) that unit g has in all `parameters`, vectors included: (size,)."""
    squares = [p.detach().reshape(p.shape[0], -1).square().sum(dim=1) for p in parameters]
    return torch.stack(squares).sum(dim=0).sqrt()
