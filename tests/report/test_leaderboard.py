import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
from records_factory import (
    CPU,
    latency_part,
    measure_record,
    point_record,
    settings,
    suite_records,
    train_record,
)
from rich.console import Console

from bench.records.schema import DynamicCost, Failure
from bench.report.columns import COLUMNS, meanings
from bench.report.leaderboard import leaderboard, to_markdown, write_leaderboard
from bench.report.terminal import print_leaderboard

DIVERGED = Failure(kind="diverged", reason="loss is NaN")
Frames = Callable[..., pandas.DataFrame]


def three_seeds(label: str, accuracies: list[float], strength: float = 0.5, epochs: int = 4) -> list:
    records = []
    for seed, accuracy in enumerate(accuracies):
        train = train_record(label, seed=seed, epochs=epochs)
        keep = 1.0 if label == "dense" else None
        records += [train, point_record(train, strength, accuracy, keep)]
    return records


def test_a_row_says_what_its_seeds_say(frame_of: Frames) -> None:
    records = three_seeds("dense", [0.95, 0.96, 0.98], 0.0) + three_seeds("magnitude", [0.93, 0.94, 0.96])
    for seed, speedup in enumerate([1.5, 2.0, 4.0]):
        point = records[7 + 2 * seed]
        records.append(measure_record(point, latency=[latency_part(1, 1.0, speedup)]))
    board = leaderboard(frame_of(records)).set_index("label")
    row = board.loc["magnitude"]
    assert row["test_accuracy"] == pytest.approx(0.9433333)
    assert row["test_accuracy_half_width"] == pytest.approx(4.302653 * 0.0152753 / math.sqrt(3), rel=1e-4)
    assert row["delta"] == pytest.approx(-0.02)
    assert row["delta_half_width"] == pytest.approx(0, abs=1e-12), "paired: the seeds move together"
    assert row["delta_pairs"] == row["seeds"] == 3
    assert row["parameters"] == 5750
    assert row["parameters_ratio"] == pytest.approx(4.0)
    assert row["speedup_b1"] == 2.0
    assert row["latency_device"] == CPU
    assert row["budget"] == 4
    assert row["granularity"] == "unit"
    assert math.isnan(board.loc["dense", "delta"])


def test_a_speedup_with_an_unstable_measurement_behind_it_is_marked(frame_of: Frames, tmp_path: Path) -> None:
    """In the column of its batch size alone, whichever seed it is."""
    records = three_seeds("dense", [0.9], 0.0) + three_seeds("magnitude", [0.9, 0.9, 0.9])
    steady, wide = latency_part(1, 1.0, 2.0), latency_part(256, 1.0, 3.0)
    for seed, point in enumerate(records[1::2]):
        last = wide.model_copy(update={"unstable": seed == 2})
        records.append(measure_record(point, latency=[steady, last]))
    frame = frame_of([*records, *three_seeds("random", [0.9])])
    paths = write_leaderboard(frame, tmp_path)
    ends = {
        row.split("|")[1].strip(): row.split("|")[-5:-3]
        for row in paths["md"].read_text().splitlines()
        if row.startswith("|")
    }
    assert ends["dense"] == [" 2.00× ", " 3.00× "]
    assert ends["magnitude"] == [" 2.00× ", " ~3.00× "]
    assert ends["random"] == [" — ", " — "]
    out = io.StringIO()
    print_leaderboard(leaderboard(frame), Console(file=out, width=180))
    assert out.getvalue().count("~") == out.getvalue().count("~3.00×") == 1
    board = pandas.read_csv(paths["csv"]).set_index("label")["latency_unstable_b256"]
    assert (bool(board["dense"]), bool(board["magnitude"])) == (False, True)
    assert pandas.isna(board["random"])
    assert "`~`" in meanings([leaderboard(frame)])


def test_the_time_of_gathering_is_marked_too(frame_of: Frames) -> None:
    (train, point) = three_seeds("magnitude", [0.9])
    parts = [latency_part(1, 1.0, 2.0), latency_part(1, 4.0, 2.0, engine="gather")]
    parts[1] = parts[1].model_copy(update={"unstable": True})
    text = to_markdown(leaderboard(frame_of([train, point, measure_record(point, latency=parts)])))
    assert "| 2.00× | ~0.50× |" in text


