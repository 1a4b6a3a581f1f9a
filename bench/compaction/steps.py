"""The channel spaces of a network, as data: what `graph.build_graph` finds and everybody else reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, fx, nn

from bench.compaction.operations import Operation
from bench.networks import HeadProducts


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
    or a concatenation. opaque: what pins units, as `where: what`. network, traced: what the steps are of. reads: what
    `weights.reads` has found."""

    network: nn.Module
    traced: fx.Graph
    steps: list[Step]
    pinned: Tensor
    coupled: Tensor
    opaque: tuple[str, ...]
    readers: dict[Step, list[Step]] = field(default_factory=dict)
    reads: dict[Step, Tensor] = field(default_factory=dict)

    def producers(self) -> list[Step]:
        """Linear layers and convolutions, in the order of execution."""
        return [step for step in self.steps if step.operation.kind in ("dense", "depthwise")]

    def step_of(self, layer: str) -> Step | None:
        """The only step that calls the module at this path, if there is one."""
        found = [step for step in self.steps if step.layer == layer]
        return found[0] if len(found) == 1 else None


def heads(step: Step) -> int:
    """Of a product of attention."""
    assert isinstance(step.module, HeadProducts)
    return step.module.heads


class Units:
    """Unit numbers, and which of them turn out to be one unit."""

    def __init__(self) -> None:
        self._count = 0
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def new(self, count: int) -> Tensor:
        """So many units that are nobody's, (count,) int64."""
        self._count += count
        return torch.arange(self._count - count, self._count)

    def unite(self, first: Tensor, second: Tensor) -> None:
        """One by one; both (n,)."""
        if len(first) != len(second):
            raise ValueError(f"{len(first)} units cannot be united with {len(second)}")
        self._pairs.append((first, second))

    def roots(self) -> Tensor:
        """(units,) int64: the unit, the smallest number, that stands for all united with each."""
        root = torch.arange(self._count)
        if not self._pairs:
            return root
        ends = torch.cat([torch.stack(pair) for pair in self._pairs], 1)
        while bool((root[ends[0]] != root[ends[1]]).any()):
            smaller = root[ends].amin(0).expand(2, -1)
            # Both ends' present roots go to the smaller one; then every unit to the root of its root.
            root = root.scatter_reduce(0, root[ends].flatten(), smaller.flatten(), "amin")
            while not torch.equal(root, root[root]):
                root = root[root]
        return root


def pin_misfits(graph: Graph) -> None:
    """Pins spaces that are pinned in part, and, by name, producers that share some of their units but not all in one
    order. A depthwise convolution that reads several spaces is cut with them, and no producer of either."""
    dense = [step for step in graph.producers() if step.operation.kind == "dense"]
    changed = True
    while changed:
        before = int(graph.pinned.sum())
        owner = torch.full((len(graph.pinned),), -1)  # of each unit: the first step that makes it
        for number, step in enumerate(dense):
            owners, units = owner[step.units], step.units
            others = [dense[other] for other in owners.unique().tolist() if other >= 0]
            misfit = len(units.unique()) < len(units) or any(not units.equal(other.units) for other in others)
            made = torch.cat([units, *(other.units for other in others)])
            if misfit and not bool(graph.pinned[made].any()):
                graph.opaque += (
                    f"{step.layer}: channels that meet others of its own, or of other layers in part",
                )
            if misfit or bool(graph.pinned[units].any()):
                for each in (step, *others):
                    graph.pinned[each.units] = True
            owner[units[owners < 0]] = number
        changed = int(graph.pinned.sum()) != before


def settled(lists: Iterable[Tensor], roots: Tensor) -> Tensor:
    """(units,) bool: the units that stand for those in `lists`."""
    mask = torch.zeros(len(roots), dtype=torch.bool)
    for units in lists:
        mask[roots[units]] = True
    return mask
