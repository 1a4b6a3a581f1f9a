"""Cells that fail: a record with the reason, the rest goes on, exit code 3; and what a second start makes of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import run as runs
from bench.cli import main
from tests.cli.folders import METHOD, SUITE, write

STEP = """
    def training_step(self, batch):
        flag = Path({flag!r})
        {does}
        return super().training_step(batch)
"""

FILES = {
    "raises": "if flag.exists(): raise ValueError('out of luck')",
    "exits": "os._exit(7)",
    "hangs": "time.sleep(600)",
}
ALL = (*FILES, "empties")
REASONS = {
    "raises": ("error", "ValueError: out of luck"),
    "exits": ("killed", "exit code 7"),
    "hangs": ("timeout", "not done within 2 s"),
    "empties": ("collapsed", "loses all its units at fc1"),
    "dense": ("diverged", "the training loss of epoch 1"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A suite with a good network and one whose training diverges, and a file for each way to fail."""
    folder = tmp_path_factory.mktemp("failures")
    (folder / "flag").touch()
    for name, does in FILES.items():
        step = STEP.format(flag=str(folder / "flag"), does=does)
        write(folder / f"{name}.py", METHOD.replace('"mine"', f'"{name}"') + step)
    plan = "SparsityPlan({site.name: torch.zeros(site.size, dtype=torch.bool) for site in self.sites[:1]})"
    text = METHOD.replace('"mine"', '"empties"').replace("SparsityPlan()", plan)
    write(folder / "empties.py", text)
    recipe = '{ epochs = 1, batch_size = 256, optimizer = "sgd", learning_rate = 1e6 }'
    wild = f'[[workloads]]\ndataset = "digits"\nnetwork = "mlp-500-300"\nrecipe = {recipe}\n'
    good = SUITE.partition('[[methods]]\nname = "magnitude"')[0].replace("epochs = 2", "epochs = 1")
    write(folder / "failing.toml", good.replace("[[methods]]", wild + "[[methods]]"))
    return folder


def run(folder: Path, names: tuple[str, ...], *words: str) -> int:
    files = [word for name in names for word in ("--method", str(folder / f"{name}.py"))]
    here = ["--results", str(folder / "r"), "--jobs", "1"]
    return main(["run", str(folder / "failing.toml"), *files, *here, *words])


@pytest.fixture(scope="module")
def first(folder: Path) -> int:
    """The one that hangs comes last and alone, so that a busy machine makes no other cell run out of time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "plan_elsewhere", runs._make_plan)
        assert run(folder, ("raises", "exits", "empties")) == 3
        return run(folder, ALL, "--timeout", "2")


def points(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in (folder / "r" / "point").glob("*.json")]
    return {(record["workload"]["network"], record["method"]["name"]): record for record in found}


def test_every_failure_is_a_record_and_the_rest_goes_on(folder: Path, first: int) -> None:
    assert first == 3
    found = points(folder)
    assert found.pop(("mlp-300-100", "dense"))["status"] == "done"
    assert len(found) == len(REASONS)
    for (network, method), record in found.items():
        assert network == ("mlp-500-300" if method == "dense" else "mlp-300-100")
        assert record["status"] == "failed"
        kind, reason = REASONS[method]
        assert record["failure"]["kind"] == kind, record["failure"]
        assert reason in record["failure"]["reason"]
        train = json.loads((folder / "r" / "train" / f"{record['train_id']}.json").read_text())
        assert train["status"] == ("done" if method == "empties" else "failed")
    failure = found["mlp-300-100", "raises"]["failure"]
    assert "out of luck" in failure["detail"]
    lines = (folder / "raises.py").read_text().splitlines()
    at = next(number for number, line in enumerate(lines, 1) if "out of luck" in line)
    assert failure["reason"] == f"ValueError: out of luck (raises.py, line {at})"


def test_the_leaderboard_shows_them(folder: Path, first: int) -> None:
    board = (folder / "r" / "report" / "leaderboard.md").read_text()
    for method, (kind, _) in REASONS.items():
        assert re.search(rf"\| {method} \|.*1 of 1 failed: {kind}", board), board


def test_a_second_start_says_so_and_tries_nothing(
    folder: Path, first: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = points(folder)
    assert run(folder, ALL, "--timeout", "2") == 3
    out = capsys.readouterr().out
    assert f"{len(REASONS)} records are failures" in out
    assert f"`bench status --results {folder / 'r'}` says why, --retry-failed" in out
    assert points(folder) == before


def test_status_gives_the_reasons(folder: Path, first: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--results", str(folder / "r")]) == 0
    out = capsys.readouterr().out
    for kind, reason in REASONS.values():
        assert re.search(rf"point .*: {kind}: .*{re.escape(reason)}", out), out


def test_on_request_they_are_tried_again(
    folder: Path, first: int, plan_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one whose reason is gone is done now; the network that diverges does so again. (Last: it changes things.)"""
    (folder / "flag").unlink()
    before = points(folder)
    assert run(folder, ("raises",), "--retry-failed") == 3
    out = capsys.readouterr().out
    assert re.search(r"FAILED mlp-500-300 · dense · seed 0: diverged: the training loss of epoch 1", out), out
    after = points(folder)
    assert after["mlp-300-100", "raises"]["status"] == "done"
    assert after["mlp-500-300", "dense"]["failure"]["kind"] == "diverged"
    for same in ("exits", "hangs", "empties"):
        assert after["mlp-300-100", same] == before["mlp-300-100", same]
