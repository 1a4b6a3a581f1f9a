"""Units removed at random: what a criterion has to be better than.

Mittal et al., Recovering from Random Pruning, arXiv 1801.10447; as the sanity check of any criterion also Su
et al., arXiv 2009.11094. The order of removal is drawn once per site, without regard to the strength: what a
weak pruning removes is a part of what a stronger one removes.

With `ratios` each site loses a fraction of its own: those of another method's result separate what its criterion
found out about units from what it found out about layers (Frankle et al., Pruning Neural Networks at Initialization:
Why Are We Missing the Mark?, arXiv 2009.08576, "random shuffling").

Deviation: units are drawn within each site alone. One draw over all units of the network would leave the sites about
the same fractions, but small ones now and then none; the fractions of a criterion's global ranking come in by `ratios`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from methods.base import Site, SparsityPlan, StepContext, Traits, missing_site
from methods.finetuning import FinetunedConfig, FinetunedMethod
from methods.ranking import removed_count


class RandomUnitsConfig(FinetunedConfig):
    """ratios: site → the fraction of its units that goes at any strength above zero, a site not named keeps all; where
    left out, the strength is the fraction of every site."""

    ratios: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(default={})


class RandomUnits(FinetunedMethod):
    """floor(strength · size) units of every site, uniformly at random; then fine-tuning."""

    name = "random"
    title = "Random units"
    paper = "Mittal et al. 2018, Recovering from Random Pruning, arXiv 1801.10447"
    strengths = (0.5, 0.75, 0.85, 0.9)
    strength_meaning = (
        "The fraction of every site's units that is removed (a label where there are `ratios`)."
    )
    Config = RandomUnitsConfig
    capturable = True

    order: dict[str, Tensor]
    """Site → int64 (size,): the units in the order in which they go."""

    @property
    def traits(self) -> Traits:
        once = self.config.finetune == 0
        return Traits("unit", strength="ratio", trains_once=once, prescribed=bool(self.config.ratios))

    def supports(self, network: nn.Module, sites: Sequence[Site]) -> str | None:
        return missing_site(network, sites, self.config.ratios)

    def attach(self, network: nn.Module, sites: Sequence[Site], context: StepContext) -> None:
        super().attach(network, sites, context)
        self.order = {
            site.name: torch.randperm(site.size, generator=context.generator, device=context.generator.device)
            for site in sites
        }

    def select(self, strength: float) -> SparsityPlan:
        kept = {}
        for site in self.sites:
            order = self.order[site.name]
            kept[site.name] = torch.ones_like(order, dtype=torch.bool)
            kept[site.name][order[: removed_count(self._fraction(site, strength), site.size)]] = False
        return SparsityPlan(kept=kept)

    def _fraction(self, site: Site, strength: float) -> float:
        ratio: float = self.config.ratios.get(site.name, 0.0) if self.config.ratios and strength else strength
        return ratio

    def state_dict(self) -> dict[str, Tensor | float | int | str]:
        return super().state_dict() | {f"order/{name}": order for name, order in self.order.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.order = {name: state[f"order/{name}"].to(order.device) for name, order in self.order.items()}
