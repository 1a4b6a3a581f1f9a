"""A record that is cut short and a file that is none: named, kept, and no reason to stop."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bench.cli import main
from bench.records.files import load
from tests.cli.folders import SUITE, write


def test_the_run_goes_on(
    tmp_path: Path, plan_here: None, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the records of a finished run one is cut short; beside another lies a foreign file."""
    suite = write(tmp_path / "few.toml", SUITE.partition('[[methods]]\nname = "magnitude"')[0])
    results = tmp_path / "r"
    source = next(path for path in (finished / "point").glob("*.json") if load(path).method.name == "dense")
    whole = source.read_bytes()
    cut = results / "point" / source.name
    cut.parent.mkdir(parents=True)
    cut.write_bytes(whole[: len(whole) // 2])
    foreign = results / "point" / "shopping.json"
    foreign.write_text('{"milk": 2}')
    with caplog.at_level(logging.WARNING):
        code = main(["run", str(suite), "--results", str(results), "--jobs", "1"])
    assert code == 0
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [line for line in warnings if str(cut) in line] == [f"{cut}: skipped: cut short or no JSON"]
    assert [line for line in warnings if str(foreign) in line] == [
        f"{foreign}: skipped: no record of this suite"
    ]
    assert cut.with_name(cut.name + ".foreign").read_bytes() == whole[: len(whole) // 2]
    assert foreign.read_text() == '{"milk": 2}'
    record = load(cut)
    assert record.status == "done"
    assert record.id == load(source).id
    assert main(["status", "--results", str(results)]) == 0
