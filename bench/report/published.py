"""What a suite's papers report, beside what its records say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas

from bench.records.files import write_atomically
from bench.records.frame import RATIOS
from bench.report.columns import NONE, number
from bench.report.groups import QUESTION, distinct_labels
from bench.report.leaderboard import failures, means_by_site
from bench.report.sidecar import write_sidecar
from bench.statistics.intervals import Interval, ratio_of_means, t_interval
from bench.suite import Published, Suite, load, matching_workloads, shipped

if TYPE_CHECKING:
    from rich.console import Console

_NUMBERS = {
    "test_error": ("test error, %", 100, ""),
    "weights_pruned": ("weights pruned, %", 100, ""),
    "macs_ratio": ("fewer MACs", 1, "×"),
}
"""Column → header, what it is multiplied by for people, unit."""
_SITES = {"units": "units", "activity": "active units"}

_NAMES = [
    *("suite", "dataset", "network", "label", "strength", "seeds"),
    *(f"{key}{part}" for key in _NUMBERS for part in ("_published", "", "_half_width", "_difference")),
    *(f"{key}{part}" for key in _SITES for part in ("_published", "", "_difference")),
    *("provenance", "source", "note"),
]


def suites_of(frame: pandas.DataFrame) -> list[Suite]:
    """The shipped suites that the rows of a point frame name."""
    return [load(name) for name in sorted(set(frame["suite"].dropna()) & set(shipped()))]


def published_table(frame: pandas.DataFrame, suite: Suite) -> pandas.DataFrame:
    """One row per published entry of `suite` and operating point that it is about, of a point frame.

    `<name>_published`, `<name>`, `<name>_half_width` (half the 95 % t-interval over the seeds of the row) and
    `<name>_difference`, ours less theirs, in the units of the suite file; a ratio is that of means, as in the
    leaderboard. Where seeds failed, which ours leave out, a last column `failures` says so. A figure whose points have
    not been run has a row without ours. Only rows of the suite's own name count: other suites have other budgets.
    """
    frame = frame[frame["suite"] == suite.name]
    frame = distinct_labels(frame.assign(entry=frame["label"].astype("object")))
    rows = [row for published in suite.published for row in _rows(frame, suite, published)]
    some_failed = any(row["failures"] for row in rows)
    table = pandas.DataFrame(rows, columns=[*_NAMES, *(["failures"] if some_failed else [])])
    return table.astype({"seeds": "Int64"})


def _rows(frame: pandas.DataFrame, suite: Suite, published: Published) -> Iterator[dict[str, Any]]:
    about = frame
    for column, wanted in (
        ("network", published.network),
        ("dataset", published.dataset),
        ("entry", published.label),
        ("strength", published.strength),
    ):
        if wanted not in ("", None):
            about = about[about[column] == wanted]
    keys = [*QUESTION, "strength"]
    if about.empty and published.has_figures:
        (workload,) = matching_workloads(suite, published)
        at = dict(zip(keys, (workload.dataset, workload.network, published.label), strict=False))
        yield _row(at | {"strength": published.strength}, about, suite, published)
    for key, group in about.groupby(keys, sort=False, dropna=False):
        yield _row(dict(zip(keys, key, strict=True)), group, suite, published)


def _row(at: dict[str, Any], group: pandas.DataFrame, suite: Suite, published: Published) -> dict[str, Any]:
    done = group[group["status"] == "done"].assign(test_error=lambda rows: 1 - rows["test_accuracy"])
    row = {"suite": suite.name, **at, "seeds": len(done), "failures": failures(group)}
    for key in _NUMBERS:
        interval, theirs = _interval(done, key), getattr(published, key)
        row |= {f"{key}_published": theirs, key: interval.mean, f"{key}_half_width": interval.half_width}
        row[f"{key}_difference"] = None if theirs is None else interval.mean - theirs
    for key in _SITES:
        row |= _by_site(key, means_by_site(done[key]), getattr(published, key))
    return row | {"provenance": published.provenance, "source": published.source, "note": published.note}


def _interval(done: pandas.DataFrame, key: str) -> Interval:
    name = key.removesuffix("_ratio")
    if name in RATIOS:
        return ratio_of_means(done[RATIOS[name]].astype("float64"), done[name].astype("float64"))
    return t_interval(done[key].astype("float64"))


def _by_site(key: str, ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, str | None]:
    """Of the sites that are published, all of ours where none is, in the order of the network."""
    sites = [site for site in ours if site in theirs or not theirs]
    differences = [f"{round(ours[site] - theirs[site]):+d}".replace("-", "−") for site in sites if theirs]
    in_order = [theirs[site] for site in sites] if sites and theirs else list(theirs.values())
    return {
        f"{key}_published": "-".join(f"{count:.0f}" for count in in_order) or None,
        key: "-".join(f"{ours[site]:.0f}" for site in sites) or None,
        f"{key}_difference": ", ".join(differences) or None,
    }


# For people: three lines for each row ------------------------------------------------------------------------------


def _headers(table: pandas.DataFrame) -> list[str]:
    """Of the columns that have something to show."""
    return ["method", "strength", "", *(header for _, header in _shown(table))]


def _shown(table: pandas.DataFrame) -> list[tuple[str, str]]:
    headers = {key: header for key, (header, _, _) in _NUMBERS.items()} | _SITES
    return [(k, h) for k, h in headers.items() if table[[k, f"{k}_published"]].notna().any(axis=None)]


def _lines(row: Mapping[Any, Any], keys: Sequence[str]) -> list[list[str]]:
    """Published, ours and, where there is a figure, the difference."""
    from_where = f" ({row['provenance']})" if isinstance(row["provenance"], str) else ""
    seeds = f"{row['seeds']} seed{'s' * (row['seeds'] != 1)}"
    if row.get("failures"):
        seeds += f", {row['failures']}"
    lines = [
        [str(row["label"]), number(row["strength"], "g"), f"published{from_where}"],
        ["", "", f"ours, {seeds}"],
    ]
    if from_where:
        lines.append(["", "", "difference"])
    for key in keys:
        lines[0].append(_show(key, row[f"{key}_published"]))
        lines[1].append(_show(key, row[key], row.get(f"{key}_half_width")))
        if from_where:
            lines[2].append(_show(key, row[f"{key}_difference"], sign="+"))
    return lines


def _show(key: str, value: Any, half_width: Any = None, sign: str = "") -> str:
    if key in _SITES:
        return value if isinstance(value, str) else NONE
    _, factor, unit = _NUMBERS[key]
    if value is None or value != value:
        return NONE
    spread = "" if half_width is None else f" ± {number(factor * half_width, '.2f')}"
    return f"{number(factor * value, sign + '.2f')}{unit if not sign else ''}{spread}"


def _notes(table: pandas.DataFrame, suite: Suite) -> list[str]:
    """Where the figures come from, each once, and how the budgets differ."""
    notes = dict.fromkeys(
        f"{row['label']}: {said}" if row["provenance"] else said
        for row in table.astype("object").where(table.notna(), None).to_dict("records")
        for said in ["; ".join(filter(None, (row["source"], row["note"])))]
    )
    return [*notes, *([f"Budget: {suite.budget_note}"] if suite.budget_note else [])]


def _by_workload(table: pandas.DataFrame) -> Iterator[tuple[str, pandas.DataFrame]]:
    for (dataset, network), rows in table.groupby(["dataset", "network"], sort=False):
        yield f"{dataset} · {network}: published and ours", rows


def to_markdown(table: pandas.DataFrame, suite: Suite) -> str:
    """One table per data set and network; below each, its sources and the suite's note on budgets."""
    parts = []
    for title, rows in _by_workload(table):
        headers, keys = _headers(rows), [key for key, _ in _shown(rows)]
        lines = [f"### {title}", "", _markdown(headers), _markdown(["---"] * 3 + ["---:"] * len(keys))]
        for row in rows.to_dict("records"):
            lines += [_markdown(cells) for cells in _lines(row, keys)]
        parts.append("\n".join([*lines, "", *(f"- {note}" for note in _notes(rows, suite))]) + "\n")
    return "\n".join(parts)


