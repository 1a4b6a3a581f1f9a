"""The channel spaces of a network, as data: what `graph.build_graph` finds and everybody else reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, fx, nn

from bench.compaction.operations import Operation


@dataclass(eq=False)
class Step:
    """One node that makes a tensor. layer: path of the module it calls or of the parameter it reads, or "". units:
    (C,) int64, the unit of each channel; empty for a tensor without channels. shape: of the tensor for the example.
    overwritten: a later step changes it in place before somebody else reads it. wild: all its units are pinned.

    index: of a move, (C,) int64, the channel of the source that each channel is, or -1 for zeros. rewrite: what has to
    be done to the call when units go: tell it the new size of the channels, or put a `Select` in its place.
    """

    name: str
    operation: Operation
    inputs: tuple[Step, ...]
    shape: tuple[int, ...]
    units: Tensor
    layer: str = ""
    module: nn.Module | None = None
    overwritten: bool = False
    wild: bool = False
    index: Tensor | None = None
    rewrite: Literal["", "size", "select"] = ""
    node: fx.Node | None = None

    @property
    def axis(self) -> int:
        """Of the channels."""
        return self.operation.axis


@dataclass
class Graph:
    """steps: in the order of execution. pinned: (units,) bool. coupled: (units,) bool, touched by an addition
    or a concatenation. opaque: what pins units, as `where: what`. network, traced: what the steps are of."""

    network: nn.Module
    traced: fx.Graph
    steps: list[Step]
    pinned: Tensor
    coupled: Tensor
    opaque: tuple[str, ...]
    readers: dict[Step, list[Step]] = field(default_factory=dict)

    def producers(self) -> list[Step]:
        """Linear layers and convolutions, in the order of execution."""
        return [step for step in self.steps if step.operation.kind in ("dense", "depthwise")]

    def step_of(self, layer: str) -> Step | None:
        """The only step that calls the module at this path, if there is one."""
        found = [step for step in self.steps if step.layer == layer]
        return found[0] if len(found) == 1 else None


class Units:
    """Union-find over unit numbers."""

    def __init__(self) -> None:
        self.parent: list[int] = []

    def new(self, count: int) -> list[int]:
        """So many units that are nobody's."""
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return list(range(start, start + count))

    def find(self, unit: int) -> int:
        """The unit that stands for all united with it."""
        while self.parent[unit] != unit:
            self.parent[unit] = self.parent[self.parent[unit]]
            unit = self.parent[unit]
        return unit

    def unite(self, first: Iterable[int], second: Iterable[int]) -> None:
        """One by one."""
        for one, other in zip(first, second, strict=True):
            a, b = self.find(one), self.find(other)
            self.parent[max(a, b)] = min(a, b)


def pin_misfits(graph: Graph) -> None:
    """Pins spaces that are pinned in part, and producers that share some of their units but not all in one
    order. A depthwise convolution that reads several spaces is cut with them, and no producer of either."""
    dense = [step for step in graph.producers() if step.operation.kind == "dense"]
    changed = True
    while changed:
        before = int(graph.pinned.sum())
        owner: dict[int, Step] = {}
        for step in dense:
            units = step.units.tolist()
            others = {owner[unit] for unit in units if unit in owner}
            misfit = len(set(units)) < len(units) or any(other.units.tolist() != units for other in others)
            if misfit or bool(graph.pinned[step.units].any()):
                for each in (step, *others):
                    graph.pinned[each.units] = True
            for unit in units:
                owner.setdefault(unit, step)
        changed = int(graph.pinned.sum()) != before


def settled(lists: Iterable[list[int]], roots: Tensor) -> Tensor:
    """(units,) bool: the units that stand for those in `lists`."""
    mask = torch.zeros(len(roots), dtype=torch.bool)
    for units in lists:
        mask[roots[torch.tensor(units, dtype=torch.int64)]] = True
    return mask
