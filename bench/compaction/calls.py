"""Calls of a network that do not fit fewer channels, replaced by calls that do."""

from __future__ import annotations

import operator
from collections.abc import Set
from typing import Any

import torch
from torch import Tensor, fx, nn

from bench.compaction.copies import take_hooks
from bench.compaction.moves import stated_sizes
from bench.compaction.operations import in_place, may_share
from bench.compaction.own_layers import Select
from bench.compaction.steps import Graph, Step
from bench.compaction.tracing import trace
from bench.errors import BadInput

_COUNTING: set[Any] = {
    getattr, operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv,
    operator.mod, operator.neg, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge,
    "size", "dim",
}  # fmt: skip
"""Sizes and what is computed of them: nothing but the result comes of it."""


def fit_calls(graph: Graph, keep: Tensor, gone: Set[Step]) -> bool:
    """Changes the calls of the graph that name the number or the places of units that go; whether there were any. gone:
    steps that go with all who read them, out of concatenations."""
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
                _resize(graph.traced, step, int(keep[step.units].sum()))
            else:
                replaced.append(step.node)
                step.node = _select(graph, step, step.node, keep)
            changed = True
    erase_unread(graph.traced, replaced, graph.network)
    return _hold_sizes(graph, keep) or changed


def as_called(graph: Graph) -> nn.Module:
    """A `GraphModule` of the layers of the graph's network under their paths, with the calls that are in the graph."""
    erase_unread(graph.traced, [], graph.network)
    return called(graph.network, graph.traced)


def called(network: nn.Module, traced: fx.Graph) -> fx.GraphModule:
    """A `GraphModule` of the layers of `network` with these calls, under its own hooks."""
    traced.lint()
    twin = fx.GraphModule(network, traced, type(network).__name__)
    take_hooks(twin, network)
    return twin


def still_calls(graph: Graph) -> bool:
    """Whether the code of the network, all of whose layers are cut, does what it did: it may have asked one how many
    outputs it has."""
    try:
        now = trace(graph.network)
    except BadInput:
        return False
    erase_unread(now, [], graph.network)
    if len(now.nodes) != len(graph.traced.nodes):
        return False
    twins = dict(zip(graph.traced.nodes, now.nodes, strict=True))
    return all(
        then.op == node.op
        and (then.target == node.target or str(node.target).startswith("_tensor_constant"))
        and fx.node.map_arg((then.args, then.kwargs), lambda n: twins[n]) == (node.args, node.kwargs)
        for then, node in twins.items()
    )


def _leave_out(step: Step, gone: Set[Step]) -> None:
    """Of a concatenation, the operands that go."""
    assert step.node is not None
    parts = step.node.args[0]
    assert isinstance(parts, list | tuple)
    left = [part for part, source in zip(parts, step.inputs, strict=True) if source not in gone]
    step.node.args = (left, *step.node.args[1:])


def counts(node: fx.Node) -> bool:
    """Whether a node may go where nobody reads it, as one that computes a size may."""
    return node.target in _COUNTING


def erase_unread(traced: fx.Graph, nodes: list[fx.Node], network: nn.Module) -> None:
    """Takes `nodes` out as far as nobody reads them, and what only they have read, unless it writes to a tensor that
    others read, which torch.fx's own dead-code elimination does not see; sizes that nobody reads, first."""
    for node in reversed(list(traced.nodes)):
        if not node.users and counts(node) and node not in nodes:
            traced.erase_node(node)
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.users or node.op in ("placeholder", "output") or node not in traced.nodes:
            continue
        if node in nodes or not _is_heard(node, network):
            waiting += node.all_input_nodes
            traced.erase_node(node)


def _is_heard(node: fx.Node, network: nn.Module) -> bool:
    """Whether a node that nobody reads works in place on a tensor that somebody else reads."""
    module = _module(node, network)
    if not node.all_input_nodes or not in_place(node, module):
        return False
    while node.all_input_nodes and may_share(node, _module(node, network)):
        node = node.all_input_nodes[0]
        if len(node.users) > 1:
            return True
    return False


def _module(node: fx.Node, network: nn.Module) -> nn.Module | None:
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def _resize(traced: fx.Graph, step: Step, channels: int) -> None:
    node = step.node
    assert node is not None
    sizes = stated_sizes(node)
    if len(sizes) == 1 < len(step.shape) and isinstance(sizes[0], fx.Node):  # the sizes of a tensor, in one
        with traced.inserting_before(node):
            sizes = [traced.call_function(operator.getitem, (sizes[0], d)) for d in range(len(step.shape))]
    sizes[step.axis] = channels
    node.args, node.kwargs = (node.all_input_nodes[0], tuple(sizes)), {}


def _hold_sizes(graph: Graph, keep: Tensor) -> bool:
    """Where the code reads the number of channels of a tensor that loses some, puts the number that it was: what is
    known of the calls that take it (a view, a slice, of any tensor) is known for that. Whether there was any."""
    held = False
    for step in graph.steps:
        if step.node is None or bool(keep[step.units].all()):
            continue
        dims, axis, channels = len(step.shape), step.axis, len(step.units)
        for size in list(step.node.users):
            dim = size.kwargs.get("dim", size.args[1] if len(size.args) > 1 else None)
            if size.target == "size" and isinstance(dim, int):
                held |= dim % dims == axis and _put(channels, size, list(size.users))
            elif size.target == "size" or (size.target is getattr and dim == "shape"):
                held |= _hold_shape(graph.traced, size, dims, axis, channels)
    return held


def _hold_shape(traced: fx.Graph, shape: fx.Node, dims: int, axis: int, channels: int) -> bool:
    """The same of all sizes of a tensor, in one."""
    held, others = False, []
    for reader in list(shape.users):
        if reader.target is operator.getitem and isinstance(reader.args[1], int):
            held |= reader.args[1] % dims == axis and _put(channels, reader, list(reader.users))
        else:
            others.append(reader)
    if not others:
        return held
    with traced.inserting_before(shape.next):
        sizes = [
            channels if d == axis else traced.call_function(operator.getitem, (shape, d)) for d in range(dims)
        ]
        return _put(tuple(sizes), shape, others)


def _put(instead: Any, node: fx.Node, readers: list[fx.Node]) -> bool:
    """What some readers of `node` read. Whether there were any."""
    for reader in readers:
        reader.args = fx.node.map_arg(reader.args, lambda n: instead if n is node else n)
        reader.kwargs = fx.node.map_arg(reader.kwargs, lambda n: instead if n is node else n)
    return bool(readers)


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