def _markdown(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def print_published(table: pandas.DataFrame, suite: Suite, console: Console) -> None:
    """The same in a terminal."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    for title, rows in _by_workload(table):
        keys = [key for key, _ in _shown(rows)]
        shown = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
        for at, header in enumerate(_headers(rows)):
            shown.add_column(header, justify="left" if at in (0, 2) else "right")
        for row in rows.to_dict("records"):
            for cells in _lines(row, keys):
                shown.add_row(*map(Text, cells), end_section=False)
        console.print(shown)
        for note in _notes(rows, suite):
            console.print(note, highlight=False, markup=False, soft_wrap=True)
        console.print()


def write_published(
    frame: pandas.DataFrame, suites: Sequence[Suite], directory: Path, console: Console
) -> dict[str, Path]:
    """Print the table of each suite that names published figures; write them as `published.md`, `.csv` and the sidecar
    `.json`. Nothing is written where there are none."""
    tables = [(suite, published_table(frame, suite)) for suite in suites if suite.published]
    tables = [(suite, table) for suite, table in tables if len(table)]
    if not tables:
        return {}
    paths = {suffix: directory / f"published.{suffix}" for suffix in ("md", "csv", "json")}
    for suite, table in tables:
        print_published(table, suite, console)
    text = "\n".join(f"## {suite.title}\n\n{to_markdown(table, suite)}" for suite, table in tables)
    write_atomically(paths["md"], text.encode())
    whole = pandas.concat([table for _, table in tables], ignore_index=True)
    write_atomically(paths["csv"], whole.to_csv(index=False, lineterminator="\n").encode())
    used = frame[frame["suite"].isin([suite.name for suite, _ in tables])]
    published = {
        suite.name: [entry.model_dump(mode="json") for entry in suite.published] for suite, _ in tables
    }
    write_sidecar(paths["json"], used, view="published", published=published)
    return paths
