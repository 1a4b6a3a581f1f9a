"""Published figures beside synthetic records, by hand."""

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas
import pytest
from records_factory import point_record, suite_records, train_record
from rich.console import Console

from bench import suite as suites
from bench.cli import main
from bench.records.files import AnyRecord
from bench.records.schema import Failure
from bench.records.store import Store
from bench.report.leaderboard import leaderboard
from bench.report.published import published_table, suites_of, to_markdown, write_published

Frames = Callable[..., pandas.DataFrame]
SUITE = """
title = "What a paper says of digits"
seeds = [0, 1, 2]
budget_note = "4 epochs here, 200 in the paper"
[[workloads]]
dataset = "digits"
network = "digits-cnn"
recipe = { epochs = 4 }
[[methods]]
name = "dense"
[[methods]]
name = "magnitude"
strengths = [0.5, 0.75]
[[methods]]
name = "magnitude"
label = "never run"
strengths = [0.5]
"""
FIGURES = """
[[published]]
network = "digits-cnn"
label = "magnitude"
strength = 0.5
test_error = 0.05
units = { conv2 = 30, conv1 = 18 }
weights_pruned = 0.7
macs_ratio = 3.2
provenance = "table"
source = "A paper, table 1"
note = "200 epochs"
[[published]]
network = "digits-cnn"
label = "never run"
test_error = 0.02
provenance = "digitised"
source = "A paper, figure 2"
"""
NONE_FOUND = """
[[published]]
source = "none found: neither text nor code could be read"
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], suites.Suite]:
    def of(published: str) -> suites.Suite:
        (tmp_path / "paper.toml").write_text(SUITE + published, encoding="utf-8")
        return suites.load(str(tmp_path / "paper.toml"))

    return of


def records(suite: str = "paper") -> list[AnyRecord]:
    """Three seeds of one operating point: error 4, 6 and 8 %, half the units; the third seed fails at 0.75."""
    made: list[AnyRecord] = []
    for seed, accuracy in enumerate((0.96, 0.94, 0.92)):
        train = train_record(seed=seed, suite=suite)
        failure = Failure(kind="collapsed", reason="x") if seed == 2 else None
        made += [train, point_record(train, 0.5, accuracy), point_record(train, 0.75, 0.9, failure=failure)]
    return made


def test_a_row_says_theirs_ours_and_the_difference(frame_of: Frames, load: Callable) -> None:
    table = published_table(frame_of(records()), load(FIGURES))
    assert table["label"].tolist() == ["magnitude", "never run"]
    row, absent = table.to_dict("records")
    assert (row["strength"], row["seeds"], row["provenance"]) == (0.5, 3, "table")
    assert row["test_error"] == pytest.approx(0.06)
    assert row["test_error_difference"] == pytest.approx(0.01)
    assert row["test_error_half_width"] == pytest.approx(4.302653 * 0.02 / 3**0.5, rel=1e-5)
    assert row["weights_pruned"] == pytest.approx(0.75, abs=1e-3), "half of the inputs, half of the outputs"
    assert row["weights_pruned_difference"] == pytest.approx(0.05, abs=1e-3)
    assert row["macs_ratio"] == pytest.approx(2**1.8, rel=1e-3)
    assert row["units_published"] == "18-30", "in the order of the network"
    assert (row["units"], row["units_difference"]) == ("16-32", "−2, +2")
    assert (absent["seeds"], absent["test_error_published"]) == (0, 0.02)
    assert pandas.isna(absent["test_error"])


def test_fewer_macs_is_what_the_leaderboard_says(frame_of: Frames, load: Callable) -> None:
    """The ratio of means, 2 / 1.5, and not the mean of 1 and 2."""
    made: list[AnyRecord] = []
    for seed, macs in enumerate((100, 200)):
        point = point_record(train := train_record(seed=seed, suite="paper"), 0.5)
        assert point.cost is not None
        assert point.dense_cost is not None
        costs = {
            "cost": point.cost.model_copy(update={"macs": macs}),
            "dense_cost": point.dense_cost.model_copy(update={"macs": 200}),
        }
        made += [train, point.model_copy(update=costs)]
    frame = frame_of(made)
    (row,) = published_table(frame, load(NONE_FOUND)).to_dict("records")
    assert row["macs_ratio"] == leaderboard(frame)["macs_ratio"][0] == pytest.approx(4 / 3)


def test_seeds_that_failed_are_not_left_out_in_silence(frame_of: Frames, load: Callable) -> None:
    suite = load(FIGURES.replace("strength = 0.5", "strength = 0.75"))
    table = published_table(frame_of(records()), suite)
    assert table["seeds"].tolist() == [2, 0]
    assert table["failures"].tolist() == ["1 of 3 failed: collapsed", ""]
    text = to_markdown(table, suite)
    assert "| ours, 2 seeds, 1 of 3 failed: collapsed |" in text
    assert "| ours, 0 seeds |" in text
    assert "failures" not in published_table(frame_of(records()), load(FIGURES))


def test_markdown(frame_of: Frames, load: Callable) -> None:
    suite = load(FIGURES)
    text = to_markdown(published_table(frame_of(records()), suite), suite)
    lines = text.splitlines()
    assert lines[0] == "### digits · digits-cnn: published and ours"
    assert lines[2] == "| method | strength |  | test error, % | weights pruned, % | fewer MACs | units |"
    assert lines[4] == "| magnitude | 0.5 | published (table) | 5.00 | 70.00 | 3.20× | 18-30 |"
    assert lines[5].startswith("|  |  | ours, 3 seeds | 6.00 ± 4.97 | 75.0")
    assert lines[6].startswith("|  |  | difference | +1.00 | +5.0")
    assert lines[7] == "| never run | — | published (digitised) | 2.00 | — | — | — |"
    assert lines[8] == "|  |  | ours, 0 seeds | — | — | — | — |"
    assert "- magnitude: A paper, table 1; 200 epochs" in lines
    assert lines[-1] == "- Budget: 4 epochs here, 200 in the paper"


def test_where_nothing_was_published_ours_stand_alone(frame_of: Frames, load: Callable) -> None:
    suite = load(NONE_FOUND)
    table = published_table(frame_of(records()), suite)
    assert table[["strength", "seeds"]].to_numpy().tolist() == [[0.5, 3], [0.75, 2]]
    text = to_markdown(table, suite)
    assert "| magnitude | 0.75 | published | — | — | — | — |" in text
    assert "| ours, 2 seeds, 1 of 3 failed: collapsed | 10.00 ± 0.00 |" in text
    assert "difference" not in text
    assert text.count("none found: neither text nor code could be read") == 1


def test_active_units_are_compared_with_active_units(frame_of: Frames, load: Callable) -> None:
    train = train_record(suite="paper")
    point = point_record(train, 0.5)
    gated = point.model_copy(update={"expected_activity": {"conv1": 9.6, "conv2": 20.2}})
    suite = load(
        FIGURES.replace("units = { conv2 = 30, conv1 = 18 }", "activity = { conv1 = 13, conv2 = 20 }")
    )
    row = published_table(frame_of([train, gated]), suite).to_dict("records")[0]
    assert (row["activity_published"], row["activity"], row["activity_difference"]) == (
        "13-20",
        "10-20",
        "−3, +0",
    )
    assert pandas.isna(row["units_difference"])


def test_records_of_another_suite_and_of_another_budget_stay_apart(frame_of: Frames, load: Callable) -> None:
    longer = train_record(suite="paper", epochs=8)
    frame = frame_of([*records("other"), train := train_record(seed=3, suite="paper"), point_record(train, 0.5),
                      longer, point_record(longer, 0.5)])  # fmt: skip
    table = published_table(frame, load(FIGURES))
    assert table["label"].tolist() == ["magnitude [epochs=4]", "magnitude [epochs=8]", "never run"]
    assert table["seeds"].tolist() == [1, 1, 0]


def test_files_and_terminal(frame_of: Frames, load: Callable, tmp_path: Path) -> None:
    suite, frame, out = load(FIGURES), frame_of(records()), io.StringIO()
    console = Console(file=out, width=100)
    paths = write_published(frame, [suite], tmp_path / "a", console)
    assert pandas.read_csv(paths["csv"])["test_error_published"].tolist() == [0.05, 0.02]
    assert paths["md"].read_text().startswith("## What a paper says of digits\n")
    sidecar = json.loads(paths["json"].read_text())
    assert sidecar["records"]["point"] == sorted(frame["id"])
    assert sidecar["published"]["paper"][0]["source"] == "A paper, table 1"
    printed = out.getvalue()
    for text in ("published (table)", "6.00 ± 4.97", "−2, +2", "Budget: 4 epochs here, 200 in the paper"):
        assert text in printed
    assert max(map(len, printed.splitlines())) <= 100
    again = write_published(frame.sample(frac=1, random_state=1), [suite], tmp_path / "b", console)
    assert all(paths[suffix].read_bytes() == again[suffix].read_bytes() for suffix in paths)
    plain = suite.model_copy(update={"published": ()})
    assert write_published(frame, [plain], tmp_path / "c", console) == {}


def write_records(folder: Path, made: Iterable[AnyRecord]) -> None:
    for record in made:
        path = Store(folder).path(record.kind, record.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(record.model_dump_json())


def test_the_command_takes_a_suite_by_path_and_finds_a_shipped_one(
    tmp_path: Path, load: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load(FIGURES)
    monkeypatch.setattr("bench.report.views.write_figures", lambda frame, folder: [])
    write_records(tmp_path / "r", records())
    words = ["report", "--results", str(tmp_path / "r")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "published" not in said, "no shipped suite has this name"
    assert "core time: measured 14 s (training 4 s, points 9 s)" in said
    assert main([*words, "--suite", str(tmp_path / "paper.toml")]) == 0
    assert "published (table)" in capsys.readouterr().out
    assert (tmp_path / "r" / "report" / "published.md").is_file()
    monkeypatch.setattr(suites, "SHIPPED", tmp_path)
    assert main(words) == 0
    assert "published (table)" in capsys.readouterr().out
    (tmp_path / "papers.toml").write_text(SUITE, encoding="utf-8")
    assert main([*words, "--suite", "papers"]) == 2
    assert "no records of it (did you mean 'paper'?)" in capsys.readouterr().err


def test_only_shipped_suites_are_found_by_name(frame_of: Frames) -> None:
    assert [suite.name for suite in suites_of(frame_of([*records(), *suite_records(seeds=[0])]))] == [
        "digits"
    ]
