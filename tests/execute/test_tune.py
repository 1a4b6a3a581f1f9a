"""`bench run --tune`: a choice measured once, kept in the results folder, and part of what the records are about."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench import suite as suites
from bench.device import memory_format_of
from bench.errors import BadInput
from bench.execute.cell import CellRun
from bench.execute.subject import Subject
from bench.execute.worker import CellTask
from bench.filters import Filters
from bench.measure import training_speed
from bench.measure.training_speed import StepTime
from bench.plan import make_plan
from bench.records.read import read_records
from bench.records.schema import Cpu
from bench.run import RunOptions, run_suite
from bench.tune import keep, tuned
from tests.cli.folders import run_here, write

SUITE = """
title = "formats"
seeds = [0]
[measure]
latency = "none"
[[workloads]]
dataset = "digits"
network = "digits-cnn"
recipe = { epochs = 2, batch_size = 256, learning_rate = 4e-3 }
[[methods]]
name = "dense"
[[methods]]
name = "thin-dense"
strengths = [0.6]
"""
CONTIGUOUS = SUITE.replace(
    '"digits-cnn"', '"digits-cnn"\ncpu = { memory_format = "contiguous", threads = 2 }'
)


@pytest.fixture
def suite(tmp_path: Path) -> suites.Suite:
    return suites.load(str(write(tmp_path / "formats.toml", SUITE)))


def test_the_fastest_is_taken_and_kept(
    suite: suites.Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def times(*request: object) -> list[StepTime]:
        asked.append(request)
        return [StepTime("channels-last", 1, 10.0), StepTime("contiguous", 2, 5.0)]

    monkeypatch.setattr(training_speed, "step_times", times)
    for _ in range(2):
        changed = tuned(suite, Filters(), tmp_path, None, "cpu", 2)
        assert changed.workloads[0].cpu == Cpu(memory_format="contiguous", threads=2)
        assert changed.where == suite.where
        assert keep(tmp_path, make_plan(changed, Filters(), None)) == [
            "digits-cnn on digits: contiguous, 2 threads a process"
        ]
    assert asked == [("digits-cnn", (1, 8, 8), 10, 256, [1, 2])]  # once


def test_a_run_trains_as_chosen_and_is_another_question(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    write(results / "cpu.json", '{"digits-cnn on digits": {"memory_format": "contiguous", "threads": 1}}')
    path = write(tmp_path / "formats.toml", SUITE)
    quiet = Console(quiet=True)
    assert run_suite(str(path), Filters(), RunOptions(results, None, 1, "cpu", tune=True), quiet) == 0
    first = read_records(results)
    assert {train.workload.cpu.memory_format for train in first.train.values()} == {"contiguous"}
    run_here(path, results)
    both = read_records(results)
    assert len(both.train) == 2 * len(first.train)
    assert all(point.certificate is not None and point.certificate.passed for point in both.point.values())


def test_weights_and_threads_are_as_the_workload_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(suites.load(str(write(tmp_path / "a.toml", CONTIGUOUS))), Filters(), None)
    before, seen = torch.get_num_threads(), []

    def run(self: CellRun, retry_failed: bool) -> bool:
        self.open_data()
        subject = Subject.of(self.cell, self.dataset, self.example)
        seen.append((memory_format_of(subject.network), torch.get_num_threads()))
        return True

    monkeypatch.setattr(CellRun, "run", run)
    for cell in plan.cells:
        assert CellTask(cell, tmp_path, None, "cpu", False).run(lambda fraction, doing: None)
    assert seen == [("contiguous", max(2, before))] * 2
    assert torch.get_num_threads() == before


def test_a_shared_pretraining_is_shared_by_what_trains_alike(tmp_path: Path) -> None:
    with_magnitude = '[[methods]]\nname = "magnitude"\nstrengths = [0.5]\n'
    shared = []
    for name, text in (("a", SUITE), ("b", CONTIGUOUS)):
        loaded = suites.load(str(write(tmp_path / f"{name}.toml", text + with_magnitude)))
        cells = make_plan(loaded, Filters(), None).cells
        shared.append({cell.pretraining.id for cell in cells if cell.pretraining})
    assert shared[0].isdisjoint(shared[1])


def test_what_cannot_be(suite: suites.Suite, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cuda"):
        tuned(suite, Filters(), tmp_path, None, "cuda", 1)
    write(tmp_path / "cpu.json", '{"digits-cnn on digits": {"threads": 0}}')
    with pytest.raises(BadInput, match=r"cpu\.json"):
        tuned(suite, Filters(), tmp_path, None, "cpu", 1)
    with pytest.raises(BadInput, match=r"workloads\.0\.cpu"):
        suites.load(str(write(tmp_path / "a.toml", CONTIGUOUS.replace('"contiguous"', '"nhwc"'))))
