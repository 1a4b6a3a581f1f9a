"""`bench verify`: agrees with an honest folder, and names each point that was tampered with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.cli import main


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "r")
    return tmp_path / "r"


def point_of(folder: Path, label: str) -> tuple[Path, dict[str, Any]]:
    for path in (folder / "point").glob("*.json"):
        record = json.loads(path.read_text())
        if record["method"]["label"] == label:
            return path, record
    raise AssertionError(label)


def verify(folder: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = main(["verify", "--results", str(folder), *words])
    return code, capsys.readouterr().out.splitlines()


def test_an_honest_folder(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = verify(finished, capsys=capsys)
    assert code == 0
    summary = "3 points verified, 3 of them made again from their trained network; no disagreements"
    assert lines == [summary]


def test_without_the_trained_networks(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied / "trained")
    code, lines = verify(copied, "--method", "magnitude", "--strength", "0.5", capsys=capsys)
    assert code == 0
    assert lines == ["1 points verified, 0 of them made again from their trained network; no disagreements"]


def test_a_method_whose_file_was_edited_since(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is known by its name, and what it says now is what is to be seen."""
    path, record = point_of(copied, "magnitude")
    record["method"]["source_digest"] = "0" * 16
    path.write_text(json.dumps(record))
    code, lines = verify(copied, capsys=capsys)
    assert code == 0
    assert "3 of them made again" in lines[0]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda record: record["test"].update(accuracy=0.999), "test accuracy"),
        (lambda record: record["test"].update(loss=record["test"]["loss"] * 1.01), "test loss"),
        (lambda record: record["cost"].update(parameters=1), "the record says 1"),
        (lambda record: record["cost"].update(macs=2), "the record says 2"),
        (lambda record: record["kept"].update(fc1=151), "the record says 151"),
        (
            lambda record: record["workload"].update(dataset_fingerprint="0" * 16),
            "not the data of the record",
        ),
    ],
)
def test_a_record_that_was_changed(
    change: Callable[[dict[str, Any]], None], says: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, record = point_of(copied, "magnitude")
    change(record)
    path.write_text(json.dumps(record))
    code, lines = verify(copied, capsys=capsys)
    assert code == 3
    assert len(lines) == 2, lines
    assert record["id"] in lines[0]
    assert says in lines[0]
    assert lines[1].endswith("1 disagreement")


def test_an_archive_that_is_damaged_or_gone(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = copied / "compact" / point_of(copied, "dense")[1]["id"] / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    shutil.rmtree(copied / "compact" / point_of(copied, "weights")[1]["id"])
    code, lines = verify(copied, capsys=capsys)
    assert code == 3
    assert len(lines) == 3
    assert "damaged" in lines[0]
    assert "cannot be read" in lines[1]
    assert lines[2].startswith("3 points verified, 1 of them")


def test_without_any_archive(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied / "compact")
    assert main(["verify", "--results", str(copied)]) == 2
    assert "no compact network of these points" in capsys.readouterr().err


def test_a_trained_network_that_is_another(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The archive agrees with its record, but neither comes from this training."""
    record = point_of(copied, "magnitude")[1]
    path = copied / "trained" / f"{record['train_id']}.safetensors"
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    save_file({name: _moved(value) for name, value in state.items()}, path, metadata=metadata)
    code, lines = verify(copied, "--method", "magnitude", "--strength", "0.5", capsys=capsys)
    assert code == 3
    assert "differs from the masked one" in lines[0]


def _moved(value: torch.Tensor) -> torch.Tensor:
    return value * 1.1 if value.is_floating_point() else value
