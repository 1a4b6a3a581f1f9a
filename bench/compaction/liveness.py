"""Which units matter: a sweep forwards over values, a sweep backwards over needs.

Forwards, every channel of every tensor is zero, a constant, or live, for all inputs. Values depend on earlier
steps only, needs on values and later steps only, so that one sweep each reaches the fixed point. A constant
counts as such only where it is the same at every pixel.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from bench.compaction.steps import Graph, Step, heads
from bench.compaction.weights import answer, columns_of, folds, reads, rows_of

LIVE = math.nan
Values = dict[Step, Tensor]


@torch.no_grad()
def values(graph: Graph) -> Values:
    """Of every step, per channel: the constant it holds (float64, zero included), or NaN where it is live."""
    found: Values = {}
    for step in graph.steps:
        value = _value(graph, step, [found[source] for source in step.inputs])
        value = torch.where(value.isfinite(), value, LIVE)
        found[step] = torch.full_like(value, LIVE) if step.overwritten or step.wild else value
        if step.operation.kind == "parameter":
            parameter = graph.network.get_parameter(step.layer)
            if not parameter.is_complex():
                found[step] = parameter.double().flatten()
    return found


def _value(graph: Graph, step: Step, inputs: list[Tensor]) -> Tensor:
    kind, module = step.operation.kind, step.module
    unknown = torch.full((len(step.units),), LIVE, dtype=torch.float64)
    if kind in ("input", "opaque", "output", "parameter"):
        return unknown
    if kind == "cat":
        return torch.cat(inputs)
    if kind == "attention":
        return inputs[2]  # a mean over the tokens, by weights that sum to 1
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
    constants = torch.where(usable, given, 0.0)
    bias = torch.zeros_like(unknown) if module.bias is None else module.bias.double()
    used = reads(graph, step)
    live = ~usable & used if kind == "depthwise" else rows_of(used, ~usable)
    return torch.where(live, LIVE, answer(step, constants) + bias)


def held_constants(graph: Graph, known: Values, keep: Tensor) -> Tensor:
    """(units,) bool: those of `keep`, the needed units, that stay only because they are constant and zero padding
    surrounds what they feed."""
    readers = [step for step in graph.steps if step.operation.kind == "dense" and not _folds(step)]
    constants = (known[step.inputs[0]] for step in readers)
    if not any(bool((constant.isfinite() & (constant != 0)).any()) for constant in constants):
        return torch.zeros_like(keep)
    return keep & ~needed_units(graph, known, fold_padded=True)


def _folds(step: Step) -> bool:
    assert step.module is not None
    return folds(step.module)


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
        elif kind == "attention":
            queries, keys, made = step.inputs
            needs[made] |= need
            # A product with zero is nothing; a key that is the same for all tokens moves all products of a query alike,
            # and the softmax does not see that.
            free = (known[queries] == 0) | known[keys].isfinite()
            head_is_needed = need.view(heads(step), -1).any(1)
            wanted = ~free & head_is_needed.repeat_interleave(len(free) // heads(step))
            needs[queries] |= wanted
            needs[keys] |= wanted
        elif step.index is not None:
            source = step.inputs[0]
            read = step.index[need & (step.index >= 0)]
            wanted = torch.zeros(len(source.units), dtype=torch.bool)
            wanted[read] = True
            needs[source] |= wanted & (known[source] != 0) if step.rewrite == "select" else wanted
        elif kind == "depthwise":
            needs[step.inputs[0]] |= need & reads(graph, step)
        elif kind == "dense":
            source = step.inputs[0]
            free = known[source].isfinite() if fold_padded or _folds(step) else known[source] == 0
            needs[source] |= columns_of(reads(graph, step), need) & ~free
        else:
            for source in step.inputs:
                needs[source] |= need
    keep = graph.pinned.clone()
    for step, need in needs.items():
        keep[step.units[need]] = True
    return keep
