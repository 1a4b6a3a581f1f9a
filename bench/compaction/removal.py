"""From a plan to a compact network and the proof that it computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.compaction.architecture import Architecture, LayerChange
from bench.compaction.branches import constant_branches, set_shift
from bench.compaction.calls import as_called, still_calls
from bench.compaction.copies import copy_in_precision_of, plain_copy, sharing_copy
from bench.compaction.graph import build_graph
from bench.compaction.layers import change_layers
from bench.compaction.liveness import held_constants, needed_units, values
from bench.compaction.rewrite import add_shifts, constant_shifts, cut
from bench.compaction.runnable import keep_runnable, round_up
from bench.compaction.sites import find_spaces, switch_off, without_site
from bench.compaction.steps import Graph
from bench.compaction.tracing import fitting, has_constants
from bench.compaction.verify import Certificate, certify, reference_of
from bench.errors import BadInput
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
    first = next((p for p in network.parameters() if p.is_floating_point()), example)
    # Cutting alone rounds nothing, and float32 is half the work; products of weights do, and what the code computes
    # while it is traced.
    exact = not _is_single(network) or bool(plan.layer_actions)
    work = plain_copy(network, torch.float64 if exact else None)
    graph = build_graph(work, example) if not exact else _in_float64(work, example)
    if not exact and has_constants(graph.traced):
        exact, work = True, plain_copy(network, torch.float64)
        graph = _in_float64(work, example)
    spaces = find_spaces(graph)
    sites = [space.site for space in spaces]
    reference = reference_of(sharing_copy(network), plan, graph, sites)  # checks the plan too
    switch_off(work, sites, plan)
    changes = [LayerChange(kind=a.kind, layers=a.layers) for a in plan.layer_actions]
    for change in changes:
        work = change_layers(work, change.kind, change.layers, example)
    if changes:
        graph = build_graph(work, example)
        spaces = find_spaces(graph)
    known = values(graph)
    removed = 0
    if branches := constant_branches(graph, known):
        changes.append(LayerChange(kind="shift", layers=tuple(layer for layer, _ in branches)))
        graph = _without(graph, branches, example)
        left = {step.layer for step in graph.producers()}
        removed = sum(space.site.size for space in spaces if left.isdisjoint(space.site.producers))
        spaces, known = find_spaces(graph), values(graph)
    keep = needed_units(graph, known)
    keep |= without_site(graph, spaces)
    held = held_constants(graph, known, keep)
    collapsed = keep_runnable(graph, spaces, known, keep)
    round_up(graph, spaces, known, keep, multiple)
    removed += sum(int((~keep[space.units]).sum()) for space in spaces)
    kept_constant = sum(int(held[space.units].sum()) for space in spaces)
    shifts = constant_shifts(graph, keep, known)
    exact |= bool(shifts) or bool(branches)
    work = cut(graph, keep, own_code=True)  # the proof tells whether it does
    if exact:
        work = work.double()
    added = add_shifts(work, shifts)

    def proven() -> tuple[nn.Module, Certificate]:
        single = (copy_in_precision_of(work, network, first.dtype) if exact else work).eval()
        inputs = fitting(work, example)
        return single, certify(reference, work, single, inputs, real, removed, kept_constant)

    delivered, certificate = proven()
    own_code = work is graph.network
    if own_code and not certificate.passed and not still_calls(graph):
        own_code, work = False, as_called(graph)
        delivered, certificate = proven()
    architecture = Architecture(
        kept={space.site.name: keep[space.units].nonzero().flatten().tolist() for space in spaces},
        added_biases=added,
        layer_changes=tuple(changes),
        multiple=multiple,
        own_code=own_code,
    )
    return Compacted(delivered.to(first.device), certificate, architecture, collapsed, graph.opaque)


def _is_single(network: nn.Module) -> bool:
    """Whether all its numbers are in float32."""
    tensors = (*network.parameters(), *network.buffers())
    return all(tensor.dtype is torch.float32 for tensor in tensors if tensor.is_floating_point())


def _in_float64(network: nn.Module, example: Tensor) -> Graph:
    try:
        return build_graph(network, example)
    except BadInput as error:
        raise BadInput(f"in float64, in which units are removed and equality is proven: {error}") from error


def _without(graph: Graph, branches: Sequence[tuple[str, Tensor]], example: Tensor) -> Graph:
    """The graph of the network with one number per channel in the place of each branch."""
    network = change_layers(graph.network.double(), "shift", [layer for layer, _ in branches], example)
    for layer, constants in branches:
        set_shift(network, layer, constants)
    return build_graph(network, example)
