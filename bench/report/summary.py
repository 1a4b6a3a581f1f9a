"""One operating point for each method: the cheapest that is about as good as the dense network on validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.report.groups import QUESTION, WORKLOAD, distinct_labels

if TYPE_CHECKING:
    import pandas

ALLOWANCE = 0.01
"""How much validation accuracy below the dense network is still as good."""


def cheapest_points(frame: pandas.DataFrame, allowance: float = ALLOWANCE) -> pandas.DataFrame:
    """The rows of a point frame that a summary shows: of each method (label) on each workload those of one strength.

    It is chosen on the validation split alone: among the strengths at which every seed gave a result, of mean
    validation accuracy at least the dense network's less `allowance`, the one with the fewest MACs (of weight pruning:
    the fewest non-zeros). Where there is none: the one of the best validation accuracy. A method without any result
    keeps all its rows, so that its failures are seen.
    """
    import pandas

    frame = distinct_labels(frame)
    chosen = []
    for _, workload in frame.groupby(WORKLOAD, sort=False, dropna=False):
        dense = workload[(workload["method"] == "dense") & (workload["status"] == "done")]
        reference = float(dense["validation_accuracy"].mean()) if len(dense) else float("nan")
        chosen += [
            _cheapest(rows, reference - allowance)
            for _, rows in workload.groupby(QUESTION, sort=False, dropna=False)
        ]
    return pandas.concat(chosen) if chosen else frame


def _cheapest(rows: pandas.DataFrame, bound: float) -> pandas.DataFrame:
    """The rows of one strength of one method."""
    cost = "nonzero" if rows["granularity"].iloc[0] == "weight" else "macs"
    whole = rows.groupby("strength").filter(lambda group: bool((group["status"] == "done").all()))
    # A run that was cut short leaves strengths that some seeds have not reached.
    counts = whole.groupby("strength")["seed"].transform("size")
    whole = whole[counts == counts.max()]
    means = whole.groupby("strength")[["validation_accuracy", cost]].mean()
    if means.empty:
        return rows
    good = means[means["validation_accuracy"] >= bound]
    strength = means["validation_accuracy"].idxmax() if good.empty else good[cost].idxmin()
    return rows[rows["strength"] == strength]
