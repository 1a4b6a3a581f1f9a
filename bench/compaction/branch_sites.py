"""Sites of kind `branch`: the residual branches that a plan may drop, each whole or not at all."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

from bench.compaction.branches import Branch, is_sum, only_reader, serving, source_of, zero_of
from bench.compaction.copies import sharing_copy
from bench.compaction.graph import build_graph
from bench.compaction.sites import layer_cost
from bench.compaction.steps import Graph, Step
from methods.base import Site


def find_branches(network: nn.Module, example: Tensor) -> list[Site]:
    """One site of size 1 for each residual branch of any fx-traceable network, in the order of execution of their last
    layers.

    A residual branch is an operand of a sum of two that alone has parameters: the other goes on without it, as it is,
    or through what has none (an image of half the size, channels of zeros). Its last layer is a convolution, a linear
    layer or a normalisation, and what comes behind it keeps zero (an activation, a scale), so that the branch gives
    zero where the parameters of that layer are zero. Where both operands have parameters, as with a projection in the
    shortcut, neither is offered: they are two ways through one block, and what would be left is no identity.

    A branch may lie within another, and ends before it: `drop` actions are exact alone, and together in the order
    of the sites. example: a batch of inputs (N, C, H, W). The network is not changed. Raises BadInput where it cannot
    be traced.
    """
    graph = build_graph(sharing_copy(network), example)
    known = _from_input(graph)
    found: list[Branch] = []
    inside: set[Step] = set()
    for step in graph.steps:
        if (branch := _residual(graph, step, inside)) and _goes_on(branch, known):
            found.append(branch)
            inside.update(branch.steps)
    return [_site(graph, branch) for branch in found]


def _from_input(graph: Graph) -> set[Step]:
    """The steps that depend on the input: an embedding that is added to all images does not, nor can it go on alone."""
    found: set[Step] = set()
    for step in graph.steps:
        # A placeholder and a tensor that the code reads by itself are both an input to the graph.
        is_image = step.operation.kind == "input" and step.node is not None and step.node.op == "placeholder"
        if is_image or any(source in found for source in step.inputs):
            found.add(step)
    return found


def _residual(graph: Graph, into: Step, inside: Collection[Step]) -> Branch | None:
    """The branch of a sum, if just one operand has parameters. inside: steps of branches that are found already, which
    the other operand may lose too."""
    if not is_sum(into) or len(into.inputs) != 2:
        return None
    own = [
        end
        for end in into.inputs
        if any(_parameters(graph, step) for step in _own_steps(graph, end, into) if step not in inside)
    ]
    layer = _last_layer(graph, own[0]) if len(own) == 1 else ""
    if not layer:
        return None
    branch = Branch(layer, own[0], into, serving(graph, own[0]))
    return branch if graph.step_of(layer) in branch.steps else None  # others may read that layer


def _own_steps(graph: Graph, end: Step, into: Step) -> tuple[Step, ...]:
    """Those that serve this operand alone: none where somebody else reads it."""
    return serving(graph, end) if only_reader(graph, end) is into else ()


def _parameters(graph: Graph, step: Step) -> list[nn.Parameter]:
    """Of the layer that a step calls, or the one that the code of the network reads by itself."""
    if step.module is not None:
        return list(step.module.parameters())
    if step.node is None or step.node.op != "get_attr":
        return []
    target = str(step.node.target)
    return [p for name, p in graph.network.named_parameters(remove_duplicate=False) if name == target]


def _last_layer(graph: Graph, end: Step) -> str:
    """The layer that zeroes this operand where its parameters are zero; empty where there is none."""
    last = end
    while (source := zero_of(last)) is not None:
        last = source
    is_affine = last.operation.kind in ("dense", "depthwise", "norm") and graph.step_of(last.layer) is last
    return last.layer if is_affine and isinstance(getattr(last.module, "weight", None), nn.Parameter) else ""


def _goes_on(branch: Branch, known: Collection[Step]) -> bool:
    """Whether the other operand of the sum does all that the sum did: of the same shape, not a constant, and nothing
    of it written by the branch; and nobody the graph does not know of reads the end of the branch."""
    (other,) = (step for step in branch.into.inputs if step is not branch.end)
    written = any(source_of(source).overwritten for step in branch.steps for source in step.inputs)
    alone = branch.end.node is not None and len(branch.end.node.users) == 1
    fits = other in known and other.shape == branch.into.shape
    return fits and alone and not written


def _site(graph: Graph, branch: Branch) -> Site:
    layers = [step for step in branch.steps if step.operation.kind in ("dense", "depthwise")]
    elsewhere = {step.module for step in graph.steps if step not in branch.steps}
    # Whatever else they are, tensors that the code reads by itself are inputs to the graph, and serve no branch there.
    read = [
        step
        for step in graph.steps
        if not step.inputs and graph.readers.get(step) and set(graph.readers[step]) <= set(branch.steps)
    ]
    sizes = {
        id(parameter): parameter.numel()
        for step in (*branch.steps, *read)
        if step.module is None or step.module not in elsewhere
        for parameter in _parameters(graph, step)
    }
    everywhere = torch.ones(len(graph.pinned), dtype=torch.bool)
    return Site(
        name=branch.layer,
        size=1,
        kind="branch",
        producers=tuple(step.layer for step in layers),
        norms=tuple(step.layer for step in branch.steps if step.operation.kind == "norm"),
        ends=(branch.layer,),
        readers=(),
        parameters_per_unit=float(sum(sizes.values())),
        macs_per_unit=sum(layer_cost(step, everywhere, produces=True)[1] for step in layers),
    )
