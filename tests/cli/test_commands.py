"""Help, lists, figures, push and the file that a new method begins with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bench
from bench import suite as suites
from bench.cli import main
from bench.execute.cell import CellRun
from bench.filters import Filters
from bench.plan import make_plan
from bench.records.schema import PointRecord
from bench.records.store import Store
from tests.cli.folders import SUITE, tree, write


def test_help_imports_nothing_heavy_and_tells_the_exit_codes() -> None:
    code = (
        "import sys; from bench.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as ended: assert ended.code == 0\n"
        "heavy = ('torch', 'pydantic', 'rich', 'pandas', 'numpy', 'matplotlib', 'wandb')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    root = Path(bench.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.endswith("[]\n")
    assert "0 all done, 2 bad input, 3 some cells failed, 130 interrupted" in done.stdout
    for command in ("run", "plan", "measure", "verify", "report", "figures", "push", "status", "new-method"):
        assert f"\n    {command}" in done.stdout


def test_lists_that_a_program_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "--json"]) == 0
    methods = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    magnitude = methods["magnitude"]
    assert magnitude["traits"]["granularity"] == "unit"
    assert magnitude["traits"]["strength"] == "ratio"
    assert magnitude["strengths"] == [0.5, 0.75, 0.85, 0.9]
    assert magnitude["settings"]["finetune"] == 0.25
    assert main(["list", "networks", "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert "266,610 on mnist" in listed["mlp-300-100"]["says"]
    networks = {name: entry["parameters"] for name, entry in listed.items()}
    assert networks["mlp-300-100"] == {"digits": 50_610, "mnist": 266_610, "cifar10": 953_010}
    assert networks["lenet5"] == {"digits": None, "mnist": 431_080, "cifar10": 657_080}
    assert networks["vgg16"] == {"digits": None, "mnist": None, "cifar10": 14_991_946}
    for what in ("datasets", "suites"):
        assert main(["list", what]) == 0
    assert "cifar10\n" in capsys.readouterr().out


def test_a_data_root_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That no shell has spelt out."""
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "mnist.npz", "")
    assert main(["doctor", "--data-root=~"]) == 0
    assert "mnist.npz" in capsys.readouterr().out


def test_only_the_figures(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(finished)
    assert main(["figures", "--results", str(finished), "--out", str(tmp_path / "out")]) == 0
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"digits-accuracy-macs.pdf", "digits-accuracy-macs.png", "digits-accuracy-macs.json"} <= written
    assert not any(name.startswith("leaderboard") for name in written)
    assert capsys.readouterr().out.count("written: ") == len(written)
    assert tree(finished) == before


def test_push_says_what_it_did(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bench.report import wandb_push

    pushed = [
        wandb_push.Pushed(["one"], 1),
        wandb_push.Pushed(["one", "two"], 0, Path("some/results")),
    ]
    monkeypatch.setattr(wandb_push, "push", lambda *words, **more: pushed.pop(0))
    assert main(["push", "--results", str(finished)]) == 0
    said = capsys.readouterr().out
    assert said == "1 run sent to the W&B project 'sparsebench'; 1 operating point had not changed\n"
    assert main(["push", "--results", str(finished), "--offline", "--project", "demo"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("2 runs written for the W&B project 'demo'; 0 operating points had not changed")
    assert "`wandb sync`" in said
    assert "some/results/wandb" in said


def test_a_new_method_works_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new-method", "my-own"]) == 0
    assert "bench run digits --method ./my-own.py" in capsys.readouterr().out
    text = (tmp_path / "my-own.py").read_text()
    assert "class MyOwn(Method)" in text
    assert "my-method" not in text.lower()
    suite = suites.load(str(write(tmp_path / "few.toml", SUITE)))
    cells = [c for c in make_plan(suite, Filters(files=("./my-own.py",)), None).cells if c.method_file]
    assert [cell.strength for cell in cells] == [0.5, 0.75, 0.9]
    results = tmp_path / "r"
    for cell in cells:
        assert CellRun(cell, results, None, torch.device("cpu"), lambda fraction, doing: None).run()
        point = Store(results).read("point", cell.points[0][1])
        assert isinstance(point, PointRecord)
        assert point.method.name == "my-own"
        assert sum(point.kept.values()) == sum(
            size - int(cell.points[0][0] * size) for size in point.sizes.values()
        )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dense", "the name is taken (builtin)"),
        ("My Method", "lower-case words"),
        ("../up", "lower-case words"),
        ("there", "there.py exists"),
    ],
)
def test_a_new_method_overwrites_nothing(
    name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "there.py", "mine")
    before = tree(tmp_path)
    assert main(["new-method", name]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert tree(tmp_path) == before
