import logging
import shutil
from pathlib import Path

import pandas
import pytest
from records_factory import (
    CPU,
    GPU,
    latency_part,
    measure_record,
    point_record,
    suite_records,
    train_record,
)

import bench
from bench.errors import BadInput
from bench.records.files import AnyRecord
from bench.records.read import read_records
from bench.records.schema import DynamicCost, Failure
from bench.records.store import Store

DIVERGED = Failure(kind="diverged", reason="loss is NaN at epoch 2")


def write(root: Path, *records: AnyRecord) -> Path:
    for record in records:  # not `Store.write`, whose flush to the disk takes most of a test's time
        path = Store(root).path(record.kind, record.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.model_dump_json())
    return root


def test_one_row_per_operating_point(tmp_path: Path) -> None:
    records = suite_records()
    write(tmp_path, *records)
    frame = bench.read_results(tmp_path)
    assert len(frame) == sum(record.kind == "point" for record in records)
    assert not frame.duplicated(["network", "label", "strength", "seed"]).any()
    assert frame["id"].is_unique


def test_values_come_from_their_records(tmp_path: Path) -> None:
    train = train_record(seed=7, epochs=5)
    point = point_record(train, 0.5, accuracy=0.9)
    measure = measure_record(
        point, latency=[latency_part(1, 0.1, 0.4), latency_part(1, 0.05, 0.5, clock="device")]
    )
    (row,) = bench.read_results(write(tmp_path, train, point, measure)).to_dict("records")
    assert point.cost is not None
    assert point.dense_cost is not None
    expected = {
        "suite": "digits",
        "dataset": "digits",
        "network": "digits-cnn",
        "method": "magnitude",
        "label": "magnitude",
        "granularity": "unit",
        "strength": 0.5,
        "seed": 7,
        "status": "done",
        "test_accuracy": 0.9,
        "test_calibration_error": 0.01,
        "masked_test_accuracy": 0.9,
        "parameters": point.cost.parameters,
        "dense_macs": point.dense_cost.macs,
        "parameters_kept": point.cost.parameters / point.dense_cost.parameters,
        "macs_ratio": point.dense_cost.macs / point.cost.macs,
        "certificate": True,
        "removed_units": 48,
        "units_kept": 48,
        "units_total": 96,
        "epochs": 5,
        "train_seconds": 1.5,
        "step_ms": 0.8,
        "device": CPU,
        "latency_device": CPU,
        "latency_ms_b1": 0.1,
        "dense_latency_ms_b1": 0.4,
        "speedup_b1": 4.0,
        "id": point.id,
        "train_id": train.id,
        "measure_id": measure.id,
        "config": '{"granularity": "unit"}',
        "file": str(tmp_path / "point" / f"{point.id}.json"),
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)


def test_types_are_those_that_pandas_users_expect(tmp_path: Path) -> None:
    failed = point_record(train_record(seed=9), 0.5, failure=DIVERGED)
    frame = bench.read_results(write(tmp_path, *suite_records(), failed))
    types = frame.dtypes.astype(str).to_dict()
    assert types["network"] == types["label"] == types["failure"] == "category"
    assert types["seed"] == types["parameters"] == types["epochs"] == "Int64"
    assert types["test_accuracy"] == types["macs_ratio"] == types["speedup_b256"] == "float64"
    assert types["certificate"] == "boolean"
    assert "object" not in types.values()
    means = frame.groupby(["network", "label", "strength"], observed=True)["test_accuracy"].mean()
    assert means.between(0, 1).all()


def test_the_empty_folder_has_the_same_columns(tmp_path: Path) -> None:
    empty = bench.read_results(tmp_path)
    assert len(empty) == 0
    full = bench.read_results(write(tmp_path, *suite_records(measured=False)))
    assert list(empty.columns) == list(full.columns)
    assert empty.dtypes["test_accuracy"] == full.dtypes["test_accuracy"]


@pytest.mark.parametrize("stage", ["point", "train", "measure"])
def test_the_frame_does_not_depend_on_which_file_came_first(stage: str, tmp_path: Path) -> None:
    records = suite_records(networks=["lenet5"], labels=["magnitude", "random"])
    first = bench.read_results(write(tmp_path / "a", *records), stage=stage)
    second = bench.read_results(write(tmp_path / "b" / "c", *reversed(records)), stage=stage)
    pandas.testing.assert_frame_equal(first.drop(columns="file"), second.drop(columns="file"))


