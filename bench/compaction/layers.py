"""Changes to whole layers: dropping a branch of a sum, taking an activation away, merging two linear maps.

Every change is structural: it depends on the network alone, not on its values, so that an archive can repeat
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bench.compaction.branches import Branch, branch_of, is_sum, only_reader, serving, take_out, zero_of
from bench.compaction.graph import build_graph
from bench.compaction.operations import is_padded
from bench.compaction.rewrite import add_bias
from bench.compaction.steps import Graph, Step

ChangeKind = Literal["drop", "linearise", "merge", "shift"]


def change_layers(network: nn.Module, kind: ChangeKind, layers: Sequence[str], example: Tensor) -> nn.Module:
    """`network` (CPU, eval mode), changed in place, or a `GraphModule` of what is left of it. Raises ValueError where
    the change would not be exact, or is none."""
    graph = build_graph(network, example)
    if kind == "linearise":
        for layer in layers:
            replace(network, find_activation(graph, layer).layer, nn.Identity())
    elif kind == "drop":
        return take_out(graph, [find_branch(graph, layers)], shifts=False)
    elif kind == "shift":
        branches = [branch_of(graph, layer) for layer in layers]
        if None in branches:
            raise ValueError(f"{layers[branches.index(None)]!r} ends no branch of a sum")
        return take_out(graph, [branch for branch in branches if branch is not None], shifts=True)
    else:
        _merge(network, graph, layers)
    return network


def replace(network: nn.Module, path: str, module: nn.Module) -> None:
    home, _, name = path.rpartition(".")
    setattr(network.get_submodule(home), name, module.train(network.training))


def _step(graph: Graph, layer: str) -> Step:
    step = graph.step_of(layer)
    if step is None:
        raise ValueError(f"{layer!r} is no layer that the network calls exactly once")
    return step


def _called_once(graph: Graph, step: Step) -> bool:
    return step.module is not None and sum(other.module is step.module for other in graph.steps) == 1


def find_activation(graph: Graph, layer: str) -> Step:
    """The activation that follows a layer (a normalisation may lie between), or the layer itself if it is
    one."""
    step: Step | None = _step(graph, layer)
    while step is not None and (step.operation.kind != "map" or step.operation.identity):
        step = only_reader(graph, step)
        if step is None or step.operation.kind not in ("norm", "map"):
            raise ValueError(f"no activation follows {layer!r}")
    assert step is not None
    if not _called_once(graph, step):
        raise ValueError(
            f"the activation after {layer!r} ({step.name}) is no module of its own: it cannot be taken away"
        )
    return step


def find_branch(graph: Graph, layers: Sequence[str]) -> Branch:
    """The branch that is named by some of its layers, the last of which gives what goes into the sum, through
    nothing but what keeps zero (a dropout, an activation, a scale)."""
    if not layers:
        raise ValueError("a branch to drop needs a layer")
    end = last = max((_step(graph, layer) for layer in layers), key=graph.steps.index)
    into = only_reader(graph, end)
    while into is not None and zero_of(into) is end:
        end, into = into, only_reader(graph, into)
    if into is None or not is_sum(into):
        raise ValueError(f"the output of {last.layer!r} does not go into a sum alone: it ends no branch")
    branch = Branch(last.layer, end, into, serving(graph, end))
    strangers = [layer for layer in layers if _step(graph, layer) not in branch.steps]
    if strangers:
        raise ValueError(f"{strangers[0]!r} is not of the branch that ends in {last.layer!r}")
    return branch


@torch.no_grad()
def _merge(network: nn.Module, graph: Graph, layers: Sequence[str]) -> None:
    if len(layers) != 2:
        raise ValueError(f"two layers can be merged, not {len(layers)}: {', '.join(layers)}")
    first, second = (_step(graph, layer) for layer in layers)
    between = only_reader(graph, first)
    while between is not None and between is not second:
        if not between.operation.identity:
            raise ValueError(
                f"{between.name} lies between {layers[0]!r} and {layers[1]!r}: they cannot be merged"
            )
        between = only_reader(graph, between)
    if between is None:
        raise ValueError(f"{layers[1]!r} is not the only reader of {layers[0]!r}: they cannot be merged")
    if {first.operation.kind, second.operation.kind} != {"dense"}:
        raise ValueError(f"{layers[0]!r} and {layers[1]!r} are not both linear maps")
    one, two = first.module, second.module
    if isinstance(one, nn.Linear) and isinstance(two, nn.Linear):
        _merge_bias(one, two, two.weight)
        two.weight = nn.Parameter(two.weight @ one.weight, requires_grad=two.weight.requires_grad)
        two.in_features = one.in_features
    elif isinstance(one, nn.Conv2d) and isinstance(two, nn.Conv2d):
        _merge_convolutions(one, two, f"{layers[0]!r} and {layers[1]!r}")
    else:
        raise ValueError(f"{layers[0]!r} and {layers[1]!r} are not layers of the same class")
    replace(network, first.layer, nn.Identity())


def _merge_bias(one: nn.Linear | nn.Conv2d, two: nn.Linear | nn.Conv2d, matrix: Tensor) -> None:
    """matrix: (outputs of two, outputs of one), the weight of two summed over its kernel."""
    if one.bias is not None:
        if two.bias is None:
            add_bias(two)
        assert two.bias is not None
        two.bias += matrix @ one.bias


def _is_pointwise(module: nn.Conv2d) -> bool:
    """1×1 and without padding of any kind: what repeats a border makes the image larger too."""
    return module.kernel_size == (1, 1) and (isinstance(module.padding, str) or not any(module.padding))


def _merge_convolutions(one: nn.Conv2d, two: nn.Conv2d, names: str) -> None:
    """The product convolution takes the place of `two`. Exact if `two` is 1×1, or if `one` is 1×1 without
    stride and no zero padding of `two` can see its bias."""
    if one.groups != 1 or two.groups != 1:
        raise ValueError(f"{names} have groups: merging them is not supported")
    if _is_pointwise(two):
        matrix = two.weight[:, :, 0, 0]
        weight = torch.einsum("om,mikl->oikl", matrix, one.weight)
        _merge_bias(one, two, matrix)
        two.stride = (one.stride[0] * two.stride[0], one.stride[1] * two.stride[1])
        for word in (
            "kernel_size",
            "padding",
            "dilation",
            "padding_mode",
            "_reversed_padding_repeated_twice",
        ):
            setattr(two, word, getattr(one, word))
    elif _is_pointwise(one) and one.stride == (1, 1) and (one.bias is None or not is_padded(two)):
        weight = torch.einsum("omkl,mi->oikl", two.weight, one.weight[:, :, 0, 0])
        _merge_bias(one, two, two.weight.sum((2, 3)))
    else:
        raise ValueError(
            f"the product of {names} is no convolution of one kernel: they cannot be merged exactly"
        )
    two.weight = nn.Parameter(weight, requires_grad=two.weight.requires_grad)
    two.in_channels = one.in_channels
