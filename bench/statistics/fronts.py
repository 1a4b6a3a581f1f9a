"""Pareto fronts: the operating points that nothing else beats in accuracy and in cost at once."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto_front(costs: Sequence[float], accuracies: Sequence[float]) -> list[int]:
    """Indices of the points that no other dominates, by rising cost.

    A point dominates another when it costs no more and is at least as accurate, and better in one of the two;
    equal points do not dominate each other. Points with a NaN are left out.
    """
    if len(costs) != len(accuracies):
        raise ValueError(f"{len(costs)} costs but {len(accuracies)} accuracies")
    known = [i for i in range(len(costs)) if not (math.isnan(costs[i]) or math.isnan(accuracies[i]))]
    front: list[int] = []
    for index in sorted(known, key=lambda i: (costs[i], -accuracies[i], i)):
        if front:
            last = front[-1]
            equal = costs[index] == costs[last] and accuracies[index] == accuracies[last]
            if accuracies[index] <= accuracies[last] and not equal:
                continue
        front.append(index)
    return front
