"""How deep a network is: its weight layers, and how many of them a nonlinearity keeps apart from the next."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from bench.compaction.copies import sharing_copy
from bench.compaction.graph import build_graph
from bench.compaction.steps import Graph, Step

_LINEAR = ("norm", "pool", "flatten", "move", "cat", "input", "parameter")
"""What a value passes without meeting an activation; a pooling counts as none, whatever it takes of its window."""


class Depth(NamedTuple):
    """layers: convolutions and linear layers; one that is called several times counts once. active: those of them
    with an activation between them and the next weight layer, or with none behind them (the last): the others
    could be multiplied into the next."""

    layers: int
    active: int


def depth(network: nn.Module, example: Tensor) -> Depth:
    """Of `network` for inputs like `example` (N, C, H, W). Raises BadInput where torch.fx cannot trace it."""
    graph = build_graph(sharing_copy(network), example)
    layers = [step for step in graph.steps if _is_weight_layer(step)]
    active = {id(step.module) for step in layers if _is_active(graph, step)}
    return Depth(len({id(step.module) for step in layers}), len(active))


def _is_weight_layer(step: Step) -> bool:
    return isinstance(step.module, nn.Conv2d | nn.Linear)


def _is_active(graph: Graph, layer: Step) -> bool:
    """Whether some way from it leads to an activation, or out, before the next weight layer. An operation that the
    analysis does not know counts as an activation."""
    waiting, seen = list(graph.readers.get(layer, ())), set[Step]()
    while waiting:
        step = waiting.pop()
        if step in seen or _is_weight_layer(step):
            continue
        seen.add(step)
        if not _is_linear(step):
            return True
        waiting += graph.readers.get(step, ())
    return False


def _is_linear(step: Step) -> bool:
    operation = step.operation
    is_sum = operation.kind == "map" and not operation.product and len(step.inputs) > 1
    return operation.kind in _LINEAR or operation.identity or is_sum
