"""Two runs in one results folder."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from bench import run as runs
from bench.cli import main
from bench.errors import BadInput
from bench.execute.lock import alone_in
from tests.cli.folders import SUITE, write


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    results = tmp_path / "deep" / "r"
    with alone_in(results):
        with pytest.raises(BadInput, match="another run is at work"), alone_in(results):
            pytest.fail("two at once")
        with alone_in(tmp_path / "other"):
            pass
    with alone_in(results):
        pass
    assert not list(results.iterdir())


def test_the_command_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "plan_elsewhere", runs._make_plan)
    suite = write(tmp_path / "suite.toml", SUITE)
    with alone_in(tmp_path / "r"):
        assert main(["run", str(suite), "--results", str(tmp_path / "r")]) == 2
    said = f"bench: results folder {tmp_path / 'r'}: another run is at work in it\n"
    assert capsys.readouterr().err == said
    assert not list((tmp_path / "r").iterdir())


def test_where_the_file_system_knows_no_locks_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(file: int, operation: int) -> None:
        raise OSError("Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with alone_in(tmp_path), alone_in(tmp_path):
        pass
