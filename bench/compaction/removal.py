"""From a plan to a compact network and the proof that it computes the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bench.compaction.architecture import Architecture, LayerChange
from bench.compaction.branches import constant_branches, set_shift
from bench.compaction.graph import build_graph
from bench.compaction.layers import change_layers
from bench.compaction.liveness import keep_runnable, needed_units, round_up, values
from bench.compaction.rewrite import cut, fold_constants
from bench.compaction.sites import find_spaces, switch_off, without_site
from bench.compaction.steps import Graph
from bench.compaction.tracing import fitting, plain_copy
from bench.compaction.verify import Certificate, certify, reference_of
from methods.base import SparsityPlan


@dataclass(frozen=True)
class Compacted:
    """network: plain modules of the original classes, in eval mode, on the device and in the precision of the
    original. collapsed: sites of which no unit was needed, where one stays so that the network still runs.
    pinned: what kept the analysis from removing units, as `where: operation`."""

    network: nn.Module
    certificate: Certificate
    architecture: Architecture
    collapsed: tuple[str, ...]
    pinned: tuple[str, ...]


def compact(
    network: nn.Module, plan: SparsityPlan, example: Tensor, real: Tensor | None = None, multiple: int = 1
) -> Compacted:
    """Removes what the plan switches off and all that is dead with it.

    example: a batch of inputs (N, C, H, W). real: images to prove equality on, beside random ones. multiple: so many
    units, or twice as many and so on, are left of every site, or all, for kernels that like 8 or 16: some that could
    go stay. The network is not changed. Raises ValueError where the plan does not fit the network or `multiple` is
    below 1, BadInput where the network cannot be traced. A failed certificate is no exception: see
    `Compacted.certificate`.
    """
    if multiple < 1:
        raise ValueError(f"multiple is {multiple}; 1 or more is needed")
    work = plain_copy(network, torch.float64)
    graph = build_graph(work, example)
    reference = reference_of(network, plan, graph).cpu()  # checks the plan too
    switch_off(work, [space.site for space in find_spaces(graph)], plan)
    changes = [LayerChange(kind=a.kind, layers=a.layers) for a in plan.layer_actions]
    for change in changes:
        work = change_layers(work, change.kind, change.layers, example)
    if changes:
        graph = build_graph(work, example)
    graph, emptied = _without_constant_branches(graph, example)
    changes += [LayerChange(kind="shift", layers=(layer,)) for layer in emptied.layers]

    spaces = find_spaces(graph)
    known = values(graph)
    keep = needed_units(graph, known)
    keep |= without_site(graph, spaces)
    held = keep & ~needed_units(graph, known, fold_padded=True)
    collapsed = keep_runnable(graph, spaces, known, keep)
    round_up(graph, spaces, known, keep, multiple)
    added = fold_constants(graph, keep, known)
    work = cut(graph, keep)

    first = next(network.parameters(), example)
    delivered = plain_copy(work, first.dtype).to(first.device)
    certificate = certify(
        reference,
        work,
        delivered,
        fitting(work, example),
        real,
        removed_units=emptied.units + sum(int((~keep[space.units]).sum()) for space in spaces),
        kept_constant_units=sum(int(held[space.units].sum()) for space in spaces),
    )
    architecture = Architecture(
        kept={space.site.name: keep[space.units].nonzero().flatten().tolist() for space in spaces},
        added_biases=added,
        layer_changes=tuple(changes),
        multiple=multiple,
    )
    return Compacted(delivered, certificate, architecture, collapsed, graph.opaque)


class _Emptied(NamedTuple):
    """Branches taken out, by their last layers, and how many units went with them."""

    layers: tuple[str, ...]
    units: int


def _without_constant_branches(graph: Graph, example: Tensor) -> tuple[Graph, _Emptied]:
    """The graph of a network where branches of sums that give the same for every input are one number per channel."""
    branches = constant_branches(graph, values(graph))
    if not branches:
        return graph, _Emptied((), 0)
    before = [space.site for space in find_spaces(graph)]
    network = graph.network
    for layer, constants in branches:
        network = change_layers(network, "shift", (layer,), example)
        set_shift(network, layer, constants)
    graph = build_graph(network, example)
    left = {step.layer for step in graph.producers()}
    gone = sum(site.size for site in before if left.isdisjoint(site.producers))
    return graph, _Emptied(tuple(layer for layer, _ in branches), gone)
