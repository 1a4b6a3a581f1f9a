"""Masks on a network: enforced on its parameters after every step, or applied on the way through a forward
pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize

from methods.base import Site, SparsityPlan

_KEPT, _WEIGHT = "kept/", "weight/"


def unit_parameters(network: nn.Module, site: Site) -> Iterator[tuple[nn.Module, str]]:
    """The parameters of which row i belongs to unit i, as (module, name): weights and biases of the
    producers, scales and shifts of the norms. With its rows at zero a unit is off."""
    for layer in (*site.producers, *site.norms):
        module = network.get_submodule(layer)
        for name in ("weight", "bias"):
            if isinstance(getattr(module, name, None), Tensor):
                yield module, name


class Masks:
    """The units and weights that a training has given up.

    Empty until `set`. `enforce` writes zeros, so it undoes whatever momentum and weight decay made of a
    removed entry.
    """

    def __init__(self, network: nn.Module, sites: Sequence[Site]) -> None:
        self.network = network
        # The rows of a branch's layers are no units of its, and its name may be that of a site as well.
        self.sites = {site.name: site for site in sites if site.kind != "branch"}
        self.kept: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor] = {}
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._entries: list[tuple[Tensor, Tensor]] = []

    def __bool__(self) -> bool:
        return bool(self.kept or self.weights)

    def set(self, plan: SparsityPlan) -> None:
        """Take the masks of `plan` in place of those held. Zeroes nothing yet."""
        self.kept, self.weights = dict(plan.kept), dict(plan.weight_masks)
        self._rows = [
            (getattr(module, name), (~kept).nonzero().flatten())
            for site, kept in self.kept.items()
            if not bool(kept.all())
            for module, name in unit_parameters(self.network, self.sites[site])
        ]
        self._entries = [(self.network.get_parameter(name), mask) for name, mask in self.weights.items()]

    @torch.no_grad()
    def enforce(self) -> None:
        """Set the removed rows and entries to zero."""
        for parameter, removed in self._rows:
            parameter.index_fill_(0, removed, 0.0)
        for parameter, mask in self._entries:
            parameter.mul_(mask)

    def plan(self) -> SparsityPlan:
        return SparsityPlan(kept=dict(self.kept), weight_masks=dict(self.weights))

    def state_dict(self) -> dict[str, Tensor]:
        kept = {_KEPT + name: mask for name, mask in self.kept.items()}
        return kept | {_WEIGHT + name: mask for name, mask in self.weights.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The counterpart of `state_dict`; keys that are not of masks are left alone."""
        device = next(self.network.parameters()).device
        of_prefix = {
            prefix: {
                key.removeprefix(prefix): mask.to(device)
                for key, mask in state.items()
                if key.startswith(prefix)
            }
            for prefix in (_KEPT, _WEIGHT)
        }
        self.set(SparsityPlan(kept=of_prefix[_KEPT], weight_masks=of_prefix[_WEIGHT]))


class FunctionalMask:
    """A parameter that the network sees as parameter ⊙ `kept`, while the parameter itself keeps its values.

    parameter: the original, which the optimiser goes on training. kept: bool that broadcasts to its shape, a
    constant for autograd; None for no mask. `remove` leaves the module as it was, the order of its parameters
    included.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.parameter: Tensor = getattr(module, name)
        self._module, self._name = module, name
        self._order = list(module._parameters)
        self._product = _Product()
        parametrize.register_parametrization(module, name, self._product)

    @property
    def kept(self) -> Tensor | None:
        return self._product.kept

    @kept.setter
    def kept(self, kept: Tensor | None) -> None:
        self._product.kept = kept

    def remove(self) -> None:
        parametrize.remove_parametrizations(self._module, self._name, leave_parametrized=False)
        parameters = self._module._parameters
        for name in self._order:
            if name in parameters:
                parameters[name] = parameters.pop(name)


class _Product(nn.Module):
    kept: Tensor | None = None

    def forward(self, parameter: Tensor) -> Tensor:
        if self.kept is None:
            return parameter
        product: Tensor = _Masked.apply(parameter, self.kept)
        return product


class _Masked(torch.autograd.Function):
    """parameter ⊙ kept, laid out in memory as the parameter is. The strides of a plain product differ in dimensions of
    size 1, and a convolution of one input channel that is channels-last would no longer be taken for it."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, kept: Tensor) -> Tensor:
        mask = kept.view(torch.uint8).to(parameter.dtype)  # from bool it takes a CPU fifteen times as long
        ctx.save_for_backward(mask)
        return torch.mul(parameter, mask, out=torch.empty_like(parameter))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return gradient * mask, None
