"""All local views of a results folder at once: what `bench run` and `bench report` end with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BadInput, nearest
from bench.execute import layout
from bench.execute.progress import spent_in_words
from bench.records.frame import point_frame
from bench.records.read import Records, read_records, read_results
from bench.records.store import check_writable
from bench.records.times import spent
from bench.report.figures import write_figures
from bench.report.leaderboard import leaderboard, write_leaderboard
from bench.report.published import suites_of, write_published
from bench.report.readme import update_readme
from bench.report.terminal import print_leaderboard
from bench.suite import Suite, load

if TYPE_CHECKING:
    from rich.console import Console


def write_views(
    results: Path,
    console: Console,
    labels: Mapping[str, str] | None = None,
    suite: Suite | None = None,
    out: Path | None = None,
    readme: Path | None = None,
) -> Records:
    """Print the leaderboard; write it, with the figures, to `out` (the report folder of the results).

    labels: point id → label; only these points are shown, as points of `suite` and under these labels. All of the
    folder where left out. suite: whose published figures are shown; where left out, the shipped suites that the records
    name. readme: a file whose marked parts are made anew. The records that the views were made from.
    """
    records = read_records(results)
    frame = point_frame(records)
    if labels is not None:
        frame = frame[frame["id"].isin(list(labels))].copy()
        frame["label"] = frame["id"].map(dict(labels)).astype("category")
        if suite is not None:
            frame["suite"] = suite.name
        frame = frame.reset_index(drop=True)
    if frame.empty:
        raise BadInput(f"results folder {results}: there are no operating points in it")
    if suite is not None and suite.name not in set(frame["suite"]):
        hint = nearest(suite.name, set(frame["suite"]))
        raise BadInput(f"--suite {suite.name}: results folder {results} has no records of it{hint}")
    folder = out or layout.report(results)
    check_writable(folder, f"folder {folder}")
    print_leaderboard(leaderboard(frame), console)
    tables = write_leaderboard(frame, folder)
    published = write_published(frame, [suite] if suite else suites_of(frame), folder, console)
    figures = write_figures(frame, folder)
    if readme is not None:
        update_readme(readme, frame, folder)
    console.print("written:", highlight=False)
    for path in [*tables.values(), *published.values(), *figures, *([readme] if readme else [])]:
        console.print(f"  {path}", highlight=False, markup=False, soft_wrap=True)
    return records


def report_results(
    results: Path, console: Console, suite: str | None, out: Path | None, readme: Path | None
) -> None:
    """`bench report`: the views of all records of a folder, and what these took. suite: name or path."""
    chosen = None if suite is None else load(suite)
    records = write_views(results, console, suite=chosen, out=out, readme=readme)
    console.print(
        f"core time: {spent_in_words(spent(records))}", highlight=False, markup=False, soft_wrap=True
    )


def write_only_figures(results: Path, console: Console, out: Path | None = None) -> None:
    """The figures of all records of the folder, without the leaderboard."""
    frame = read_results(results)
    if frame.empty:
        raise BadInput(f"results folder {results}: there are no operating points in it")
    folder = out or layout.report(results)
    check_writable(folder, f"folder {folder}")
    for path in write_figures(frame, folder):
        console.print(f"written: {path}", highlight=False, markup=False, soft_wrap=True)
