"""Where the scale of units goes: which normalisation ends their affine chain, how far a multiplier may be carried, and
whether it means anything at all."""

from __future__ import annotations

import torch

from bench.compaction.operations import HOMOGENEOUS
from bench.compaction.steps import Graph, Step


def norm_after(graph: Graph, step: Step) -> Step | None:
    """The normalisation that ends the affine chain of a producer: nobody else reads what lies between."""
    while True:
        readers = graph.readers.get(step, [])
        if len(readers) != 1:
            return None
        step = readers[0]
        if step.operation.kind == "norm":
            return step
        if not step.operation.identity:
            return None


def outlet(graph: Graph, end: Step) -> Step:
    """The last pooling module after `end` that nothing but homogeneous modules, each called once, lies before and
    nobody else reads from; `end` itself where there is none."""
    found, step = end, end
    while len(readers := graph.readers.get(step, [])) == 1:
        step = readers[0]
        if type(step.module) not in HOMOGENEOUS or graph.step_of(step.layer) is not step:
            break
        if step.operation.kind == "pool":
            found = step
    return found


def is_scale_free(graph: Graph, ends: list[Step], producers: list[Step]) -> bool:
    """Whether all that reads from `ends` is normalised, and all before it homogeneous. A producer among the readers (a
    depthwise convolution) has an end of its own."""
    front, seen = list(ends), set(ends)
    while front:
        for reader in graph.readers.get(front.pop(), []):
            if reader in seen or reader in producers:
                continue
            seen.add(reader)
            if reader.operation.kind == "dense":
                if norm_after(graph, reader) is None:
                    return False
            elif reader.operation.kind in ("pool", "flatten") or _is_homogeneous(reader):
                front.append(reader)
            else:
                return False
    return True


def _is_homogeneous(step: Step) -> bool:
    """Whether a map of one tensor takes positive factors through; where the class does not say so, by trying it."""
    evaluate = step.operation.evaluate
    if type(step.module) in HOMOGENEOUS:
        return True
    if step.operation.kind != "map" or evaluate is None or len(step.inputs) != 1 or step.axis != 1:
        return False
    probe = torch.linspace(-8, 8, len(step.units), dtype=torch.float64)[None]
    return all(torch.allclose(evaluate([c * probe]), c * evaluate([probe])) for c in (0.25, 3.0))
