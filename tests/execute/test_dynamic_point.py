"""A point whose gates depend on the image, from training to latency."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import data, load_compact, suite
from bench.cli import main
from bench.compaction import load_archive
from bench.data.batches import Normalise, ordered
from bench.execute import layout, measuring_gates
from bench.execute.cell import CellRun
from bench.execute.measuring import measure_point
from bench.filters import Filters
from bench.measure.accuracy import score
from bench.plan import make_plan
from bench.records.schema import MeasureRecord, PointRecord
from bench.records.store import Store

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one point: units are removed, and gates close others for single images."""
    torch.set_num_threads(1)
    entry = {
        "name": "dependent-beta-bernoulli",
        "strengths": [1.0],
        "config": {"pretrain": 0.2, "dependent": 0.4, "gate_learning_rate": 0.1},
    }
    workload = {"dataset": "digits", "network": "mlp-300-100", "recipe": {"epochs": 10, "batch_size": 64}}
    small = suite.Suite.model_validate(
        {"name": "s", "title": "s", "seeds": [0], "workloads": [workload], "methods": [entry]}
    )
    folder = tmp_path_factory.mktemp("dynamic")
    (cell,) = make_plan(small, Filters(), None).cells
    assert CellRun(cell, folder, None, CPU, lambda fraction, doing: None).run()
    return folder


def point_of(results: Path) -> PointRecord:
    (path,) = (results / "point").glob("*.json")
    record = Store(results).read("point", path.stem)
    assert isinstance(record, PointRecord)
    return record


def test_the_record_counts_the_gates(results: Path) -> None:
    point = point_of(results)
    assert point.dynamic is not None
    assert point.cost is not None
    assert all(0 < point.expected_activity[site] < left for site, left in point.kept.items())
    one, two = point.kept["fc1"], point.kept["fc2"]
    open_one, open_two = point.expected_activity["fc1"], point.expected_activity["fc2"]
    assert point.cost.macs == 64 * one + one * two + 10 * two
    assert point.dynamic.expected_macs == pytest.approx(64 * one + open_one * two + 10 * open_two)
    assert point.dynamic.gate_operations == 5 * (one + two)
    assert point.dynamic.gate_parameters == 3 * (one + two)
    assert point.cost.parameters == 65 * one + (one + 1) * two + 10 * (two + 1) + 3 * (one + two)
    assert not any("MACs" in note for note in point.notes)


def test_the_archive_is_the_network_of_the_record(results: Path) -> None:
    point = point_of(results)
    assert point.test is not None
    folder = layout.compact(results, point.id)
    dataset, test = data.load("digits", None), data.load_test("digits", None)

    def of(network: torch.nn.Module) -> float:
        return score(network, ordered(test, 1024, Normalise.of(dataset, CPU))).loss

    assert of(load_compact(folder)) == point.test.loss
    archive = load_archive(folder)
    assert of(archive.network) != point.test.loss
    assert archive.dynamic is not None
    assert archive.dynamic.images.shape == (16, 1, 8, 8)
    assert main(["verify", "--results", str(results)]) == 0


def test_a_record_of_other_gates_is_found_out(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, point = Store(results), point_of(results)
    assert point.dynamic is not None
    less = point.dynamic.model_copy(update={"expected_macs": 1.0})
    try:
        store.write(point.model_copy(update={"dynamic": less}))
        assert main(["verify", "--results", str(results)]) == 3
        assert "work of the gates" in capsys.readouterr().out
    finally:
        store.write(point)


def test_latency_of_the_static_the_gathered_and_the_masked_network(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = point_of(results)
    assert measure_point(point.id, results, CPU, "quick")
    (path,) = (results / "measure").glob("*.json")
    record = Store(results).read("measure", path.stem)
    assert isinstance(record, MeasureRecord)
    assert [(part.engine, part.batch) for part in record.latency] == [
        ("eager", 1),
        ("eager", 256),
        ("gather", 1),
        ("masked", 128),
    ]
    assert record.gathered == ["fc1", "fc2"]
    monkeypatch.setattr(measuring_gates, "FLOAT32_BOUND", -1.0)
    assert not measure_point(point.id, results, CPU, "quick")
    record = Store(results).read("measure", path.stem)
    assert isinstance(record, MeasureRecord)
    assert record.failure is not None
    assert record.failure.kind == "unequal"
    assert not record.latency