def test_what_closed_units_save_has_columns_where_there_are_gates(frame_of: Frames) -> None:
    """The time of gathering, slower than dense here, stands beside that of the static network."""
    cost = DynamicCost(expected_macs=1200.5, gate_operations=34, gate_parameters=30)
    gated, plain = three_seeds("magnitude", [0.9, 0.9]), three_seeds("dense", [0.9, 0.9], 0.0)
    gated = [
        record.model_copy(update={"dynamic": cost}) if at % 2 else record for at, record in enumerate(gated)
    ]
    static, gathered = latency_part(1, 1.0, 2.0), latency_part(1, 4.0, 2.0, engine="gather")
    gated += [measure_record(point, latency=[static, gathered]) for point in gated[1::2]]
    plain += [measure_record(point, latency=[static]) for point in plain[1::2]]
    assert "skipped" not in to_markdown(leaderboard(frame_of(plain)))
    board = leaderboard(frame_of(gated)).set_index("label")
    assert board.loc["magnitude", ["speedup_b1", "speedup_gather_b1"]].tolist() == [2.0, 0.5]
    heading, _, *rows = to_markdown(board.reset_index()).splitlines()[2:6]
    headers = [cell.strip() for cell in heading.strip("|").split("|")]
    cells = {row.split("|")[1].strip(): [cell.strip() for cell in row.strip("|").split("|")] for row in rows}
    for header, ours, dense in (
        ("MACs, closed units skipped", "1,234", "—"),
        ("faster, batch 1", "2.00×", "2.00×"),
        ("faster, batch 1, closed units skipped", "0.50×", "—"),
    ):
        at = headers.index(header)
        assert (cells["magnitude"][at], cells["dense"][at]) == (ours, dense)


def test_failures_are_visible_and_not_in_the_mean(frame_of: Frames) -> None:
    records = three_seeds("magnitude", [0.9, 0.9])
    records.append(train_record(seed=2, failure=DIVERGED))
    frame = frame_of([*records, train_record("random", failure=DIVERGED, strength=0.5)])
    board = leaderboard(frame).set_index("label")
    assert board.loc["magnitude", "failures"] == "1 of 3 failed: diverged"
    assert board.loc["magnitude", "test_accuracy"] == pytest.approx(0.9)
    assert board.loc["random", "failures"] == "1 of 1 failed: diverged"
    text = to_markdown(leaderboard(frame))
    assert "| random | 0.5 | unit | 0 | — | — | — |" in text
    assert "1 of 3 failed: diverged" in text


def test_one_seed_shows_no_interval(frame_of: Frames) -> None:
    text = to_markdown(leaderboard(frame_of(three_seeds("magnitude", [0.9]))))
    assert "| 90.00 ± — | — |" in text
    assert "nan" not in text.lower()
    assert "Latency was not measured." in text


def test_rows_are_sorted_with_dense_first(frame_of: Frames) -> None:
    board = leaderboard(frame_of(suite_records(labels=["random", "dense", "beta", "magnitude"], seeds=[0])))
    for _, rows in board.groupby("network"):
        assert rows["label"].drop_duplicates().tolist() == ["dense", "beta", "magnitude", "random"]
    assert board["network"].is_monotonic_increasing
    strengths = board[(board["network"] == "digits-cnn") & (board["label"] == "beta")]["strength"]
    assert strengths.is_monotonic_increasing


def test_numbers_of_two_budgets_never_share_a_row(frame_of: Frames) -> None:
    records = three_seeds("dense", [0.9, 0.9], 0.0) + three_seeds("dense", [0.95, 0.95], 0.0, epochs=20)
    records += three_seeds("magnitude", [0.8, 0.8]) + three_seeds("magnitude", [0.94, 0.94], epochs=20)
    board = leaderboard(frame_of(records)).set_index("label")
    assert sorted(board.index) == [
        "dense [epochs=20]",
        "dense [epochs=4]",
        "magnitude [epochs=20]",
        "magnitude [epochs=4]",
    ]
    assert board.loc["magnitude [epochs=20]", "delta"] == pytest.approx(-0.01), "to dense of the same budget"
    assert board.loc["magnitude [epochs=4]", "delta"] == pytest.approx(-0.1)


def test_nor_where_the_method_has_a_setting_of_that_name_too(frame_of: Frames) -> None:
    """As `weight_decay` and `schedule` of some: it must not hide that of the recipe."""
    records = []
    for epochs in (4, 20):
        train = train_record("magnitude", epochs=epochs)
        train = train.model_copy(update={"method": settings("magnitude", epochs=2)})
        records += [train, point_record(train, 0.5)]
    board = leaderboard(frame_of(records))
    assert board["label"].tolist() == ["magnitude [epochs=20]", "magnitude [epochs=4]"]


def test_two_settings_of_one_name_are_both_told(frame_of: Frames) -> None:
    records = []
    for own in (1, 2):
        train = train_record("magnitude", learning_rate=own)
        records += [train, point_record(train, 0.5)]
    assert leaderboard(frame_of(records))["label"].tolist() == [
        "magnitude [config.learning_rate=1]",
        "magnitude [config.learning_rate=2]",
    ]


