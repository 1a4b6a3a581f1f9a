"""How long a plan takes, guessed before anything has run, in seconds of one core.

How fast a network trains is measured where the plan is made (`Cell.training_rate`), since server CPUs alone differ by a
factor of two. What a method adds to a step beyond further passes is left out, as are the validations that some ask for:
the display of a running suite corrects the estimate by the pace it sees. No torch here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from bench.cells import Cell

STEP_SECONDS = 0.0006
"""Of a training step, beside the two directions of the network: the batch, the optimiser, the loop."""
TRAINING_RATE = 50e9
"""Multiply-accumulates a second in a training step, whose two directions count as three forward passes, where it is not
measured: on a GPU."""
POINT_SECONDS = 0.1
EVALUATION_RATE = 25e9
"""The same of a network that is only evaluated, on large batches."""
EVALUATION_SHARE = EVALUATION_RATE / TRAINING_RATE


def training_seconds(cell: Cell) -> float:
    """Of the whole training of a cell, a shared pretraining included."""
    return cell.steps * (STEP_SECONDS + 3 * cell.step_macs / cell.training_rate)


def shared_share(cell: Cell) -> float:
    """The part of a cell's training that is shared pretraining."""
    if cell.pretraining is None:
        return 0.0
    return min(0.95, cell.pretraining.epochs / cell.workload.recipe["epochs"])


def own_seconds(cell: Cell) -> float:
    """Of a cell without what it shares: its own training, then the removal, proof and scores of its points."""
    scoring = cell.point_macs / (cell.training_rate * EVALUATION_SHARE)
    points = len(cell.points) * (POINT_SECONDS + scoring)
    return training_seconds(cell) * (1 - shared_share(cell)) + points


def shared_seconds(cells: Iterable[Cell]) -> float:
    """Of all shared pretraining of the cells, each counted once."""
    shared = {
        cell.pretraining.id: training_seconds(cell) * shared_share(cell) for cell in cells if cell.pretraining
    }
    return sum(shared.values())


def measuring_seconds(cells: Iterable[Cell], measured: Collection[str]) -> float:
    """Of the latency of those points of the cells that are to be measured."""
    return sum(cell.measure_seconds for cell in cells for _, point in cell.points if point in measured)
