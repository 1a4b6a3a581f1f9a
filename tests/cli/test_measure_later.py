"""`bench measure`: latency from records and compact networks alone, resumed by record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench.cli import main
from bench.records.files import load
from bench.records.schema import MeasureRecord


@pytest.fixture(scope="module")
def elsewhere(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What would be carried to another machine."""
    folder = tmp_path_factory.mktemp("elsewhere") / "deep" / "results"
    for part in ("point", "compact"):
        shutil.copytree(finished / part, folder / part)
    return folder


def measured(folder: Path) -> dict[str, MeasureRecord]:
    records = [load(path) for path in (folder / "measure").glob("*.json")]
    return {record.method.label: record for record in records if isinstance(record, MeasureRecord)}


def test_points_of_units_get_a_latency(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Started above the results folder, first for one method, then for all: the one is not measured again."""
    above = str(elsewhere.parents[1])
    assert main(["measure", "--results", above, "--device", "cpu", "--method", "dense"]) == 0
    assert "1 points measured" in capsys.readouterr().out
    first = measured(elsewhere)
    assert set(first) == {"dense"}
    assert main(["measure", "--results", above, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "2 points measured" in out
    assert "1 of them now" in out
    assert "1 with zeroed weights left out" in out
    second = measured(elsewhere)
    assert set(second) == {"dense", "magnitude"}
    assert second["dense"] == first["dense"]
    assert all(record.latency and record.status == "done" for record in second.values())


def test_what_has_a_record_is_not_measured_again(
    elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A failed one neither, and it counts: exit code 3."""
    shutil.copytree(elsewhere, tmp_path / "r")
    assert main(["measure", "--results", str(tmp_path / "r"), "--device", "cpu"]) == 0
    assert "0 of them now" in capsys.readouterr().out
    path = next((tmp_path / "r" / "measure").glob("*.json"))
    record = json.loads(path.read_text())
    record |= {"status": "failed", "failure": {"kind": "killed", "reason": "exit code -9"}, "latency": []}
    path.write_text(json.dumps(record))
    assert main(["measure", "--results", str(tmp_path / "r"), "--device", "cpu"]) == 3
    assert "1 failed" in capsys.readouterr().out


def test_nothing_to_measure(elsewhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", "--results", str(elsewhere), "--method", "weights"]) == 2
    assert "only weights were zeroed" in capsys.readouterr().err
    shutil.copytree(elsewhere / "point", tmp_path / "point")
    assert main(["measure", "--results", str(tmp_path)]) == 2
    assert "no compact network" in capsys.readouterr().err
