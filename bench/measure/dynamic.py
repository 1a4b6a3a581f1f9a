"""What input gates cost and save, counted. Time is not inferred from it but measured: `compare_on_images`."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bench.compaction.gating import Gates
from bench.measure.modes import evaluation_mode
from bench.records.schema import Cost, DynamicCost
from methods.base import Site


def with_gate_cost(cost: Cost, gates: Gates) -> Cost:
    """The cost of a network with the numbers of its gates added. MACs stay: they are those of the static network."""
    numbers = [value for gate in gates.values() for value in gate.buffers()]
    size = sum(value.nbytes for value in numbers)
    return cost.model_copy(
        update={
            "parameters": cost.parameters + gate_parameters(gates),
            "nonzero": cost.nonzero + sum(int(value.count_nonzero()) for value in numbers),
            "weight_bytes": cost.weight_bytes + size,
            "peak_bytes": cost.peak_bytes + size,
        }
    )


def gate_parameters(gates: Gates) -> int:
    """How many numbers the gates hold."""
    return sum(value.numel() for gate in gates.values() for value in gate.buffers())


def dynamic_cost(
    network: nn.Module, sites: Sequence[Site], gates: Gates, activity: Mapping[str, float], example: Tensor
) -> DynamicCost:
    """Of one image, `example` (1, C, H, W); activity: site → mean number of active units, of the sites with gates.

    A closed unit saves what its readers would do with it, and nothing in its producer (Lee et al., released
    counters): a layer of u inputs, of which d are active on average, costs the fraction d/u, exactly so because its
    outputs are fixed. A layer that reads several sites counts in full. A gate costs 2·C·places + 4·C, or 5·C
    on features: mean and product over the map, normalisation and clip.
    """
    layers = {name: m for name, m in network.named_modules() if isinstance(m, _ConvNd | nn.Linear)}
    gated = [site for site in sites if site.name in gates]
    calls = _calls(network, {*layers, *(site.ends[0] for site in gated)}, example)
    shapes = dict(calls)
    readers = [reader for site in sites for reader in site.readers]
    open_share = {
        reader: min(activity[site.name], site.size) / site.size
        for site in gated
        for reader in site.readers
        if readers.count(reader) == 1
    }
    macs, operations = 0.0, 0
    for name, shape in calls:
        if name in layers:
            weight = layers[name].weight
            places = shape.numel() / weight.shape[0]
            macs += open_share.get(name, 1.0) * weight.numel() * places
    for site in gated:
        shape = shapes[site.ends[0]]
        operations += site.size * (2 * shape[2:].numel() + 4 if len(shape) > 2 else 5)
    return DynamicCost(expected_macs=macs, gate_operations=operations, gate_parameters=gate_parameters(gates))


def _calls(network: nn.Module, layers: set[str], example: Tensor) -> list[tuple[str, torch.Size]]:
    """Each call of those layers that run, one that is shared has several, with the shape of what all of its weights
    meet at every place: the output, of a transposed convolution the input."""
    calls: list[tuple[str, torch.Size]] = []

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        transposed = isinstance(module, _ConvNd) and module.transposed
        calls.append((name, (inputs[0] if transposed else output).shape))

    twin = copy.deepcopy(network)
    for name in layers:
        twin.get_submodule(name).register_forward_hook(partial(note, name))
    with evaluation_mode(twin), torch.inference_mode():
        twin(example)
    return calls
