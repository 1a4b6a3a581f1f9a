"""`bench run` as a user meets it: in a process of its own, interrupted, killed, started again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bench

SUITE = """
title = "a handful of cells"
seeds = [0, 1]
[measure]
latency = "quick"
[[workloads]]
dataset = "digits"
network = "mlp-300-100"
recipe = { epochs = 8, batch_size = 128 }
[[methods]]
name = "dense"
[[methods]]
name = "magnitude"
strengths = [0.5, 0.9]
[[methods]]
name = "targeted-dropout"
strengths = [0.75, 0.8]
"""


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "bench", *map(str, words)]


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=cwd, capture_output=True, text=True, timeout=300, env=environment()
    )


def environment() -> dict[str, str]:
    root = str(Path(bench.__file__).parents[1])
    return {**os.environ, "PYTHONPATH": root}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "few.toml"
    path.write_text(SUITE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def finished(suite: Path) -> Path:
    """The results folder of one straight run."""
    done = run("run", suite, "--results", "straight", cwd=suite.parent)
    assert done.returncode == 0, done.stderr + done.stdout
    last = done.stdout.splitlines()[-1]
    parts = r"\(training .*, shared pretraining .*, points .*, latency .*\)"
    assert re.fullmatch(
        rf"core time: planned about .*, measured .* {parts}; this run took .* on \d+ processes", last
    )
    return suite.parent / "straight"


def records(results: Path, stage: str) -> dict[str, dict[str, object]]:
    found = {}
    for path in (results / stage).glob("*.json"):
        record = json.loads(path.read_text())
        for volatile in ("created", "seconds", "shared_seconds", "step_milliseconds", "peak_rss_bytes"):
            record.pop(volatile, None)
        found[path.stem] = record
    return found


def test_everything_is_there(finished: Path) -> None:
    assert len(records(finished, "train")) == 8
    assert len(records(finished, "point")) == 10
    assert len(records(finished, "measure")) == 10
    report = {path.name for path in (finished / "report").iterdir()}
    assert {"leaderboard.md", "leaderboard.csv"} <= report
    assert {path.rpartition(".")[2] for path in report} >= {"pdf", "png"}
    assert not list(finished.rglob("*.tmp"))


def test_points_without_their_compact_network_are_left_unmeasured(
    finished: Path, suite: Path, tmp_path: Path
) -> None:
    """Records that came from another machine."""
    results = tmp_path / "carried"
    shutil.copytree(finished, results)
    (results / "plan.json").unlink()
    first, second, *rest = sorted(records(results, "measure"))
    for measure in (first, second):
        point = json.loads((results / "measure" / f"{measure}.json").read_text())["point_id"]
        shutil.rmtree(results / "compact" / point)
    (results / "measure" / f"{first}.json").unlink()
    again = run("run", suite, "--results", results, cwd=suite.parent)
    assert again.returncode == 0, again.stderr + again.stdout
    assert f"not measured here: 1 points whose compact networks are not in {results}" in again.stdout
    assert sorted(records(results, "measure")) == [second, *rest]


def test_started_again_it_says_so_and_touches_nothing(finished: Path, suite: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    again = run("run", suite, "--results", finished, cwd=suite.parent)
    assert again.returncode == 0
    assert "all 10 operating points of 8 trainings are done" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()} == before


def test_without_torch_when_done(finished: Path, suite: Path) -> None:
    code = (
        "import sys; from bench.cli import main; "
        f"code = main(['run', {str(suite)!r}, '--results', {str(finished)!r}]); "
        "heavy = ('torch', 'pandas', 'matplotlib', 'wandb', 'sklearn'); "
        "print(sorted(module for module in heavy if module in sys.modules)); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=suite.parent, env=environment()
    )
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGINT])
def test_interrupted_and_started_again_equals_the_straight_run(
    finished: Path, suite: Path, blow: signal.Signals, tmp_path: Path
) -> None:
    """The whole process group is hit, as by Ctrl-C or a power cut, while cells are at work."""
    results = tmp_path / "broken"
    process = subprocess.Popen(
        command("run", suite, "--results", results),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # A shell's background job has Ctrl-C ignored, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while len(records_so_far(results)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, blow)
    output = process.communicate(timeout=60)[0].decode()
    assert process.returncode == (-signal.SIGKILL if blow == signal.SIGKILL else 130), output
    if blow == signal.SIGINT:
        assert "the same command goes on from here" in output
        assert "Traceback" not in output
        assert "semaphore" not in output
    kept = set(records_so_far(results))
    assert 2 <= len(kept) < 18
    stamps = {path: path.stat().st_mtime_ns for path in kept}
    again = run("run", suite, "--results", results, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    for stage in ("train", "point"):
        assert records(results, stage) == records(finished, stage)


def records_so_far(results: Path) -> list[Path]:
    return [path for stage in ("train", "point") for path in (results / stage).glob("*.json")]


def test_plan_and_status(finished: Path, suite: Path) -> None:
    planned = run("plan", suite, "--results", finished, cwd=suite.parent)
    assert "8 trainings, 0 to do, 0 skipped; nothing is left to do" in planned.stdout
    fresh = run("plan", suite, "--results", suite.parent / "none", cwd=suite.parent)
    assert re.search(
        r"8 trainings, 8 to do, 0 skipped; about .* of core time, .* on \d+ processes", fresh.stdout
    )
    assert not (suite.parent / "none").exists()
    status = run("status", "--results", finished, "--json", cwd=suite.parent)
    assert json.loads(status.stdout)["records"]["point"] == {"done": 10, "failed": 0}
    assert all(seconds > 0 for seconds in json.loads(status.stdout)["seconds"].values())
