"""The optimisers of a run: one for the network by the recipe, and one for what a method adds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bench.training.recipe import Recipe


class Optimizers:
    """Steps together; every group's rate follows one factor. A method's group may name its own `optimizer` (`sgd`,
    `adam`, `adamw`); what it leaves out, it takes from the recipe."""

    def __init__(
        self,
        network: nn.Module,
        extra: list[dict[str, Any]],
        recipe: Recipe,
        rate_scale: float,
        in_graph: bool = False,
    ) -> None:
        """in_graph: the steps are to be recorded in a CUDA graph, so that rates and counters have to be on the
        device."""
        self.in_graph = in_graph
        added = []
        for group in extra:
            settings = dict(group)
            kind = settings.pop("optimizer", recipe.optimizer)
            added.append(_create(kind, [settings], recipe, rate_scale, in_graph))
        # What torch has made of `params`: it may have been an iterator, which is at its end now, or a single tensor.
        claimed = {id(p) for part in added for group in part.param_groups for p in group["params"]}
        own = [p for p in network.parameters() if p.requires_grad and id(p) not in claimed]
        groups = _decay_groups(own, recipe)
        self.parts = [_create(recipe.optimizer, groups, recipe, rate_scale, in_graph), *added]
        self._base_rates = [[group["lr"] for group in part.param_groups] for part in self.parts]
        self.parameters = [p for part in self.parts for group in part.param_groups for p in group["params"]]
        self.rate = float(self._base_rates[0][0])
        """Of the network's own parameters, as it stands."""
        self._rates_to_device()

    def set_rate(self, factor: float) -> None:
        for part, rates in zip(self.parts, self._base_rates, strict=True):
            for group, rate in zip(part.param_groups, rates, strict=True):
                if self.in_graph:
                    group["lr"].fill_(rate * factor)
                else:
                    group["lr"] = rate * factor
        self.rate = self._base_rates[0][0] * factor

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Rates come with the next `set_rate`, and how they are held is this object's affair."""
        for part, state in zip(self.parts, states, strict=True):
            held = [{key: group.get(key) for key in ("lr", "capturable")} for group in part.param_groups]
            part.load_state_dict(state)
            _lay_out_alike(part)
            for group, own in zip(part.param_groups, held, strict=True):
                group.update({key: value for key, value in own.items() if key in group})

    def _rates_to_device(self) -> None:
        if self.in_graph:
            device = self.parameters[0].device
            for part in self.parts:
                for group in part.param_groups:
                    group["lr"] = torch.tensor(float(group["lr"]), device=device)


def _lay_out_alike(optimizer: torch.optim.Optimizer) -> None:
    """Fused kernels take parameters and averages element by element as they lie in memory: averages that come from a
    file, where all is contiguous, would go to the wrong weights of a channels-last convolution."""
    for parameter, averages in optimizer.state.items():
        for name, value in averages.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                averages[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _decay_groups(parameters: list[nn.Parameter], recipe: Recipe) -> list[dict[str, Any]]:
    """One group, or a second one without weight decay for biases and for what a normalisation scales and shifts by."""
    if recipe.decay_norm_and_bias:
        return [{"params": parameters}]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1]},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]] or groups[:1]


def _create(
    kind: str, groups: list[dict[str, Any]], recipe: Recipe, rate_scale: float, in_graph: bool
) -> torch.optim.Optimizer:
    """Fused kernels: one pass over the parameters instead of a dozen small operations a step."""
    rate, decay = recipe.learning_rate * rate_scale, recipe.weight_decay
    if kind == "sgd":
        return torch.optim.SGD(
            groups, rate, recipe.momentum, weight_decay=decay, nesterov=recipe.nesterov, fused=True
        )
    adam = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    return adam(groups, rate, weight_decay=decay, fused=True, capturable=in_graph)
