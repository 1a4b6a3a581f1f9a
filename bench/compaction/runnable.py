"""What has to stay so that the network runs: groups of one size, and something of every space; and rounding up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from bench.compaction.calls import counts
from bench.compaction.liveness import Values
from bench.compaction.sites import Space
from bench.compaction.steps import Graph, Step, heads


def groups(step: Step) -> int:
    """How many parts of its channels a step works on apart, all of one size: 1 for most. Both its first input and its
    result are so divided."""
    if step.operation.kind == "attention":
        return heads(step)
    return step.module.groups if step.operation.kind == "dense" and isinstance(step.module, nn.Conv2d) else 1


def balance(graph: Graph, keep: Tensor) -> bool:
    """Keeps further units where a grouped convolution would be left with groups of different size, or attention with
    heads; a group without any unit goes, and where there is no group that makes anything, nothing is owed to what it
    would read. Whether something changed."""
    before = int(keep.sum())
    grouped = [(step, groups(step)) for step in graph.steps if groups(step) > 1]
    settled = False
    while not settled:
        count = int(keep.sum())
        for step, number in grouped:
            if not bool(keep[step.units].any()):
                continue
            sides = [units.view(number, -1) for units in (step.inputs[0].units, step.units)]
            alive = keep[sides[0]].any(1) | keep[sides[1]].any(1)
            for side in sides:
                size = max(1, int(keep[side].sum(1).max()))
                for group in side[alive]:
                    missing = size - int(keep[group].sum())
                    keep[group[~keep[group]][: max(0, missing)]] = True
        settled = int(keep.sum()) == count
    return int(keep.sum()) != before


def _of_gone_groups(graph: Graph, keep: Tensor) -> Tensor:
    """(units,) bool: the units of groups that have none left."""
    gone = torch.zeros_like(keep)
    for step in graph.steps:
        if (number := groups(step)) > 1:
            for units in (step.inputs[0].units.view(number, -1), step.units.view(number, -1)):
                gone[units[~keep[units].any(1)]] = True
    return gone


def dispensable(graph: Graph, keep: Tensor) -> set[Step]:
    """The steps without any unit left that can go themselves: whoever reads them goes as well, or strings them together
    with others that stay; and whoever reads their sizes goes too."""
    gone = {step for step in graph.steps if len(step.units) > 0 and not bool(keep[step.units].any())}
    steps = {step.node: step for step in graph.steps if step.node is not None}
    sized = {step: _read_sizes(step.node, steps) for step in gone if step.node is not None}
    settled = False
    while not settled:
        missed = {
            step
            for step in gone
            for reader in graph.readers.get(step, [])
            if reader not in gone
            and not (reader.operation.kind == "cat" and any(source not in gone for source in reader.inputs))
        }
        missed |= {step for step in gone if not sized.get(step, set()) <= gone}
        gone -= missed
        settled = not missed
    return gone


def _read_sizes(node: fx.Node, steps: Mapping[fx.Node, Step]) -> set[Step | None]:
    """The steps that take what is no tensor of a network, and comes of `node`: its sizes, mostly. None for what is no
    step but does something, as an assertion does."""
    found: set[Step | None] = set()
    for user in node.users:
        if user not in steps:
            found |= {steps[reader] for reader in user.users if reader in steps} | _read_sizes(user, steps)
            if not user.users and not counts(user):
                found.add(None)
    return found


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
    """Keeps what the network needs to run though nobody reads it: groups of one size, and one unit of every tensor (a
    half of a space, say) that would be empty and is not dispensable. The names of the sites of which no unit was needed
    and one has to stay all the same."""
    empty = [space for space in spaces if not bool(keep[space.units].any())]
    settled = False
    while not settled:
        count = int(keep.sum())
        balance(graph, keep)  # first, as it may leave a unit where none was needed
        _supply(graph, known, keep)
        gone = dispensable(graph, keep)
        for step in graph.steps:
            if step not in gone and len(step.units) > 0 and not bool(keep[step.units].any()):
                keep[step.units[0]] = True
        settled = int(keep.sum()) == count
    return tuple(space.site.name for space in empty if bool(keep[space.units].any()))


def round_up(graph: Graph, spaces: list[Space], known: Values, keep: Tensor, multiple: int) -> None:
    """Keeps further units, the first that could go, until every space has a multiple of `multiple`, or all. Those of
    groups that are gone come last: with one of them, the whole group would be back."""
    count = -1
    while multiple > 1 and count != int(keep.sum()):
        count, last = int(keep.sum()), _of_gone_groups(graph, keep)
        for space in spaces:
            gone = space.units[~keep[space.units]]
            gone = gone[last[gone].byte().argsort(stable=True)]
            missing = -(len(space.units) - len(gone)) % multiple
            keep[gone[:missing]] = True
        balance(graph, keep)
        _supply(graph, known, keep)