def test_a_label_that_names_two_configurations_is_told_apart(frame_of: Frames) -> None:
    records = []
    for norm in (1, 2):
        train = train_record("magnitude", norm=norm)
        records += [train, point_record(train, 0.5)]
    assert leaderboard(frame_of(records))["label"].tolist() == ["magnitude [norm=1]", "magnitude [norm=2]"]


def test_the_usual_of_two_variants_keeps_its_label(frame_of: Frames) -> None:
    usual = three_seeds("dense", [0.9], 0.0)
    train = train_record("dense", seed=1)
    train = train.model_copy(update={"workload": train.workload.model_copy(update={"round_to": 4})})
    point = point_record(train, 0.0, 0.9, 1.0)
    board = leaderboard(frame_of([*usual, train, point]))
    assert board["label"].tolist() == ["dense", "dense [round_to=4]"]


def controls_of(label: str, key: str, shapes: list[dict[str, float]], epochs: int = 4) -> list:
    """As `bench controls` makes them: each seed has the shape, and the fraction, of its own point."""
    records = []
    for seed, shape in enumerate(shapes):
        train = train_record(label, seed=seed, epochs=epochs, **{key: shape})
        records += [train, point_record(train, 0.5 + seed / 10, 0.8 + seed / 10)]
    return records


@pytest.mark.parametrize("key", ["kept", "ratios"])
def test_controls_of_a_point_of_each_seed_share_a_row(key: str, frame_of: Frames) -> None:
    (row,) = leaderboard(frame_of(controls_of("control", key, [{"a": 3}, {"a": 4}]))).to_dict("records")
    assert (row["label"], row["seeds"]) == ("control", 2)
    assert row["strength"] == pytest.approx(0.55)
    assert row["test_accuracy"] == pytest.approx(0.85)


def test_a_setting_that_names_no_shape_is_no_control(frame_of: Frames) -> None:
    assert leaderboard(frame_of(controls_of("random", "ratios", [{}, {}])))["strength"].tolist() == [0.5, 0.6]


def test_controls_of_two_budgets_do_not(frame_of: Frames) -> None:
    records = controls_of("control", "kept", [{"a": 3}, {"a": 4}])
    records += controls_of("control", "kept", [{"a": 3}, {"a": 4}], epochs=20)
    board = leaderboard(frame_of(records))
    assert board["label"].tolist() == ["control [epochs=20]", "control [epochs=4]"]
    assert board["seeds"].tolist() == [2, 2]


def test_nor_controls_of_two_points_of_a_seed(frame_of: Frames) -> None:
    records = controls_of("control", "kept", [{"a": 3}]) + controls_of("control", "kept", [{"a": 4}])
    assert leaderboard(frame_of(records))["seeds"].tolist() == [1, 1]


def test_weights_only_saves_non_zeros_not_parameters(frame_of: Frames) -> None:
    (row,) = leaderboard(frame_of(three_seeds("magnitude-weights", [0.9], 0.75))).to_dict("records")
    assert row["parameters_ratio"] == row["macs_ratio"] == 1.0
    assert row["nonzero_ratio"] == pytest.approx(4.0)


def test_the_same_records_give_the_same_bytes(frame_of: Frames, tmp_path: Path) -> None:
    frame = frame_of(suite_records(seeds=[0, 1]))
    first = write_leaderboard(frame, tmp_path / "a")
    second = write_leaderboard(frame.sample(frac=1, random_state=1), tmp_path / "b")
    for suffix in ("md", "csv", "json"):
        assert first[suffix].read_bytes() == second[suffix].read_bytes()
    board = pandas.read_csv(first["csv"])
    assert len(board) == len(leaderboard(frame))


def test_the_sidecar_names_the_records(frame_of: Frames, tmp_path: Path) -> None:
    records = suite_records(networks=["lenet5"], seeds=[0])
    frame = frame_of(records)
    sidecar = json.loads(write_leaderboard(frame, tmp_path)["json"].read_text())
    for stage in ("train", "point", "measure"):
        assert sidecar["records"][stage] == sorted(record.id for record in records if record.kind == stage)
    changed = frame.copy()
    changed.loc[0, "test_accuracy"] += 1e-9
    other = json.loads(write_leaderboard(changed, tmp_path)["json"].read_text())
    assert other["records_digest"] != sidecar["records_digest"]


def test_an_empty_frame_gives_an_empty_board(frame_of: Frames) -> None:
    board = leaderboard(frame_of([]))
    assert len(board) == 0
    assert to_markdown(board) == ""


