"""Gates that several methods share: where they sit on a site, and how they leave it.

A gate multiplies the units of a site after their affine chain (weights, bias, normalisation), so that a unit whose gate
is 0 is off in the sense of the contract and can be removed exactly. Behind a ReLU and a pooling it does the same for
less (`Site.outlets`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Site
from methods.unit_axis import unit_axis


class Gate(nn.Module):
    """One multiplier per unit of a site, never negative. Subclasses say how it is drawn in training and what it is in
    evaluation.

    `value`, (size,) or (N, size) for gates of their own for each image, holds for one forward pass of the network.
    """

    value: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def draw(self, training: bool, batch: int) -> Tensor:
        """The multipliers of one forward pass of `batch` images."""
        raise NotImplementedError

    def see(self, values: Tensor) -> None:
        """Told of the units' values, (N, size, …), at the first end of the site, before they are multiplied: a gate
        that depends on them sets its own `value` here."""


class Placement:
    """Gates on the sites of a network, by hooks: the network's own modules, parameters and names stay as they are.

    Gates are drawn once per forward pass of the network, in its mode (training or evaluation), so that every end of a
    site sees the same values. The owner of the gates keeps their parameters (`Method.parameter_groups`, `state_dict`).
    """

    def __init__(self, network: nn.Module, sites: Sequence[Site], gates: Mapping[str, Gate]) -> None:
        """gates: site name → gate; a site without one stays as it is."""
        self.gates = dict(gates)
        self._handles: list[Any] = [network.register_forward_pre_hook(self._draw)]
        for site in sites:
            if site.name in self.gates:
                for end, outlet in zip(site.ends, site.outlets or site.ends, strict=True):
                    hooks = _AtEnd(self.gates[site.name], network.get_submodule(end), end == site.ends[0])
                    self._handles += hooks.register(network.get_submodule(outlet))

    def _draw(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        for gate in self.gates.values():
            gate.value = gate.draw(network.training, len(inputs[0]))

    def remove(self) -> None:
        """Take every hook away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _AtEnd:
    """The hooks at one end of a site.

    A gate that all images share goes into the weight and the bias of the end, as `fold` does for good, for the time of
    the call: the same outputs and gradients for far less work than on feature maps. A gate per image, or an end without
    a weight, or a gate that wants to see the units, multiplies what the outlet of the end hands out; and so does any
    gate of a fully connected layer that has more inputs than rows to work on, where the outputs are the smaller.
    """

    def __init__(self, gate: Gate, end: nn.Module, first: bool) -> None:
        self.gate, self.end, self.first = gate, end, first
        self.sees = type(gate).see is not Gate.see
        self.folded = False
        """Whether the gate is in the weight, in the present call."""

    def register(self, outlet: nn.Module) -> list[Any]:
        return [
            self.end.register_forward_pre_hook(self.before),
            self.end.register_forward_hook(self.after),
            self.end.register_forward_hook(self.clear, always_call=True),
            outlet.register_forward_hook(self.multiply),
        ]

    def _folds(self, inputs: Tensor) -> bool:
        weighted = isinstance(self.end._parameters.get("weight"), Tensor)
        wide = isinstance(self.end, nn.Linear) and inputs.shape[:-1].numel() < inputs.shape[-1]
        return self.gate.value.dim() == 1 and not self.sees and weighted and not wide

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Attributes of the instance hide the parameters of the same name until `clear`."""
        self.folded = self._folds(inputs[0])
        if self.folded:
            value = self.gate.value
            for name in ("weight", "bias"):
                parameter = module._parameters.get(name)
                if parameter is not None:
                    module.__dict__[name] = parameter * value.reshape(-1, *[1] * (parameter.dim() - 1))

    def after(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self.first and self.sees:
            self.gate.see(output.movedim(unit_axis(module), 1))

    def multiply(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        if self.folded:
            return output
        value = self.gate.value.to(output.dtype)
        places = [1] * (output.dim() - 2)
        units = (self.gate.size, *places) if unit_axis(module) == 1 else (*places, self.gate.size)
        return output * value.reshape(-1, *units)

    def clear(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor | None) -> None:
        """Also where the call has failed."""
        module.__dict__.pop("weight", None)
        module.__dict__.pop("bias", None)


def unfoldable(network: nn.Module, sites: Sequence[Site]) -> str | None:
    """Why gates on `sites` could not be folded into the network later; None where they can."""
    for site in sites:
        for end in site.ends:
            if not isinstance(getattr(network.get_submodule(end), "weight", None), Tensor):
                return f"{end} normalises without scale and shift, so no gate can be folded into it"
    return None


@torch.no_grad()
def fold(network: nn.Module, site: Site, scale: Tensor) -> None:
    """Multiply the units of a site by `scale`, (size,), for good: into the scale and shift of the normalisation that
    ends the affine chain where there is one, otherwise into the rows and the bias of the producer.

    Raises ValueError where the normalisation has no scale and shift.
    """
    for end in site.ends:
        module = network.get_submodule(end)
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if not isinstance(weight, Tensor):
            raise ValueError(f"{end}: there is no weight that a gate could be folded into")
        weight.mul_(scale.reshape(-1, *[1] * (weight.dim() - 1)))
        if isinstance(bias, Tensor):
            bias.mul_(scale)
