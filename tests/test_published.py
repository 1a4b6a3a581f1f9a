"""The committed reports are what the committed records say."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import bench
from bench.report.leaderboard import write_leaderboard
from bench.report.published import suites_of, write_published

PUBLISHED = Path(bench.__file__).parents[1] / "results" / "published"
FOLDERS = sorted(path.name for path in PUBLISHED.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", FOLDERS)
def test_the_tables_are_those_of_the_records(name: str, tmp_path: Path) -> None:
    frame = bench.read_results(PUBLISHED / name)
    write_leaderboard(frame, tmp_path)
    write_published(frame, suites_of(frame), tmp_path, Console(file=io.StringIO()))
    committed = PUBLISHED / name / "report"
    made = sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".md", ".csv"))
    assert "leaderboard.md" in made
    for file in made:
        assert (committed / file).read_bytes() == (tmp_path / file).read_bytes(), file
