"""After an edit a method that comes by the path of its file is another one, in records and tables; any other is known
by its name."""

from __future__ import annotations

import csv
import hashlib
import inspect
import json
from pathlib import Path

import pytest
import torch

from bench import suite as suites
from bench.cli import main
from bench.errors import BadInput
from bench.execute.cell import CellRun
from bench.filters import Filters
from bench.plan import _refuse_equal_entries, make_plan
from bench.records.read import read_records
from methods import magnitude, registry
from tests.cli.folders import METHOD, SUITE, run_here, write


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)


def run_mine(text: str) -> None:
    write(Path("edited.py"), text)
    plan = make_plan(suites.load("mine.toml"), Filters(files=("edited.py",)), None)
    for cell in plan.cells:
        assert CellRun(cell, Path("r"), None, torch.device("cpu"), lambda fraction, doing: None).run()


def test_two_versions_of_a_file_never_share_a_row() -> None:
    write(Path("mine.toml"), SUITE)
    mine = METHOD.replace('"mine"', '"edited"')
    run_mine(mine)
    run_mine(mine + "\n# as I meant it\n")
    points = [p for p in read_records(Path("r")).point.values() if p.method.name == "edited"]
    first, second = (point.method.source_digest for point in points)
    assert len({first, second, ""}) == 3
    now = hashlib.sha256(Path("edited.py").read_bytes()).hexdigest()
    assert sum(now.startswith(digest) for digest in (first, second)) == 1
    assert main(["report", "--results", "r"]) == 0
    with Path("r/report/leaderboard.csv").open() as file:
        rows = {row["label"]: row["seeds"] for row in csv.DictReader(file)}
    assert rows == {
        **dict.fromkeys(("dense", "magnitude", "weights"), "1"),
        **{f"edited [source_digest={digest}]": "1" for digest in (first, second)},
    }


@pytest.mark.parametrize("name", ["edited", "magnitude"])
def test_a_file_edited_under_a_run_is_not_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records would name the code of before. One that was put back is run, as what it is."""
    write(Path("mine.toml"), SUITE)
    text = METHOD.replace('"mine"', '"edited"')
    write(Path("edited.py"), text)
    cells = make_plan(suites.load("mine.toml"), Filters(files=("edited.py",)), None).cells
    cell = next(cell for cell in cells if cell.method.name == name)
    if name == "magnitude":
        write(Path("edited.py"), inspect.getsource(magnitude))
        monkeypatch.setattr(inspect, "getfile", lambda kind: "edited.py")
    source = Path("edited.py").read_text()
    registry._from_files.clear()  # as in a process of the pool

    def run() -> bool:
        return CellRun(cell, Path("r"), None, torch.device("cpu"), lambda fraction, doing: None).run(True)

    write(Path("edited.py"), source + "\n# as I meant it\n")
    assert not run()
    (train,) = read_records(Path("r")).train.values()
    assert train.failure is not None
    file = cell.method_file or "edited.py"
    reason = f"BadInput: method {name!r}: {file} has changed since the run was planned"
    assert train.failure.reason == reason
    write(Path("edited.py"), source)
    assert run()


def test_a_method_that_changes_the_working_folder() -> None:
    """Its records lie where they were asked for, and the cell after it runs."""
    write(Path("mine.toml"), SUITE)
    attach = """
    def attach(self, network, sites, context):
        super().attach(network, sites, context)
        os.chdir("/")
"""
    write(Path("moving.py"), METHOD.replace('"mine"', '"moving"') + attach)
    words = ["--method", "moving.py", "--method", "weights", "--results", "r", "--jobs", "1"]
    assert main(["run", "mine.toml", *words]) == 0
    points = read_records(Path("r")).point.values()
    assert {(point.method.label, point.status) for point in points} == {
        ("moving", "done"),
        ("weights", "done"),
    }


def test_a_method_known_by_name_says_where_its_file_was_edited_since(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its records stay what they are; of those that say nothing of the file, nothing is said."""
    write(Path("mine.toml"), SUITE)
    run_here(Path("mine.toml"), Path("r"))

    def plan() -> str:
        assert main(["plan", "mine.toml", "--results", "r"]) == 0
        return capsys.readouterr().out

    def say_of_the_file(digest: str) -> None:
        for path in Path("r/train").glob("*.json"):
            record = json.loads(path.read_text())
            if record["method"]["name"] == "magnitude":
                record["method"]["source_digest"] = digest
                path.write_text(json.dumps(record))

    assert "edited since" not in plan()
    say_of_the_file("another")
    out = plan()
    for label in ("magnitude", "weights"):
        assert f"edited since: the file of {label}; 1 trainings that are done stay as they are" in out
    assert out.count("edited since") == 2
    assert "nothing is left to do" in out
    say_of_the_file("")
    assert "edited since" not in plan()


def test_a_method_that_the_suite_lacks_runs_by_its_name() -> None:
    """One that was put into `methods/`, or comes with another package, is in no suite that ships."""
    write(Path("mine.toml"), SUITE)
    (cell,) = make_plan(suites.load("mine.toml"), Filters(methods=("random",), strengths=(0.5,)), None).cells
    assert (cell.method.name, cell.method.source, cell.method_file) == ("random", "builtin", None)
    both = make_plan(suites.load("mine.toml"), Filters(methods=("dense", "random")), None).cells
    assert {cell.method.name for cell in both} == {"dense", "random"}


def test_a_file_under_two_spellings_is_one_method() -> None:
    """Two cells of one id would be trained at once, into the same files."""
    write(Path("mine.toml"), SUITE)
    mine = write(Path("mine.py"), METHOD)
    Path("linked.py").symlink_to(mine)
    spellings = ("mine.py", "./mine.py", str(mine.resolve()), "linked.py")
    (cell,) = (
        c for c in make_plan(suites.load("mine.toml"), Filters(files=spellings), None).cells if c.method_file
    )
    assert cell.method.name == "mine"


def test_a_training_is_never_planned_twice() -> None:
    plan = make_plan(suites.load(str(write(Path("mine.toml"), SUITE))), Filters(), None)
    plan.cells.append(plan.cells[1])
    with pytest.raises(BadInput, match=r"mlp-300-100 · magnitude 0.5 · seed 0 stands there twice"):
        _refuse_equal_entries(plan)
