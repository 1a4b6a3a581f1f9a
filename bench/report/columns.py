"""The columns of the leaderboard: what they are called, how they read and what they mean."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas

NONE = "—"
"""What a cell shows that has no number."""


class Column(NamedTuple):
    """key: in the DataFrame and the CSV; header: in tables for people; meaning: one sentence; show: a row →
    its text."""

    key: str
    header: str
    meaning: str
    show: Callable[[Mapping[Any, Any]], str]


def number(value: Any, form: str) -> str:
    """`value` in the format `form`, with a real minus sign; `—` where it is missing."""
    if value is None or value != value:
        return NONE
    return format(value, form).replace("-", "−")


def percent(mean: Any, half_width: Any, sign: str = "") -> str:
    """A fraction and its half-width as percent, `97.42 ± 0.31`; `± —` where one seed gives no interval."""
    if mean is None or mean != mean:
        return NONE
    return f"{number(100 * mean, sign + '.2f')} ± {number(100 * half_width, '.2f')}"


def ratio(value: Any) -> str:
    """With three digits, as far as a ratio of costs is worth reading."""
    if value is None or value != value:
        return NONE
    if math.isinf(value):
        return "∞"
    return f"{value:.2f}×" if value < 10 else f"{value:.1f}×" if value < 100 else f"{value:,.0f}×"


def count(value: Any) -> str:
    """A mean of counts: whole where all seeds agree, else with one digit."""
    return number(value, ".0f" if value == value and float(value).is_integer() else ".1f")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else NONE


def _layers(row: Mapping[Any, Any]) -> str:
    return (
        NONE if row["layers"] != row["layers"] else f"{count(row['layers'])} of {count(row['dense_layers'])}"
    )


def unstable(speedup: str) -> str:
    """The column that says whether some measurement behind this column of speedups is unstable."""
    return speedup.replace("speedup", "latency_unstable")


def _speedup(key: str) -> Callable[[Mapping[Any, Any]], str]:
    def show(row: Mapping[Any, Any]) -> str:
        text = ratio(row[key])
        return f"~{text}" if text != NONE and row[unstable(key)] else text

    return show


COLUMNS: tuple[Column, ...] = (
    Column("label", "method", "The method, as the suite calls this entry.", lambda row: str(row["label"])),
    Column(
        "strength",
        "strength",
        "How strongly it sparsifies; what the number means is the method's own (for most, the fraction "
        "removed).",
        lambda row: number(row["strength"], "g"),
    ),
    Column(
        "granularity",
        "removes",
        "What it takes away: single weights, units (neurons, channels), whole layers, or nothing.",
        lambda row: str(row["granularity"]),
    ),
    Column(
        "seeds",
        "seeds",
        "How many seeds gave a result; every seed has its own data order and initial weights, the same for "
        "all methods.",
        lambda row: number(row["seeds"], "d"),
    ),
    Column(
        "test_accuracy",
        "test accuracy, %",
        "Of the compact network on the test split, mean over seeds ± half the 95 % t-interval.",
        lambda row: percent(row["test_accuracy"], row["test_accuracy_half_width"]),
    ),
    Column(
        "delta",
        "Δ to dense, points",
        "Test accuracy less that of the dense network of the same seed, mean ± half the 95 % t-interval, in "
        "percentage points.",
        lambda row: percent(row["delta"], row["delta_half_width"], "+"),
    ),
    Column(
        "parameters",
        "parameters",
        "Of the network that is left once the removed units are physically gone, mean over seeds.",
        lambda row: number(row["parameters"], ",.0f"),
    ),
    Column(
        "parameters_ratio",
        "fewer parameters",
        "Parameters of the dense network over those of the compact one.",
        lambda row: ratio(row["parameters_ratio"]),
    ),
    Column(
        "nonzero_ratio",
        "fewer non-zeros",
        "Parameters of the dense network over the non-zero ones of the compact one; more than the parameters "
        "only where single weights were zeroed, which saves nothing without a sparse format.",
        lambda row: ratio(row["nonzero_ratio"]),
    ),
    Column(
        "macs",
        "MACs",
        "Multiply-accumulates of convolutions and linear layers for one image, normalisation folded (FLOPs "
        "= 2 × MACs), mean over seeds.",
        lambda row: number(row["macs"], ",.0f"),
    ),
    Column(
        "macs_ratio",
        "fewer MACs",
        "MACs of the dense network over those of the compact one; a count, not a time.",
        lambda row: ratio(row["macs_ratio"]),
    ),
    Column(
        "layers",
        "layers",
        "Weight layers (convolutions and linear layers) that are left, of those of the dense network, mean over seeds.",
        _layers,
    ),
    Column(
        "active_layers",
        "active layers",
        "Weight layers with an activation between them and the next one, or with none behind them, mean over seeds.",
        lambda row: count(row["active_layers"]),
    ),
    Column(
        "units",
        "units",
        "Left in each group of units that live or die together, in the order of the network, means over seeds.",
        lambda row: _text(row["units"]),
    ),
    Column(
        "activity",
        "active units",
        "Of dynamic gates: how many of these units an image activates, in the same order, means over images and seeds.",
        lambda row: _text(row["activity"]),
    ),
    Column(
        "dynamic_macs",
        "MACs, closed units skipped",
        "Of dynamic gates: for one image, with what the gates themselves compute, mean over images and seeds; a count, "
        "not a time.",
        lambda row: number(row["expected_macs"] + row["gate_operations"], ",.0f"),
    ),
    Column(
        "speedup",
        "faster",
        "Measured: median latency of the dense network over that of the compact one, interleaved in one "
        "process on the named device, at batch size N; median over seeds. `~` marks it where the times of some seed "
        "spread too widely to be quoted.",
        _speedup("speedup"),
    ),
    Column(
        "speedup_gather_b1",
        "faster, batch 1, closed units skipped",
        "Of dynamic gates: measured as the others, of the network that gathers the units which its image opens and "
        "computes with these alone. The other times are those of the static network, without its gates.",
        _speedup("speedup_gather_b1"),
    ),
    Column(
        "budget",
        "epochs",
        "The whole training budget in passes over the train split (pretraining, sparsifying, fine-tuning), the same "
        "for all methods.",
        lambda row: number(row["budget"], "g"),
    ),
    Column(
        "failures",
        "failures",
        "How many seeds gave no result, and why; they are not part of the means.",
        lambda row: row["failures"] or "",
    ),
)
"""In the order they are shown; `speedup` stands for one column per shown batch size."""


def meanings(tables: Iterable[pandas.DataFrame]) -> str:
    """The columns that some of the tables show, with their meanings, as a Markdown list for the README."""
    shown = {column.meaning for table in tables for column in shown_columns(table)}
    return "".join(
        f"- **{column.header + (', batch N' if column.key == 'speedup' else '')}** — {column.meaning}\n"
        for column in COLUMNS
        if column.meaning in shown
    )


def batches(keys: Any) -> list[int]:
    """The batch sizes that a table has speedups for, ascending."""
    found = (re.fullmatch(r"speedup_b(\d+)", str(key)) for key in keys)
    return sorted(int(match[1]) for match in found if match)


_WHERE_ROWS_DIFFER = ("layers", "active_layers", "units")
_WHERE_THERE_IS_ONE = ("activity", "dynamic_macs", "speedup_gather_b1")


def shown_columns(table: pandas.DataFrame) -> list[Column]:
    """`COLUMNS` as far as they tell something of one table (the rows of a data set and network), with the speedup at
    the smallest and at the largest measured batch size in its place."""
    rows = table.to_dict("records")
    columns: list[Column] = []
    measured = batches(table.columns)
    for column in COLUMNS:
        if column.key == "speedup":
            for batch in sorted({*measured[:1], *measured[-1:]}):
                key = f"speedup_b{batch}"
                columns.append(Column(key, f"faster, batch {batch}", column.meaning, _speedup(key)))
            continue
        if column.key in (*_WHERE_ROWS_DIFFER, *_WHERE_THERE_IS_ONE):
            texts = {column.show(row) for row in rows} - {NONE}
            if len(texts) < (2 if column.key in _WHERE_ROWS_DIFFER else 1):
                continue
        columns.append(column)
    return columns
