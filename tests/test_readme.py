"""What the README shows is so: its tables come from the committed records, its example runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import bench
from bench.cli import main
from bench.data import load_test
from bench.errors import BadInput
from bench.records.read import read_records
from bench.records.times import spent
from bench.report.readme import update_readme

ROOT = Path(bench.__file__).parents[1]
README = ROOT / "README.md"
PUBLISHED = ROOT / "results" / "published" / "digits"


def test_tables_and_records_agree(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    shutil.copy(README, copy)
    figures = tmp_path / PUBLISHED.relative_to(ROOT) / "report"
    update_readme(copy, bench.read_results(PUBLISHED), figures)
    assert copy.read_text(encoding="utf-8") == README.read_text(encoding="utf-8")


def test_a_changed_number_would_be_seen(tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    shutil.copy(README, copy)
    frame = bench.read_results(PUBLISHED)
    frame.loc[frame["method"] == "dense", "test_accuracy"] -= 0.01
    update_readme(copy, frame, tmp_path)
    assert copy.read_text(encoding="utf-8") != README.read_text(encoding="utf-8")


def test_the_figure_is_there() -> None:
    images = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert images
    for image in images:
        assert (ROOT / image).is_file()


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README.read_text(encoding="utf-8")):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize(
    "text", ["<!-- bench: leaderbord -->\n<!-- bench: end -->\n", "<!-- bench: columns -->\n"]
)
def test_bad_markers_are_refused(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "R.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match=r"R\.md"):
        update_readme(readme, bench.read_results(PUBLISHED), tmp_path)


def test_the_minutes_are_those_of_the_records() -> None:
    text = README.read_text(encoding="utf-8")
    told = re.search(r"bench run (paper-\S+) .*# (\d+) minutes of one core, measured", text)
    assert told is not None
    records = read_records(ROOT / "results" / "published" / told[1])
    assert round(spent(records).total / 60) == int(told[2])


def test_the_snippet_of_compaction_runs() -> None:
    text = README.read_text(encoding="utf-8")
    snippet = re.search(r"```python\n(import torch\n\nfrom bench\.compaction.*?)```", text, re.DOTALL)
    assert snippet is not None
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    names = {"network": network, "example": torch.zeros(1, 1, 4, 4)}
    exec(snippet[1], names)
    assert names["small"].network[0].out_channels == 2  # type: ignore[attr-defined]


def test_the_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The method of the README, copied out and run as the README says."""
    text = README.read_text(encoding="utf-8")
    example = re.search(r"<!-- example: my_method\.py -->\n```python\n(.*?)```", text, re.DOTALL)
    assert example is not None
    (tmp_path / "my_method.py").write_text(example[1], encoding="utf-8")
    first_look = re.search(r"# a first look.*\n(bench run .*)", text)
    assert first_look is not None
    command = first_look[1].split()
    monkeypatch.chdir(tmp_path)
    assert main(command[1:]) == 0
    printed = capsys.readouterr().out
    assert "smallest-l1" in printed
    frame = bench.read_results(tmp_path / command[command.index("--results") + 1])
    mine = frame[frame["method"] == "smallest-l1"].set_index("strength")
    assert sorted(mine.index) == [0.25, 0.5, 0.75]
    assert mine["certificate"].all()
    assert mine["macs"].is_monotonic_decreasing
    use = re.search(r"```python\n(import bench\nfrom bench\.data import load\n.*?)```", text, re.DOTALL)
    assert use is not None
    test = load_test("digits", None)
    names: dict[str, Any] = {"images": test.images}
    exec(use[1], names)
    right = (names["logits"].argmax(1) == test.labels).float().mean()
    assert float(right) == pytest.approx(names["point"].test_accuracy)
