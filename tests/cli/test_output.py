"""Where what is said cannot be written, or not in these letters, and where a name is too long for the system."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from bench.cli import main
from tests.cli.folders import SUITE, write

LONG = "x" * 5000


@pytest.mark.parametrize("words", [["list", "suites"], ["list", "suites", "--json"]])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_output_that_cannot_be_written(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:  # what is still in it fails again when it is closed
        monkeypatch.setattr(sys, "stdout", full)
        assert main(words) == 2
    assert capsys.readouterr().err == "bench: No space left on device\n"


def test_letters_that_the_terminal_lacks(monkeypatch: pytest.MonkeyPatch, finished: Path) -> None:
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    assert main(["report", "--results", str(finished)]) == 0
    assert b"digits ? mlp-300-100" in shown.getvalue()


@pytest.mark.parametrize("command", ["run", "plan", "status", "report", "measure"])
def test_a_results_folder_with_too_long_a_name(
    command: str,
    tmp_path: Path,
    plan_here: None,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    suite = [str(write(tmp_path / "few.toml"))] if command in ("run", "plan") else []
    code = main([command, *suite, "--results", str(tmp_path / LONG)])
    said = capsys.readouterr()
    assert code == 2
    assert said.err.startswith("bench: ")
    assert said.err.endswith("File name too long\n")
    assert said.err.count("\n") == 1
    assert len(said.err) < 300
    assert not caplog.text
    assert not said.out


def test_a_data_root_with_too_long_a_name(
    tmp_path: Path, plan_here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = write(tmp_path / "few.toml", SUITE.replace('"digits"', '"mnist"'))
    monkeypatch.setenv("BENCH_DATA", LONG)
    assert main(["plan", str(suite)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("key", ["--seed", "--jobs"])
@pytest.mark.parametrize("digits", [20, 400, 5000])
def test_numbers_without_end(key: str, digits: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "digits", key, "9" * digits])
    assert ended.value.code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error: " in line)
    assert f"argument {key}: '99999" in line
    assert "no whole number" in line
    assert len(line) < 150
