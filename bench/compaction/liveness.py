"""Which units matter: a sweep forwards over values, a sweep backwards over needs.

Forwards, every channel of every tensor is zero, a constant, or live, for all inputs. Values depend on earlier
steps only, needs on values and later steps only, so that one sweep each reaches the fixed point. A constant
counts as such only where it is the same at every pixel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bench.compaction.operations import is_padded
from bench.compaction.sites import Space
from bench.compaction.steps import Graph, Step

LIVE = math.nan
Values = dict[Step, Tensor]


def rows_and_columns(module: nn.Module) -> tuple[Tensor, Tensor]:
    """Of a linear layer or convolution: which output reads which input, (O, I) bool, and the sum of the
    weights between them over the kernel, (O, I). Of a depthwise convolution: the same per channel, (C,)."""
    assert isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    weight = module.weight.detach()
    if isinstance(module, nn.Linear):
        return weight != 0, weight
    if isinstance(module, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    reads, total = (weight != 0).flatten(2).any(2), weight.flatten(2).sum(2)
    if module.groups == 1:
        return reads, total
    if module.groups == module.in_channels == module.out_channels:
        return reads[:, 0], total[:, 0]
    blocks = [torch.block_diag(*part.double().chunk(module.groups)) for part in (reads, total)]
    return blocks[0] != 0, blocks[1].to(total)


def folds(module: nn.Module) -> bool:
    """Whether a constant input acts as a bias at every pixel."""
    if isinstance(module, nn.ConvTranspose2d):
        return False  # how often a pixel is written depends on where it is
    return not (isinstance(module, nn.Conv2d) and is_padded(module))


@torch.no_grad()
def values(graph: Graph) -> Values:
    """Of every step, per channel: the constant it holds (float64, zero included), or NaN where it is live."""
    found: Values = {}
    for step in graph.steps:
        value = _value(step, [found[source] for source in step.inputs])
        value = torch.where(value.isfinite(), value, LIVE)
        found[step] = torch.full_like(value, LIVE) if step.overwritten or step.wild else value
        if step.operation.kind == "parameter":
            found[step] = graph.network.get_parameter(step.layer).double().flatten()
    return found


def _value(step: Step, inputs: list[Tensor]) -> Tensor:
    kind, module = step.operation.kind, step.module
    unknown = torch.full((len(step.units),), LIVE, dtype=torch.float64)
    if kind in ("input", "opaque", "output", "parameter"):
        return unknown
    if kind == "cat":
        return torch.cat(inputs)
    given = inputs[0]
    if step.index is not None:  # a move
        given = torch.cat([given, torch.zeros(1, dtype=given.dtype)])[step.index]  # -1 is the zero
    if kind in ("pool", "flatten", "move"):
        return given if step.operation.uniform else torch.where(given == 0, given, LIVE)
    if kind == "norm":
        assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
        assert module.running_mean is not None
        assert module.running_var is not None
        deviation = (module.running_var.double() + module.eps).sqrt()
        if not module.affine:
            return (given - module.running_mean.double()) / deviation
        scale = module.weight.double() / deviation
        moved = (given - module.running_mean.double()) * scale + module.bias.double()
        return torch.where(module.weight == 0, module.bias.double(), moved)
    if kind == "map":
        assert step.operation.evaluate is not None
        results = step.operation.evaluate([value[None] for value in inputs])[0]
        if step.operation.product:
            anyone = torch.stack([value == 0 for value in inputs]).any(0)
            results = torch.where(anyone, 0.0, results)
            return torch.where(torch.stack(inputs).isnan().any(0) & ~anyone, LIVE, results)
        return torch.where(torch.stack(inputs).isnan().any(0), LIVE, results)
    assert isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    usable = given.isfinite() if folds(module) else given == 0
    reads, total = rows_and_columns(module)
    constants = torch.where(usable, given, 0.0)
    bias = torch.zeros_like(unknown) if module.bias is None else module.bias.double()
    if kind == "depthwise":
        return torch.where(usable | ~reads, total.double() * constants + bias, LIVE)
    live = reads[:, ~usable].any(1)
    return torch.where(live, LIVE, total.double() @ constants + bias)


@torch.no_grad()
def needed_units(graph: Graph, known: Values, fold_padded: bool = False) -> Tensor:
    """(units,) bool: the units that somebody reads and that do not fold into a bias.

    fold_padded: pretend that constants fold through zero padding too (to count those that do not).
    """
    needs = {step: graph.pinned[step.units].clone() for step in graph.steps}
    for step in reversed(graph.steps):
        need, kind = needs[step], step.operation.kind
        if kind in ("input", "opaque", "output", "parameter"):
            continue
        if kind == "cat":
            parts = need.split([len(source.units) for source in step.inputs])
            for source, part in zip(step.inputs, parts, strict=True):
                needs[source] |= part
        elif step.index is not None:
            source = step.inputs[0]
            read = step.index[need & (step.index >= 0)]
            wanted = torch.zeros(len(source.units), dtype=torch.bool)
            wanted[read] = True
            needs[source] |= wanted & (known[source] != 0) if step.rewrite == "select" else wanted
        elif kind == "depthwise":
            assert step.module is not None
            needs[step.inputs[0]] |= need & rows_and_columns(step.module)[0]
        elif kind == "dense":
            assert step.module is not None
            source = step.inputs[0]
            free = known[source].isfinite() if fold_padded or folds(step.module) else known[source] == 0
            needs[source] |= rows_and_columns(step.module)[0][need].any(0) & ~free
        else:
            for source in step.inputs:
                needs[source] |= need
    keep = graph.pinned.clone()
    for step, need in needs.items():
        keep[step.units[need]] = True
    return keep


def balance(graph: Graph, keep: Tensor) -> bool:
    """Keeps further units where a grouped convolution would be left with groups of different size; a group
    without any unit goes. Whether something changed."""
    before = int(keep.sum())
    grouped = [
        step
        for step in graph.producers()
        if step.operation.kind == "dense" and isinstance(step.module, nn.Conv2d) and step.module.groups > 1
    ]
    settled = False
    while not settled:
        count = int(keep.sum())
        for step in grouped:
            assert isinstance(step.module, nn.Conv2d)
            sides = [units.view(step.module.groups, -1) for units in (step.inputs[0].units, step.units)]
            alive = keep[sides[0]].any(1) | keep[sides[1]].any(1)
            for side in sides:
                size = max(1, int(keep[side].sum(1).max()))
                for group in side[alive]:
                    missing = size - int(keep[group].sum())
                    keep[group[~keep[group]][: max(0, missing)]] = True
        settled = int(keep.sum()) == count
    return int(keep.sum()) != before


def _supply(graph: Graph, known: Values, keep: Tensor) -> None:
    """Keeps what units that stay are taken from, unless it is zero: a move whose two sides are different units (see
    `graph`) would put a zero in the place of a constant that was folded elsewhere."""
    for step in reversed(graph.steps):
        if step.index is not None and step.rewrite == "select":
            source = step.inputs[0]
            read = step.index[keep[step.units] & (step.index >= 0)]
            read = read[known[source][read] != 0]
            keep[source.units[read]] = True


def keep_runnable(graph: Graph, spaces: list[Space], known: Values, keep: Tensor) -> tuple[str, ...]:
    """Keeps what the network needs to run though nobody reads it: groups of one size, and one unit of every space and
    every tensor (half of a space, say) that would be empty. The names of the sites of which no unit was needed."""
    empty = [space for space in spaces if not bool(keep[space.units].any())]
    balance(graph, keep)  # first, as it may leave a unit where none was needed
    for units in (*(space.units for space in empty), *(step.units for step in graph.steps)):
        if len(units) > 0 and not bool(keep[units].any()):
            keep[units[0]] = True
    settled = False
    while not settled:
        count = int(keep.sum())
        balance(graph, keep)
        _supply(graph, known, keep)
        settled = int(keep.sum()) == count
    return tuple(space.site.name for space in empty)


def round_up(graph: Graph, spaces: list[Space], known: Values, keep: Tensor, multiple: int) -> None:
    """Keeps further units, the first that could go, until every space has a multiple of `multiple`, or all."""
    count = -1
    while multiple > 1 and count != int(keep.sum()):
        count = int(keep.sum())
        for space in spaces:
            gone = space.units[~keep[space.units]]
            missing = -(len(space.units) - len(gone)) % multiple
            keep[gone[:missing]] = True
        balance(graph, keep)
        _supply(graph, known, keep)
