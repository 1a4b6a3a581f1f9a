"""The parts of a README that are made from records, between markers that name them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import BadInput
from bench.records.files import write_atomically
from bench.report.columns import meanings
from bench.report.leaderboard import leaderboard, to_markdown
from bench.report.summary import cheapest_points

if TYPE_CHECKING:
    import pandas


def update_readme(readme: Path, frame: pandas.DataFrame, figures: Path) -> None:
    """Make the marked parts of `readme` anew from a point frame.

    `<!-- bench: NAME -->` … `<!-- bench: end -->`, where NAME is `leaderboard` (a table per data set and network),
    `summary` (the same with one point for each method, see `bench.report.summary`), `columns` (what they mean) or
    `figure STEM` (an image of the folder `figures`). Raises BadInput for an unknown NAME or a marker without an end.
    """
    text = readme.read_text(encoding="utf-8")
    if text.count("<!-- bench: ") != 2 * text.count("<!-- bench: end -->"):
        raise BadInput(f"{readme}: a marker `<!-- bench: … -->` without its `<!-- bench: end -->`")

    def made(match: re.Match[str]) -> str:
        return f"{match[1]}\n{_part(match[2], readme, frame, figures)}{match[3]}"

    pattern = r"(<!-- bench: ((?!end)[^>]*?) -->)\n.*?(<!-- bench: end -->)"
    write_atomically(readme, re.sub(pattern, made, text, flags=re.DOTALL).encode())


def _part(name: str, readme: Path, frame: pandas.DataFrame, figures: Path) -> str:
    if name == "leaderboard":
        return to_markdown(leaderboard(frame))
    if name == "summary":
        return to_markdown(leaderboard(cheapest_points(frame)))
    if name == "columns":
        return meanings(rows for _, rows in leaderboard(frame).groupby(["dataset", "network"]))
    if name.startswith("figure "):
        stem = name.removeprefix("figure ")
        path = Path(os.path.relpath(figures / f"{stem}.png", readme.parent)).as_posix()
        return f"![{stem.replace('-', ' ')}]({path})\n"
    raise BadInput(f"{readme}: no part {name!r} (valid: leaderboard, summary, columns, figure STEM)")