@pytest.mark.parametrize("width", [80, 100, 180])
def test_the_terminal_shows_whole_numbers_at_any_width(width: int, frame_of: Frames) -> None:
    frame = frame_of(
        [*suite_records(networks=["lenet5"]), train_record("magnitude", "lenet5", 7, failure=DIVERGED)]
    )
    board = leaderboard(frame)
    out = io.StringIO()
    print_leaderboard(board, Console(file=out, width=width))
    text = out.getvalue()
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    for row in board.to_dict("records"):
        assert f"{100 * row['test_accuracy']:.2f} ± " in text
    assert "diverged" in text
    assert CPU in text


def layered(label: str, keep: float, layers: int, active: int, **more: object) -> list:
    """A training and its point with `layers` of 3 weight layers left."""
    train = train_record(label)
    point = point_record(train, 0.0 if label == "dense" else 0.5, keep=keep)
    assert point.cost is not None
    assert point.dense_cost is not None
    cost = point.cost.model_copy(update={"layers": layers, "active_layers": active})
    dense = point.dense_cost.model_copy(update={"layers": 3, "active_layers": 3})
    return [train, point.model_copy(update={"cost": cost, "dense_cost": dense, **more})]


def test_layers_units_and_activity_are_shown_where_rows_differ(frame_of: Frames) -> None:
    dynamic = {"expected_activity": {"conv1": 3.2, "conv2": 7.6}}
    frame = frame_of(
        layered("dense", 1.0, 3, 3)
        + layered("magnitude", 0.5, 2, 1)
        + layered("random", 0.5, 3, 3, **dynamic)
    )
    text = to_markdown(leaderboard(frame))
    header = next(line for line in text.splitlines() if line.startswith("| method"))
    assert "| layers | active layers | units | active units |" in header
    (row,) = [line for line in text.splitlines() if line.startswith("| magnitude ")]
    assert "| 2 of 3 | 1 | 16-32 | — |" in row
    assert "| 3 of 3 | 3 | 32-64 | — |" in text
    assert "| 3 of 3 | 3 | 16-32 | 3-8 |" in text
    board = leaderboard(frame).set_index("label")
    assert board.loc["magnitude", ["layers", "dense_layers", "active_layers"]].tolist() == [2, 3, 1]


def test_a_gate_that_only_some_seeds_have_is_the_mean_of_these(frame_of: Frames) -> None:
    records = []
    for seed, activity in enumerate(({"conv1": 4.0, "conv2": 6.0}, {"conv1": 8.0})):
        train = train_record("gated", seed=seed)
        point = point_record(train, 0.5).model_copy(update={"expected_activity": activity})
        records += [train, point]
    assert leaderboard(frame_of(records))["activity"].tolist() == ["6-6"]


def test_what_all_rows_have_alike_is_not_shown(frame_of: Frames) -> None:
    text = to_markdown(leaderboard(frame_of(layered("dense", 1.0, 3, 3) + layered("magnitude", 1.0, 3, 3))))
    for header in ("layers", "active layers", "units", "active units"):
        assert f"| {header} |" not in text


def test_counts_are_means_over_seeds(frame_of: Frames) -> None:
    records = three_seeds("dense", [0.9], 0.0)
    for seed, keep in enumerate((0.5, 0.25, 0.25)):
        train = train_record(seed=seed)
        records += [train, point_record(train, 0.5, keep=keep)]
    records.append(train_record("random", failure=DIVERGED, strength=0.5))
    board = leaderboard(frame_of(records)).set_index("label")
    assert board.loc["magnitude", "units"] == "11-21"  # (16 + 8 + 8) / 3 and (32 + 16 + 16) / 3
    assert "| random | 0.5 | unit | 0 | — | — | — | — | — | — | — | — |" in to_markdown(board.reset_index())


def test_every_column_has_a_meaning(frame_of: Frames) -> None:
    dynamic = {"expected_activity": {"conv1": 3.2, "conv2": 7.6}}
    records = layered("dense", 1.0, 3, 3) + layered("magnitude", 0.5, 2, 1, **dynamic)
    plain = leaderboard(frame_of(records))
    frame = frame_of(suite_records(networks=["lenet5"], seeds=[0]))
    measured = leaderboard(frame[frame["network"] == "lenet5"])
    gated = measured.assign(
        expected_macs=1.0, gate_operations=1.0, speedup_gather_b1=1.0, latency_unstable_gather_b1=False
    )
    text = meanings([plain, gated])
    for column in COLUMNS:
        assert column.header in text
        assert column.meaning.endswith(".")
    assert "active units" not in meanings([measured])
