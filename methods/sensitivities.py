"""Sensitivities: one real multiplier per unit, after the activation, in front of the layers that read the unit.

The gate of unit i sits on the inputs of the site's readers (POST: a_i = s_i·φ(z̃_i)), not on the site's ends as other
gates do. In front of a ReLU s_i = 0 would be absorbing, because φ'(0) = 0 leaves s_i without gradient; behind it the
gradient of s_i at 0 is that of any multiplier, so a unit that was switched off by mistake comes back. What lies
between activation and reader (pooling, flattening, a depthwise convolution) is no matter: s folds into the readers'
input columns exactly, for any activation and any sign of s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Site
from methods.proximal import soft_threshold
from methods.ranking import unit_norms
from methods.unit_axis import unit_axis

LARGEST_MOVE = 0.1
"""Of one s in one step, shrinkage apart. A layer that is down to a few units is so steep in them that a plain gradient
step would diverge; elsewhere moves are far smaller. No less than η_s·λ, or s would not come to rest where it should."""


class Sensitivities:
    """The gates of all sites that can take one, as hooks; the network keeps its own modules and parameters.

    sites: those with gates. values: site → s, (size,), leaves that collect gradients. Sites on a residual stream or a
    concatenation have none: their readers see the units of several branches. Nor have those whose units lie in another
    order in front of a reader.
    """

    def __init__(self, network: nn.Module, sites: Sequence[Site]) -> None:
        self.network = network
        self.sites = [site for site in sites if takes_gate(site)]
        self.values: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        for site in self.sites:
            like = network.get_parameter(f"{site.producers[0]}.weight")
            s = torch.ones(site.size, dtype=like.dtype, device=like.device, requires_grad=True)
            self.values[site.name] = s
            for layer in site.readers:
                self._handles.append(network.get_submodule(layer).register_forward_pre_hook(_Multiply(s)))

    def weights(self) -> Iterator[nn.Parameter]:
        """Of all layers that write or read a gated unit: what has to be held down for ‖s‖₁ to mean anything."""
        layers = dict.fromkeys(layer for site in self.sites for layer in (*site.producers, *site.readers))
        for layer in layers:
            yield self.network.get_parameter(f"{layer}.weight")

    def units(self) -> int:
        """How many are not off."""
        return sum(int(s.count_nonzero()) for s in self.values.values())

    def penalty(self) -> float:
        """P(s) = Σ ‖s‖₁."""
        return sum(float(s.detach().abs().sum()) for s in self.values.values())

    @torch.no_grad()
    def step(self, rate: float, multiplier: Tensor | float) -> None:
        """s ← prox of η_s·λ·‖·‖₁ at s − η_s·∇E; the gradients are taken up and cleared.

        rate: η_s. multiplier: λ. A site whose units would all go keeps the one of the largest |s|·‖w‖ without
        shrinkage, so that no layer dies. Where the scale of s is free, ‖s‖₂ stays √size.
        """
        moved: dict[str, Tensor] = {}
        for name, s in self.values.items():
            moved[name] = s if s.grad is None else s - _move(rate, s.grad)
            s.grad = None
        shrunk = {name: soft_threshold(v, rate * multiplier) for name, v in moved.items()}
        alive = torch.stack([s.any() for s in shrunk.values()]).tolist()
        for site, lives in zip(self.sites, alive, strict=True):
            s = shrunk[site.name]
            if not lives:
                norms = unit_norms([self.network.get_parameter(f"{p}.weight") for p in site.producers])
                last = (moved[site.name].abs() * norms).argmax()
                s[last] = moved[site.name][last]
            if site.scale_free:
                s *= site.size**0.5 / s.norm()
            self.values[site.name].copy_(s)

    @torch.no_grad()
    def step_frozen(self, rate: float) -> None:
        """s ← s − η_s·∇E for the units that are there; those that are off stay so."""
        for s in self.values.values():
            if s.grad is not None:
                s.sub_(_move(rate, s.grad) * (s != 0))
            s.grad = None

    def kept(self) -> dict[str, Tensor]:
        """Site → bool (size,): s ≠ 0."""
        return {name: s.detach() != 0 for name, s in self.values.items()}

    def state_dict(self) -> dict[str, Tensor]:
        return {f"s/{name}": s.detach() for name, s in self.values.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, s in self.values.items():
            s.copy_(state[f"s/{name}"])

    @torch.no_grad()
    def fold(self) -> None:
        """Take the gates away and multiply the readers' input columns by them: W^{l+1}[:, i] ← W^{l+1}[:, i]·s_i."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for site in self.sites:
            for layer in site.readers:
                module = self.network.get_submodule(layer)
                weight, groups = module.weight, getattr(module, "groups", 1)
                assert isinstance(weight, Tensor)
                s = _spread(self.values[site.name].detach(), _width(module))
                if isinstance(module, nn.ConvTranspose2d):  # its inputs are the rows
                    weight.mul_(s.view(-1, 1, 1, 1))
                    continue
                blocks = weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1)
                blocks.mul_(s.view(groups, 1, -1, 1))


class _Multiply:
    """The hook in front of one reader; s of a unit is repeated over the features that a flattening made of it."""

    def __init__(self, s: Tensor) -> None:
        self.s = s

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x, axis = inputs[0], unit_axis(module)
        behind = 0 if axis == -1 else x.dim() - 2
        return (x * _spread(self.s, x.shape[axis]).view(-1, *[1] * behind), *inputs[1:])


def _move(rate: float, gradient: Tensor) -> Tensor:
    return (rate * gradient).clamp(-LARGEST_MOVE, LARGEST_MOVE)


def _spread(s: Tensor, width: int) -> Tensor:
    return s if width == len(s) else s.repeat_interleave(width // len(s))


def _width(layer: nn.Module) -> int:
    width = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    assert isinstance(width, int)
    return width


def takes_gate(site: Site) -> bool:
    return site.kind == "inner" and bool(site.readers) and site.in_order
