"""The service by which processes share a GPU is started where it works, found by children, and ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.execute import gpu_sharing
from bench.execute.gpu_sharing import CONTROL, PIPES, side_by_side
from bench.execute.pool import child_environment

CHILD = f"import os; print(os.environ.get({PIPES!r}, ''), os.environ.get('CUDA_VISIBLE_DEVICES', ''))"


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the control program: what it was called with, one call a line."""
    log = tmp_path / "told"
    script = tmp_path / CONTROL
    script.write_text(
        f'#!/bin/sh\necho "$@" $([ $# = 0 ] && cat) "[${PIPES}] [$CUDA_VISIBLE_DEVICES]" >> {log}\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.delenv(PIPES, raising=False)
    return log


def test_started_found_by_children_and_ended(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_sharing, "PROBE", "")
    with side_by_side("cuda", 2) as shared:
        folder = shared[PIPES]
        assert PIPES not in os.environ  # this process is no client
        with child_environment(1, shared):
            child = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, check=True)
    assert child.stdout.split() == [folder, "3"]
    assert told.read_text().splitlines() == [f"-d [{folder}] []", f"quit -t 5 [{folder}] []"]
    assert PIPES not in os.environ
    assert not Path(folder).exists()


def test_not_used_where_no_gpu_is_found_through_it(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_sharing, "PROBE", "raise SystemExit(1)")
    with side_by_side("cuda", 2) as shared:
        assert not shared
        assert PIPES not in os.environ
    assert [line.split(" [")[0] for line in told.read_text().splitlines()] == ["-d", "quit -t 5"]


@pytest.mark.parametrize(("device", "workers"), [("cpu", 2), ("cuda", 1)])
def test_not_started_where_nothing_is_shared(told: Path, device: str, workers: int) -> None:
    with side_by_side(device, workers) as shared:
        assert not shared
    assert not told.exists()


def test_one_that_is_there_is_kept(told: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PIPES, "/somewhere")
    with side_by_side("cuda", 2) as shared:
        assert shared == {PIPES: "/somewhere"}
    assert os.environ[PIPES] == "/somewhere"
    assert not told.exists()


def test_without_the_program_processes_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PIPES, raising=False)
    monkeypatch.setattr(gpu_sharing.shutil, "which", lambda name: None)
    with side_by_side("cuda", 2) as shared:
        assert not shared
