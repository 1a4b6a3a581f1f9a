"""A network with input gates that computes only what is open: one image at a time, by gathering.

A gate is known once its own unit has been computed. So a gated layer runs whole, its open units are picked out, and
the layer that reads them multiplies them by the matching part of its weight alone.

That takes a site with one end and one reader, a linear layer or an ungrouped convolution, and between the two only
operations that treat each unit by itself and leave a zero zero. Other gated sites run whole and are multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import getitem

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from bench.compaction.copies import sharing_copy
from bench.compaction.gating import (
    Gates,
    add_module,
    check_gates,
    finished,
    put_gate,
    replace,
    times,
    traced_copy,
)
from bench.compaction.graph import build_graph
from bench.compaction.sites import find_spaces
from bench.compaction.steps import Graph, Step
from methods.base import Site
from methods.input_gate import InputGate


@dataclass(frozen=True)
class GatherPath:
    """network: takes one image, (1, C, H, W), and computes what the gated network does. sites: where it gathers."""

    network: fx.GraphModule
    sites: tuple[str, ...]


def gather_path(network: nn.Module, gates: Gates, example: Tensor) -> GatherPath:
    """The gather path of a plain network with `gates`. The network is not changed; example: as for `find_sites`.

    Raises ValueError where the gates do not fit the network, BadInput where it cannot be traced.
    """
    graph = build_graph(sharing_copy(network), example)
    sites = [space.site for space in find_spaces(graph)]
    check_gates(gates, sites)
    gathering = traced_copy(network)
    # Node by name: the same trace as that of `graph`, whose steps have the same names.
    nodes = {node.name: node for node in gathering.graph.nodes}
    gathered = []
    for site in sites:
        if site.name not in gates:
            continue
        ends = [_called(graph, end) for end in site.ends]
        reader = _sole_reader(graph, site, nodes)
        if reader is None:
            put_gate(gathering, [nodes[end.name] for end in ends], gates[site.name])
        else:
            places = len(reader.inputs[0].units) // site.size
            _gather(gathering, nodes[ends[0].name], nodes[reader.name], gates[site.name], places)
            gathered.append(site.name)
    return GatherPath(finished(gathering), tuple(gathered))


def _called(graph: Graph, layer: str) -> Step:
    step = graph.step_of(layer)
    assert step is not None, layer  # the layers of a site are called once
    return step


def _sole_reader(graph: Graph, site: Site, nodes: dict[str, fx.Node]) -> Step | None:
    """The layer whose inputs can be gathered, None where there is none."""
    if len(site.ends) != 1:
        return None
    step = _called(graph, site.ends[0])
    while True:
        # Of the nodes, since a reader may take no more than a size: one that would be wrong after gathering.
        if len(nodes[step.name].users) != 1 or len(graph.readers.get(step, [])) != 1:
            return None
        (step,) = graph.readers[step]
        if step.operation.kind == "dense":
            module = step.module
            ungrouped = isinstance(module, nn.Conv2d) and module.groups == 1
            return step if ungrouped or isinstance(module, nn.Linear) else None
        if not _acts_alone(step):
            return None


def _acts_alone(step: Step) -> bool:
    """Whether an operation treats every channel by itself, all by the same rule, and gives zero for zero."""
    operation = step.operation
    if len(step.inputs) != 1 or (step.module is not None and any(True for _ in step.module.parameters())):
        return False
    if operation.kind == "map":
        assert operation.evaluate is not None
        return not bool(operation.evaluate([torch.zeros(1, len(step.inputs[0].units))]).any())
    return operation.kind in ("pool", "flatten")


def _gather(gathering: fx.GraphModule, end: fx.Node, reader: fx.Node, gate: InputGate, places: int) -> None:
    """Picks the open units after `end` and has `reader` read no others."""
    graph = gathering.graph
    pick = add_module(gathering, "picks", Pick(gate))
    with graph.inserting_after(end):
        picked = graph.call_module(pick, (end,))
    with graph.inserting_after(picked):
        units = graph.call_function(getitem, (picked, 1))
        values = graph.call_function(getitem, (picked, 0))
    replace(end, values, but_for=(picked,))
    layer = gathering.get_submodule(str(reader.target))
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    reads = GatheredLinear(layer, places) if isinstance(layer, nn.Linear) else GatheredConvolution(layer)
    (source,) = reader.all_input_nodes
    reader.target, reader.args, reader.kwargs = add_module(gathering, "readers", reads), (source, units), {}


class Pick(nn.Module):
    """The open units of one image, multiplied, and which they are."""

    def __init__(self, gate: InputGate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """(1, size, …) → (1, open, …) and indices (open,). Where all are closed the first stands for them, times
        zero: not every kernel takes no channels. Raises ValueError for more than one image."""
        if len(values) != 1:
            raise ValueError(f"units are gathered for one image at a time, not for {len(values)}")
        multipliers = self.gate(values)
        units = multipliers[0].nonzero().flatten()
        if len(units) == 0:
            units = units.new_zeros(1)
        return times(values.index_select(1, units), multipliers.index_select(1, units)), units


class GatheredLinear(nn.Module):
    """A linear layer on some of its inputs: all `places` features of each unit that is named."""

    def __init__(self, layer: nn.Linear, places: int) -> None:
        super().__init__()
        self.layer, self.places = layer, places

    def forward(self, values: Tensor, units: Tensor) -> Tensor:
        """(1, units · places), indices (units,) → (1, out)."""
        weight = self.layer.weight
        columns = weight.unflatten(1, (-1, self.places)).index_select(1, units).flatten(1)
        return functional.linear(values, columns, self.layer.bias)


class GatheredConvolution(nn.Module):
    """A convolution of one group on some of its input channels."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, values: Tensor, units: Tensor) -> Tensor:
        """(1, units, H, W), indices (units,) → (1, out, H', W')."""
        weight = self.layer.weight.index_select(1, units)
        return self.layer._conv_forward(values, weight, self.layer.bias)
