"""A budget of epochs, divided among the phases of a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from methods.base import Phase


@dataclass(frozen=True)
class PlannedPhase:
    """first_epoch: counted over the whole budget, from 0."""

    phase: Phase
    first_epoch: int
    epochs: int


def plan_phases(phases: Sequence[Phase], epochs: int) -> list[PlannedPhase]:
    """Whole epochs for each phase; they sum to `epochs`, and each gets one where there are enough.

    Raises ValueError where the fractions do not sum to 1 or the budget has fewer epochs than phases.
    """
    if abs(sum(phase.fraction for phase in phases) - 1.0) > 1e-6:
        raise ValueError(f"the phases take {sum(p.fraction for p in phases):g} of the budget, not all of it")
    if epochs < len(phases):
        raise ValueError(f"{epochs} epochs are too few for {len(phases)} phases")
    planned: list[PlannedPhase] = []
    start, reached = 0, 0.0
    for at, phase in enumerate(phases):
        reached += phase.fraction
        still_to_come = len(phases) - at - 1
        end = min(max(round(reached * epochs), start + 1), epochs - still_to_come)
        planned.append(PlannedPhase(phase, start, end - start))
        start = end
    return planned