def test_a_failed_training_that_serves_all_strengths_fails_at_each(tmp_path: Path) -> None:
    good = train_record(seed=0)
    bad = train_record(seed=1, failure=DIVERGED)
    points = [point_record(good, strength) for strength in (0.5, 0.9)]
    frame = bench.read_results(write(tmp_path, good, bad, *points))
    failed = frame[frame["status"] == "failed"]
    assert failed["strength"].tolist() == [0.5, 0.9]
    assert failed["seed"].tolist() == [1, 1]
    assert failed["failure"].tolist() == ["diverged"] * 2
    assert failed["reason"].iloc[0] == "loss is NaN at epoch 2"
    assert failed["train_id"].tolist() == [bad.id] * 2
    assert failed["id"].isna().all()
    assert failed["test_accuracy"].isna().all()


def test_a_failed_training_alone_has_one_row(tmp_path: Path) -> None:
    one, all_ = train_record(failure=DIVERGED, strength=0.3), train_record("random", failure=DIVERGED)
    frame = bench.read_results(write(tmp_path, one, all_)).set_index("label")
    assert len(frame) == 2
    assert frame.loc["magnitude", "strength"] == 0.3
    assert pandas.isna(frame.loc["random", "strength"])


def test_a_failed_point_is_not_counted_twice(tmp_path: Path) -> None:
    train = train_record(failure=DIVERGED, strength=0.5)
    frame = bench.read_results(write(tmp_path, train, point_record(train, 0.5, failure=DIVERGED)))
    assert len(frame) == 1
    assert frame["id"].notna().all()


def test_latency_is_of_one_device(tmp_path: Path) -> None:
    train = train_record()
    points = [point_record(train, strength) for strength in (0.5, 0.9)]
    on_gpu = [measure_record(point, GPU, latency=[latency_part(1, 0.01, 0.02)]) for point in points]
    on_cpu = measure_record(points[0], CPU)
    write(tmp_path, train, *points, *on_gpu, on_cpu)
    frame = bench.read_results(tmp_path)
    assert frame["latency_device"].tolist() == [GPU, GPU]
    assert frame["speedup_b1"].tolist() == [2.0, 2.0]
    cpu = bench.read_results(tmp_path, latency_device=CPU)
    assert len(cpu) == 2
    assert cpu["speedup_b1"].isna().tolist() == [False, True]
    with pytest.raises(BadInput, match="did you mean 'Imaginary GPU'"):
        bench.read_results(tmp_path, latency_device="Imaginary GPUs")


def test_networks_may_be_measured_on_a_device_each(tmp_path: Path) -> None:
    """Not so the points of one network: there the device with the most of them counts."""
    small, large = train_record(network="mlp-300-100"), train_record(network="lenet5")
    of_small, of_large = ([point_record(train, s) for s in (0.5, 0.9)] for train in (small, large))
    measures = [measure_record(point, CPU) for point in of_small]
    measures += [measure_record(of_small[0], GPU), measure_record(of_large[0], GPU)]
    frame = bench.read_results(write(tmp_path, small, large, *of_small, *of_large, *measures))
    devices = frame.set_index(["network", "strength"])["latency_device"].astype("object")
    assert devices["mlp-300-100"].tolist() == [CPU, CPU]
    assert devices["lenet5", 0.5] == GPU
    assert devices.isna().sum() == 1


def test_gates_have_columns_of_their_own(tmp_path: Path) -> None:
    """The engines of networks with gates never stand for the static network, even where only they were measured."""
    train = train_record()
    cost = DynamicCost(expected_macs=123.5, gate_operations=40, gate_parameters=30)
    points = [point_record(train, strength) for strength in (0.5, 0.9)]
    points[0] = points[0].model_copy(update={"dynamic": cost})
    parts = [latency_part(1, 4, 2, engine="gather"), latency_part(128, 3, 1.5, engine="masked")]
    gated = measure_record(points[0], latency=[*parts, latency_part(1, 1, 2)])
    alone = measure_record(points[1], latency=parts)
    frame = bench.read_results(write(tmp_path, train, *points, gated, alone))
    assert frame["speedup_b1"].tolist()[0] == 2.0
    assert pandas.isna(frame["speedup_b1"][1])
    assert frame["speedup_gather_b1"].tolist() == [0.5, 0.5]
    assert frame["latency_ms_masked_b128"].tolist() == [3.0, 3.0]
    assert "speedup_b128" not in frame.columns
    first = frame.iloc[0]
    assert [first[name] for name in DynamicCost.model_fields] == [123.5, 40, 30]
    assert frame["gate_operations"].isna().tolist() == [False, True]


