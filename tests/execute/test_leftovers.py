"""What a kill in the midst of a write leaves, the next run removes, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from bench import run as runs
from bench.cli import main
from bench.execute.leftovers import SURELY_STALE, remove_leftovers
from bench.execute.lock import alone_in
from bench.records.files import write_atomically
from bench.training.checkpoint import write_state
from tests.cli.folders import SUITE, write


class Killed(BaseException):
    """In place of a signal that nobody can handle."""


def killed_while_writing(path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary file of a write that did not come to its end."""

    def kill(*_: object) -> None:
        raise Killed

    def stay(path: Path, missing_ok: bool = False) -> None:
        pass

    def write(path: Path) -> None:
        if path.parent.name in ("trained", "pretrained"):
            write_state(path, {"w": torch.ones(1)})
        else:
            write_atomically(path, b"half")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", kill)
        patch.setattr(Path, "unlink", stay)
        with pytest.raises(Killed):
            write(path)
    (left,) = path.parent.glob(f".{path.name}.*")
    return left


@pytest.mark.parametrize(
    "name",
    [
        "train/a-s0.json",
        "point/a-s0.json",
        "compact/a-s0/weights.safetensors",
        "trained/a-s0.safetensors",
        "pretrained/a-s0.safetensors",
        "pretrained/a-s0.checkpoint",
    ],
)
def test_a_write_that_was_cut_off(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = killed_while_writing(tmp_path / name, monkeypatch)
    remove_leftovers(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("name", ["measure/a-s0.json", "report/leaderboard.md", "cpu.json"])
def test_what_another_command_may_be_writing_stays_until_it_is_old(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = killed_while_writing(tmp_path / name, monkeypatch)
    remove_leftovers(tmp_path)
    assert left.exists()
    old = time.time() - 2 * SURELY_STALE
    os.utime(left, (old, old))
    remove_leftovers(tmp_path)
    assert not left.exists()


def test_folders_that_are_links_may_be_those_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = killed_while_writing(tmp_path / "other" / "train" / "a-s0.json", monkeypatch)
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "train").symlink_to(tmp_path / "other" / "train")
    remove_leftovers(tmp_path / "r")
    assert left.exists()


def test_nothing_else_is_touched(tmp_path: Path) -> None:
    names = (
        "train/a-s0.json",
        "train/.a-s0.json.tmp",
        "train/a-s0.json.0123abcd.tmp",
        "train/.a-s0.json.0123abcd.tmp.kept",
        "train/.a-s0.json.0123ABCD.tmp",
        "trained/.a-s0.safetensors.0123abcd.tmp",
        "mine/.a-s0.json.0123abcd.tmp",
    )
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "train" / ".folder.json.0123abcd.tmp").mkdir()
    (tmp_path / "train" / ".link.json.0123abcd.tmp").symlink_to(tmp_path / "train" / "a-s0.json")
    before = sorted(tmp_path.rglob("*"))
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_begins_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = killed_while_writing(tmp_path / "r" / "train" / "a-s0.json", monkeypatch)
    monkeypatch.setattr("bench.run.plan_elsewhere", runs._make_plan)
    suite = write(tmp_path / "few.toml", SUITE)
    words = ["run", str(suite), "--results", str(tmp_path / "r")]
    with alone_in(tmp_path / "r"):
        assert main(words) == 2
    assert left.exists()
    monkeypatch.setattr("bench.run._run", lambda *_: 0)
    assert main(words) == 0
    assert not left.exists()
