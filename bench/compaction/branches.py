"""Branches of a sum that are taken out: those that a plan drops, and those that give the same for every input.

What is left of a branch that gives the same for every input is one number per channel, which a `Shift` in the place of
the sum adds. Nothing depends on the size of the image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from bench.compaction.calls import called, erase_unread
from bench.compaction.own_layers import Shift
from bench.compaction.steps import Graph, Step


@dataclass(frozen=True)
class Branch:
    """layer: its last, by which it is named. end: the step whose value goes into the sum `into`, and nowhere else.
    steps: all that serve this branch alone, the end included, in their order."""

    layer: str
    end: Step
    into: Step
    steps: tuple[Step, ...]


def is_sum(step: Step) -> bool:
    """Of two tensors or more."""
    return step.operation.kind == "map" and not step.operation.product and len(step.inputs) > 1


def only_reader(graph: Graph, step: Step) -> Step | None:
    """None where there are several, or none."""
    readers = graph.readers.get(step, [])
    return readers[0] if len(readers) == 1 else None


def zero_of(step: Step) -> Step | None:
    """The one input that zero is to come from for `step` to be zero; None where there is no such."""
    operation = step.operation
    sources = [source for source in step.inputs if source.operation.kind != "parameter"]
    if len(sources) != 1:
        return None
    scaled = operation.product and len(step.inputs) > 1  # by a parameter
    if operation.kind in ("pool", "move", "flatten") or operation.identity or scaled:
        return sources[0]
    if operation.kind == "map" and operation.evaluate is not None and len(step.inputs) == 1:
        zeros = torch.zeros(1, len(step.units), dtype=torch.float64)
        return None if bool(operation.evaluate([zeros]).any()) else sources[0]
    return None


def branch_of(graph: Graph, layer: str) -> Branch | None:
    """The branch whose last layer this is: from there to the sum there is one way."""
    end = graph.step_of(layer)
    while end is not None:
        into = only_reader(graph, end)
        if into is not None and is_sum(into):
            return Branch(layer, end, into, serving(graph, end))
        end = into
    return None


def serving(graph: Graph, end: Step) -> tuple[Step, ...]:
    """The steps that nobody reads but for `end`'s sake, `end` included."""
    branch = {end}
    for step in reversed(graph.steps[: graph.steps.index(end)]):
        readers = graph.readers.get(step, [])
        if step.operation.kind != "input" and readers and all(other in branch for other in readers):
            branch.add(step)
    return tuple(step for step in graph.steps if step in branch)


def constant_branches(graph: Graph, known: Mapping[Step, Tensor]) -> list[tuple[str, Tensor]]:
    """Branches with layers of their own that give the same for every input, to a sum that does not: the last layer of
    each, and what it gives, (channels,). None that lies within another."""
    found: list[tuple[str, Tensor]] = []
    inside: set[Step] = set()
    for step in reversed(graph.steps):
        if step in inside or not is_sum(step) or bool(known[step].isfinite().all()) or len(step.inputs) != 2:
            continue
        for end, other in (step.inputs, step.inputs[::-1]):
            layer = _last_layer(graph, end)
            branch = branch_of(graph, layer) if layer else None
            if branch is None or branch.end is not end or other.shape != step.shape:
                continue
            if bool(known[end].isfinite().all()) and any(s.operation.kind == "dense" for s in branch.steps):
                found.append((layer, known[end]))
                inside.update(branch.steps)
    return found[::-1]


def _last_layer(graph: Graph, end: Step) -> str:
    """The layer that a branch is named by; empty where there is none."""
    step = end
    while step.module is None or graph.step_of(step.layer) is None:
        sources = [source for source in step.inputs if source.operation.kind != "parameter"]
        if len(sources) != 1:
            return ""
        (step,) = sources
    return step.layer


def take_out(graph: Graph, branches: Sequence[Branch], shifts: bool) -> nn.Module:
    """The graph's network, a `GraphModule`, without the branches; shifts: with a `Shift`, of zeros, for each."""
    traced = graph.traced
    dtype = next((p.dtype for p in graph.network.parameters() if p.is_floating_point()), torch.float32)
    traced.owning_module = None  # the run on the example, which knows no layer of ours
    for branch in branches:
        node = _node(branch.into)
        if node not in traced.nodes:
            continue  # its sum has gone with another branch
        # Of the call as it is now, as a sum before it may be a shift already.
        (other,) = (source for source in node.all_input_nodes if source is not _node(branch.end))
        own = [step.node for step in branch.steps]
        with traced.inserting_before(node):
            if shifts:
                axis = branch.into.axis - len(branch.into.shape)
                path = "shift_" + branch.layer.replace(".", "_")
                graph.network.add_module(path, Shift(len(branch.into.units), axis).to(dtype))
                instead = traced.call_module(path, (other,))
            elif any(user is not node and user not in own for user in other.users):
                # Somebody may work in place on what was a sum, and somebody else read what went into it.
                instead = traced.call_method("clone", (other,))
            else:
                instead = other
        node.replace_all_uses_with(instead)
        erase_unread(traced, [node], graph.network)
    return called(graph.network, traced)


def source_of(step: Step) -> Step:
    """The step that makes the tensor: `step`, unless it stands for a tensor whose channels are taken to be on another
    axis."""
    while step.node is None:
        (step,) = step.inputs
    return step


def _node(step: Step) -> fx.Node:
    node = source_of(step).node
    assert node is not None
    return node


def set_shift(network: nn.Module, layer: str, values: Tensor) -> None:
    """values: (channels,), of the branch whose last layer this was; if its sum is still there."""
    shift = getattr(network, "shift_" + layer.replace(".", "_"), None)
    if isinstance(shift, Shift):
        with torch.no_grad():
            shift.bias.copy_(values)