def test_the_newest_measurement_counts(tmp_path: Path) -> None:
    train = train_record()
    point = point_record(train, 0.5)
    old = measure_record(point, created="2026-01-01T00:00:00Z", latency=[latency_part(1, 1, 1)])
    new = measure_record(
        point, created="2026-02-01T00:00:00Z", latency=[latency_part(1, 1, 3)], protocol={"calls": 500}
    )
    frame = bench.read_results(write(tmp_path, train, point, old, new))
    assert frame["speedup_b1"].tolist() == [3.0]


def test_measure_rows(tmp_path: Path) -> None:
    train = train_record()
    point = point_record(train, 0.5)
    failed = measure_record(point, GPU, failure=Failure(kind="error", reason="out of memory"))
    frame = bench.read_results(write(tmp_path, train, point, measure_record(point), failed), stage="measure")
    assert frame["device"].tolist() == [CPU, CPU, GPU]
    assert frame["batch"].tolist()[:2] == [1, 256]
    assert frame["batch"].isna().tolist() == [False, False, True]
    assert frame["peak_bytes"].tolist()[:2] == [1000, 200_000]
    assert (frame["point_id"] == point.id).all()
    assert frame["compact_median_ms"].notna().tolist() == [True, True, False]


def test_train_rows(tmp_path: Path) -> None:
    frame = bench.read_results(write(tmp_path, train_record(epochs=4)), stage="train")
    assert frame["train_loss"].tolist() == [0.25]
    assert frame["validation_accuracy"].tolist() == [0.875]
    assert frame["steps"].tolist() == [80]


def test_unreadable_files_are_skipped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = train_record()
    point = point_record(train, 0.5)
    write(tmp_path, train, point)
    short, foreign = tmp_path / "point" / "short-s0.json", tmp_path / "measure" / "foreign.json"
    short.write_text((tmp_path / "point" / f"{point.id}.json").read_text()[:-20])
    foreign.parent.mkdir()
    foreign.write_text('{"hello": 1}')
    (tmp_path / "compact" / point.id).mkdir(parents=True)
    (tmp_path / "compact" / point.id / "architecture.json").write_text("{}")
    (tmp_path / "leaderboard.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert len(bench.read_results(tmp_path)) == 1
    assert len(caplog.records) == 2
    assert str(short) in caplog.text
    assert str(foreign) in caplog.text
    assert short.exists()


def test_any_folder_with_records_below_will_do(tmp_path: Path) -> None:
    train = train_record()
    root = tmp_path / "published" / "digits"
    write(root, train, point_record(train, 0.5), point_record(train, 0.9))
    shutil.copytree(root, tmp_path / "runs" / "again")
    for folder in (tmp_path, tmp_path / "published", root, root / "point"):
        assert len(bench.read_results(folder)) == 2


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        bench.read_results(tmp_path / "nothing")
    with pytest.raises(BadInput, match="did you mean 'point'"):
        bench.read_results(tmp_path, stage="points")


def test_a_stage_folder_that_lies_elsewhere_is_read_too(tmp_path: Path) -> None:
    """`Store` writes there; links that lead back, and to nowhere, end the walk no less."""
    train = train_record()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "point").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "r" / "again").symlink_to(tmp_path / "r")
    (tmp_path / "elsewhere" / "measure").symlink_to(tmp_path)
    (tmp_path / "r" / "train").symlink_to("gone")
    point = point_record(train, 0.5)
    write(tmp_path / "r", point)
    for folder in (tmp_path / "r", tmp_path):
        found = read_records(folder)
        assert set(found.point) == {point.id}
    assert (
        read_records(tmp_path / "r").files["point", point.id] == tmp_path / "r" / "point" / f"{point.id}.json"
    )
    assert Store(tmp_path / "r").read("point", point.id) == read_records(tmp_path / "r").point[point.id]


def test_a_record_that_is_a_link_is_read(tmp_path: Path) -> None:
    point = point_record(train_record(), 0.5)
    write(tmp_path, point)
    path = Store(tmp_path).path("point", point.id)
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)
    assert set(read_records(tmp_path).point) == {point.id}
