"""The optimisers of a run: one for the network by the recipe, and one for what a method adds."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bench.training.recipe import Recipe


class Optimizers:
    """Steps together; every group's rate follows one factor. A method's group may name its own `optimizer` (`sgd`,
    `adam`, `adamw`); what it leaves out, it takes from the recipe."""

    def __init__(
        self, network: nn.Module, extra: list[dict[str, Any]], recipe: Recipe, rate_scale: float
    ) -> None:
        claimed = {id(parameter) for group in extra for parameter in group["params"]}
        own = [p for p in network.parameters() if p.requires_grad and id(p) not in claimed]
        self.parts = [_create(recipe.optimizer, [{"params": own}], recipe, rate_scale)]
        for group in extra:
            settings = dict(group)
            kind = settings.pop("optimizer", recipe.optimizer)
            self.parts.append(_create(kind, [settings], recipe, rate_scale))
        self._base_rates = [[group["lr"] for group in part.param_groups] for part in self.parts]
        self.parameters = [p for part in self.parts for group in part.param_groups for p in group["params"]]

    def set_rate(self, factor: float) -> None:
        for part, rates in zip(self.parts, self._base_rates, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                group["lr"] = rate * factor

    @property
    def rate(self) -> float:
        """Of the network's own parameters, as it stands."""
        return float(self.parts[0].param_groups[0]["lr"])

    def zero_grad(self) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _create(
    kind: str, groups: list[dict[str, Any]], recipe: Recipe, rate_scale: float
) -> torch.optim.Optimizer:
    """Fused kernels: one pass over the parameters instead of a dozen small operations a step."""
    rate, decay = recipe.learning_rate * rate_scale, recipe.weight_decay
    if kind == "sgd":
        return torch.optim.SGD(
            groups, rate, recipe.momentum, weight_decay=decay, nesterov=recipe.nesterov, fused=True
        )
    adam = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    return adam(groups, rate, weight_decay=decay, fused=True)
