"""The leaderboard in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.report.columns import Column, shown_columns
from bench.report.leaderboard import latency_note

if TYPE_CHECKING:
    import pandas
    from rich.console import Console

_DROP_FIRST = (
    "budget",
    "granularity",
    "units",
    "seeds",
    "parameters",
    "macs",
    "activity",
    "nonzero_ratio",
    "active_layers",
    "parameters_ratio",
    "layers",
    "delta",
)
"""What a narrow terminal leaves out, in this order, until the rest fits: the files hold everything."""
_FAILURES_WIDTH = 12


def print_leaderboard(board: pandas.DataFrame, console: Console | None = None) -> None:
    """Print one table per data set and network. A narrow terminal gets fewer columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    for (dataset, network), group in board.groupby(["dataset", "network"], sort=True):
        rows = group.to_dict("records")
        columns = [column for column in shown_columns(group) if _says_something(column, rows)]
        for key in _DROP_FIRST:
            if sum(_width(column, rows) + 2 for column in columns) <= console.width:
                break
            columns = [column for column in columns if column.key != key]
        caption = latency_note(sorted(group["latency_device"].dropna().unique()))
        table = Table(
            title=f"{dataset} · {network}",
            caption=caption,
            box=box.SIMPLE_HEAD,
            show_edge=False,
            padding=(0, 1, 0, 0),
        )
        for column in columns:
            left = column.key in ("label", "granularity", "units", "activity", "failures")
            table.add_column(
                _header(column), justify="left" if left else "right", no_wrap=column.key != "failures"
            )
        label = None
        for row in rows:
            cells = [Text(column.show(row)) for column in columns]
            if row["label"] == label:
                cells[0] = Text("")
            label = row["label"]
            table.add_row(*cells, style="red" if row["failed"] else None)
        console.print(table, "")


def _says_something(column: Column, rows: list[dict[Any, Any]]) -> bool:
    return column.key != "failures" or any(row["failed"] for row in rows)


def _header(column: Column) -> str:
    """On two lines, broken where that saves most room."""
    words = column.header.replace(", batch ", " b").split()
    breaks = [(" ".join(words[:i]), " ".join(words[i:])) for i in range(1, len(words))]
    return "\n".join(min(breaks, key=lambda lines: max(map(len, lines)), default=words))


def _width(column: Column, rows: list[dict[Any, Any]]) -> int:
    if column.key == "failures":
        return _FAILURES_WIDTH
    return max(len(text) for text in (*_header(column).split("\n"), *(column.show(row) for row in rows)))
