"""With the real package, offline: nothing here reaches the network."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from records_factory import measure_record, point_record, suite_records, train_record

from bench.errors import BadInput
from bench.records.schema import Failure
from bench.records.store import Store
from bench.report.wandb_push import LEADERBOARD_RUN, LEDGER, push


@pytest.fixture(autouse=True)
def _no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC", "WANDB_BASE_URL", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    store = Store(tmp_path / "results")
    for record in suite_records(["lenet5"], ["dense", "magnitude"], strengths=[0.5], seeds=[0]):
        store.write(record)
    store.write(train_record("random", "lenet5", failure=Failure(kind="diverged", reason="loss is NaN")))
    return store.root


def stored(path: Path) -> Iterator:
    """The protocol records in W&B's own offline file: LevelDB's log format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # no header fits into the rest of this block
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def test_pushing_twice_sends_once(results: Path, tmp_path: Path) -> None:
    directory = tmp_path / "offline"
    first = push(results, "demo", offline=True, directory=directory)
    points = {path.stem for path in (results / "point").iterdir()}
    assert points < set(first.sent)
    assert LEADERBOARD_RUN in first.sent
    assert len(first.sent) == len(points) + 2, "the failed training and the leaderboard, besides the points"
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*.wandb")}
    assert {path.stem.removeprefix("run-") for path in before} == set(first.sent)

    second = push(results, "demo", offline=True, directory=directory)
    assert second.sent == []
    assert second.unchanged == len(first.sent) - 1
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*.wandb")} == before
    assert set(push(results, "other", offline=True, directory=directory).sent) == set(first.sent)


def test_a_new_measurement_sends_its_point_again_under_the_same_id(results: Path, tmp_path: Path) -> None:
    push(results, "demo", offline=True, directory=tmp_path)
    store = Store(results)
    train = train_record("magnitude", "lenet5")
    point = store.read("point", point_record(train, 0.5).id)
    assert point is not None
    store.write(measure_record(point, "Imaginary GPU"))  # type: ignore[arg-type]
    again = push(results, "demo", offline=True, directory=tmp_path)
    assert point.id in again.sent
    assert set(again.sent) <= {point.id, LEADERBOARD_RUN}


def test_what_a_run_holds(results: Path, tmp_path: Path) -> None:
    push(results, "demo", offline=True, directory=tmp_path)
    train = train_record("magnitude", "lenet5")
    id = point_record(train, 0.5).id
    (path,) = tmp_path.rglob(f"run-{id}.wandb")
    records = list(stored(path))
    run = next(record.run for record in records if record.HasField("run"))
    assert run.run_id == id
    assert run.project == "demo"
    assert run.host == ""
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["network"] == "lenet5"
    assert config["config"] == {"granularity": "unit"}
    assert config["strength"] == 0.5
    history = [record.history for record in records if record.HasField("history")]
    assert len(history) == len(train.history)
    summary = {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
        for record in records
        if record.HasField("summary")
        for item in record.summary.update
    }
    saved = json.loads((tmp_path / "results" / "point" / f"{id}.json").read_text())
    assert summary["test/accuracy"] == saved["test"]["accuracy"]
    assert summary["cost/macs"] == saved["cost"]["macs"]
    assert summary["status"] == "done"


def test_a_label_longer_than_a_tag_may_be(tmp_path: Path) -> None:
    """As `bench controls` makes them; W&B would refuse the run."""
    store, label = Store(tmp_path / "results"), "random at the ratios of " + "a method with a long name " * 3
    train = train_record(label, "lenet5")
    store.write(train)
    store.write(point_record(train, 0.5))
    assert len(push(store.root, "demo", offline=True, directory=tmp_path).sent) == 2
    (path,) = tmp_path.rglob("run-*-s0.wandb")
    run = next(record.run for record in stored(path) if record.HasField("run"))
    assert list(run.tags) == ["digits", "lenet5", label[:64]]


def test_no_key_is_one_line_and_wandb_is_not_even_imported(results: Path) -> None:
    code = (
        "import sys; from bench.errors import BadInput; from bench.report.wandb_push import push\n"
        f"try: push({str(results)!r}, 'demo')\n"
        "except BadInput as error: print(error)\n"
        "assert 'wandb' not in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.count("\n") == 1
    assert "WANDB_API_KEY" in out.stdout
    assert not (results / LEDGER).exists()


def test_a_setting_that_wandb_does_not_take(results: Path) -> None:
    """In a process of its own, as W&B reads them once."""
    command = [sys.executable, "-m", "bench", "push", "--offline", "--results", str(results)]
    given = {**os.environ, "WANDB_MODE": "nonsense"}
    out = subprocess.run(command, capture_output=True, text=True, env=given, timeout=60)
    assert out.returncode == 2
    assert out.stderr.startswith(
        "bench: W&B does not take its setting mode (WANDB_MODE): Input should be 'onl"
    )
    assert out.stderr.count("\n") == 1
    assert not (results / LEDGER).exists()


def test_the_ledger_is_not_taken_for_a_record(results: Path, caplog: pytest.LogCaptureFixture) -> None:
    push(results, "demo", offline=True)
    caplog.clear()
    assert push(results, "demo", offline=True).sent == []
    assert not caplog.records


def test_bad_input(results: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        push(tmp_path / "nothing", "demo", offline=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="no records"):
        push(tmp_path / "empty", "demo", offline=True)
    (results / LEDGER).write_text("{")
    with pytest.raises(BadInput, match="ledger"):
        push(results, "demo", offline=True)
    (results / LEDGER).unlink()
    home = tmp_path / "home"
    home.mkdir()
    (home / ".netrc").write_text("machine example.org login a password b\n")
    with pytest.raises(BadInput, match="WANDB_API_KEY"):
        push(results, "demo")
