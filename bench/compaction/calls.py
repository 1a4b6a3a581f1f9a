"""Calls of a network that do not fit fewer channels, replaced by calls that do."""

from __future__ import annotations

from collections.abc import Set

import torch
from torch import Tensor, fx, nn

from bench.compaction.moves import stated_sizes
from bench.compaction.own_layers import Select
from bench.compaction.steps import Graph, Step


def fitting_calls(graph: Graph, keep: Tensor, gone: Set[Step]) -> nn.Module:
    """The graph's network, or, where units of a call that names their number or their places go, a `GraphModule` of
    the same layers under the same paths. gone: steps that go with all who read them, out of concatenations."""
    replaced = [step.node for step in graph.steps if step in gone and step.node is not None]
    changed = bool(replaced)
    graph.traced.owning_module = None  # the run on the example, which knows no layer of ours
    for step in graph.steps:
        if step in gone:
            continue
        if step.operation.kind == "cat" and not gone.isdisjoint(step.inputs):
            _leave_out(step, gone)
        if step.rewrite and not bool(keep[step.units].all() and keep[step.inputs[0].units].all()):
            assert step.node is not None
            if step.rewrite == "size":
                _resize(step.node, step.axis, int(keep[step.units].sum()))
            else:
                replaced.append(step.node)
                step.node = _select(graph, step, step.node, keep)
            changed = True
    if not changed:
        return graph.network
    erase_unread(graph.traced, replaced)
    graph.traced.lint()
    return fx.GraphModule(graph.network, graph.traced, type(graph.network).__name__)


def _leave_out(step: Step, gone: Set[Step]) -> None:
    """Of a concatenation, the operands that go."""
    assert step.node is not None
    parts = step.node.args[0]
    assert isinstance(parts, list | tuple)
    left = [part for part, source in zip(parts, step.inputs, strict=True) if source not in gone]
    step.node.args = (left, *step.node.args[1:])


def erase_unread(traced: fx.Graph, nodes: list[fx.Node]) -> None:
    """Takes `nodes` out as far as nobody reads them, and what only they have read. Not by torch.fx's own dead-code
    elimination: that takes operations out that work in place, whose result nobody reads either."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if not node.users and node.op not in ("placeholder", "output") and node in traced.nodes:
            waiting += node.all_input_nodes
            traced.erase_node(node)


def _resize(node: fx.Node, axis: int, channels: int) -> None:
    sizes = stated_sizes(node)
    sizes[axis] = channels
    node.args, node.kwargs = (node.args[0], tuple(sizes)), {}


def _select(graph: Graph, step: Step, node: fx.Node, keep: Tensor) -> fx.Node:
    """The call that stands in the place of `node`."""
    (source,), index = step.inputs, step.index
    assert index is not None
    assert source.node is not None
    here = keep[source.units]
    place = torch.where(here, here.cumsum(0) - 1, -1)
    positions = torch.where(index >= 0, place[index], -1)[keep[step.units]]
    path = f"select_{step.name}"
    graph.network.add_module(path, Select(positions.tolist(), step.axis))
    with graph.traced.inserting_before(node):
        chosen = graph.traced.call_module(path, (source.node,))
    node.replace_all_uses_with(chosen)
    return chosen
