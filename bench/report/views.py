"""All local views of a results folder at once: what `bench run` and `bench report` end with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BadInput
from bench.execute import layout
from bench.records.read import read_results
from bench.records.store import check_writable
from bench.report.figures import write_figures
from bench.report.leaderboard import leaderboard, write_leaderboard
from bench.report.readme import update_readme
from bench.report.terminal import print_leaderboard

if TYPE_CHECKING:
    from rich.console import Console


def write_views(
    results: Path,
    console: Console,
    labels: Mapping[str, str] | None = None,
    out: Path | None = None,
    readme: Path | None = None,
) -> None:
    """Print the leaderboard; write it, with the figures, to `out` (the report folder of the results).

    labels: point id → label; only these points are shown, under these labels. All of the folder where left out.
    readme: a file whose marked parts are made anew.
    """
    frame = read_results(results)
    if labels is not None:
        frame = frame[frame["id"].isin(list(labels))].copy()
        frame["label"] = frame["id"].map(dict(labels)).astype("category")
        frame = frame.reset_index(drop=True)
    if frame.empty:
        raise BadInput(f"results folder {results}: there are no operating points in it")
    folder = out or layout.report(results)
    check_writable(folder, f"folder {folder}")
    print_leaderboard(leaderboard(frame), console)
    tables = write_leaderboard(frame, folder)
    figures = write_figures(frame, folder)
    if readme is not None:
        update_readme(readme, frame, folder)
    console.print("written:", highlight=False)
    for path in [*tables.values(), *figures, *([readme] if readme else [])]:
        console.print(f"  {path}", highlight=False, markup=False, soft_wrap=True)


def write_only_figures(results: Path, console: Console, out: Path | None = None) -> None:
    """The figures of all records of the folder, without the leaderboard."""
    frame = read_results(results)
    if frame.empty:
        raise BadInput(f"results folder {results}: there are no operating points in it")
    folder = out or layout.report(results)
    check_writable(folder, f"folder {folder}")
    for path in write_figures(frame, folder):
        console.print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)
