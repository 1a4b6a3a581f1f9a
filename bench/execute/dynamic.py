"""Gates that depend on the image (`Method.input_gates`): put in place, cut with the network, and what they save.

Here alone does code of a method run while a network is evaluated. Nothing of it is in the network whose parameters,
MACs and latency are measured: gates close units that have been computed already, and dense kernels gain nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.measure.modes import evaluation_mode
from bench.records.schema import Cost
from methods.base import Site

Gates = Mapping[str, nn.Module]


def with_gates(network: nn.Module, sites: Sequence[Site], gates: Gates) -> nn.Module:
    """A copy of `network` that multiplies the units of each site by its gate's multipliers, at all its ends; the
    gate sees the values at the first."""
    gated = copy.deepcopy(network)
    for site in sites:
        if site.name in gates:
            hook = _Multiply(gates[site.name], gated.get_submodule(site.ends[0]))
            for end in site.ends:
                gated.get_submodule(end).register_forward_hook(hook)
    return gated


class _Multiply:
    def __init__(self, gate: nn.Module, first: nn.Module) -> None:
        self.gate, self.first = gate, first

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if module is self.first:
            self.multipliers = self.gate(output)
        return output * self.multipliers.reshape(*self.multipliers.shape, *[1] * (output.dim() - 2))


def cut_gates(gates: Gates, kept: Mapping[str, list[int]]) -> dict[str, nn.Module]:
    """The gates of the units that are left; a site not named keeps all."""
    cut = {name: copy.deepcopy(gate) for name, gate in gates.items()}
    for name, gate in cut.items():
        if name not in kept:
            continue
        for module in gate.modules():
            both: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for own in both:
                for key, value in own.items():
                    if value is not None:
                        left = value.detach()[torch.tensor(kept[name], device=value.device)]
                        own[key] = nn.Parameter(left) if isinstance(value, nn.Parameter) else left
    return cut


def with_gate_cost(cost: Cost, gates: Gates) -> Cost:
    """The cost of a network with the numbers of its gates added. MACs stay: they are those of the static network."""
    numbers = [value for gate in gates.values() for value in gate.state_dict().values()]
    count = sum(value.numel() for value in numbers)
    size = sum(value.numel() * value.element_size() for value in numbers)
    return cost.model_copy(
        update={
            "parameters": cost.parameters + count,
            "nonzero": cost.nonzero + sum(int(value.count_nonzero()) for value in numbers),
            "weight_bytes": cost.weight_bytes + size,
            "peak_bytes": cost.peak_bytes + size,
        }
    )


def expected_macs(
    network: nn.Module, sites: Sequence[Site], activity: Mapping[str, float], example: Tensor
) -> tuple[float, float]:
    """Of one image (N = 1): mean multiply-accumulates of convolutions and linear layers with closed units skipped,
    and the gates' own operations.

    A closed unit saves what its readers would do with it, and nothing in its producer (Lee et al., released
    counters): a layer of u inputs, of which d are active on average, costs the fraction d/u, exactly so because its
    outputs are fixed. A layer that reads several sites counts in full. A gate costs 2·C·places + 4·C, or 5·C
    on features: mean and product over the map, normalisation and clip.
    """
    shapes: dict[str, torch.Size] = {}
    twin = copy.deepcopy(network)
    layers = {n: m for n, m in twin.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    for name in {*layers, *(site.ends[0] for site in sites)}:
        twin.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: shapes.__setitem__(name, output.shape)
        )
    with evaluation_mode(twin), torch.inference_mode():
        twin(example)
    readers = [reader for site in sites for reader in site.readers]
    total = gates = 0.0
    factors = {
        reader: min(activity[site.name], site.size) / site.size
        for site in sites
        if site.name in activity
        for reader in site.readers
        if readers.count(reader) == 1
    }
    for name, layer in layers.items():
        if name not in shapes:
            continue
        places = shapes[name].numel() / (layer.weight.shape[0] * len(example))
        total += factors.get(name, 1.0) * layer.weight.numel() * places
    for site in sites:
        if site.name in activity:
            shape = shapes[site.ends[0]]
            gates += site.size * (2 * shape[2:].numel() + 4 if len(shape) > 2 else 5)
    return total, gates
