import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from records_factory import point_record, suite_records, train_record

from bench.errors import BadInput
from bench.records import files
from bench.records.schema import Failure
from bench.records.store import Store


def snapshot(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    for record in suite_records(networks=["lenet5"], labels=["magnitude"], seeds=[0]):
        path = store.write(record)
        assert path == store.path(record.kind, record.id)
        assert store.read(record.kind, record.id) == record
        assert store.status(record.kind, record.id) == "done"
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_failed_record_is_replaced_by_a_done_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    failed = train_record(failure=Failure(kind="diverged", reason="loss is NaN"))
    store.write(failed)
    assert store.status("train", failed.id) == "failed"
    done = train_record()
    assert done.id == failed.id
    store.write(done)
    assert store.status("train", done.id) == "done"
    assert snapshot(tmp_path) == {"train", f"train/{done.id}.json"}


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_record_that_could_not_be_read_back_is_not_written(number: float, tmp_path: Path) -> None:
    good = point_record(train_record(), 0.5)
    Store(tmp_path).write(good)
    bad = good.model_copy(update={"expected_activity": {"fc1": number}})
    with pytest.raises(files.NotARecord, match=r"expected_activity\.fc1"):
        Store(tmp_path).write(bad)
    assert Store(tmp_path).read("point", good.id) == good
    assert snapshot(tmp_path) == {"point", f"point/{good.id}.json"}


def test_absent_is_none_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Store(tmp_path).read("point", "x-s0") is None
    assert Store(tmp_path).status("point", "x-s0") is None
    assert not caplog.records


def damage(text: str) -> dict[str, str]:
    return {
        "cut short": text[: len(text) // 2],
        "empty": "",
        "foreign": '{"id": "somebody else\'s"}',
        "no object": "[1, 2]",
        "newer schema": text.replace('"schema_version": 1', '"schema_version": 2'),
        "unknown key": text.replace('"suite"', '"sweet"'),
        "other id": text.replace('"id": "', '"id": "0'),
    }


@pytest.mark.parametrize("kind", damage("").keys())
def test_a_damaged_file_counts_as_absent_and_is_never_lost(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, record = Store(tmp_path), train_record()
    path = store.write(record)
    bad = damage(path.read_text())[kind]
    path.write_text(bad)
    with caplog.at_level(logging.WARNING):
        assert store.status("train", record.id) is None
    assert str(path) in caplog.text
    assert path.read_text() == bad, "reading must not touch it"
    for _ in range(2):  # the second round finds the first `.foreign` in its way
        path.write_text(bad)
        store.write(record)
        assert store.read("train", record.id) == record
    assert path.with_name(path.name + ".foreign").read_text() == bad
    assert path.with_name(path.name + ".foreign-2").read_text() == bad


def test_a_record_of_another_stage_is_foreign(tmp_path: Path) -> None:
    store, train = Store(tmp_path), train_record()
    point = point_record(train, 0.5)
    store.write(point)
    store.path("train", point.id).parent.mkdir()
    os.replace(store.path("point", point.id), store.path("train", point.id))
    assert store.status("train", point.id) is None


def test_a_write_that_fails_leaves_the_old_record_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, record = Store(tmp_path), train_record()
    store.write(record)

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", no_space)
    with pytest.raises(OSError, match="No space"):
        store.write(train_record(failure=Failure(kind="error", reason="x")))
    assert store.read("train", record.id) == record
    assert snapshot(tmp_path) == {"train", f"train/{record.id}.json"}


def test_the_file_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: (calls.append("fsync"), fsync(handle)))
    monkeypatch.setattr(files.os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    Store(tmp_path).write(train_record())
    assert calls == ["fsync", "replace", "fsync"]


def test_a_writable_folder_passes_and_stays_as_it_was(tmp_path: Path) -> None:
    Store(tmp_path / "not" / "there" / "yet").check_writable()
    assert snapshot(tmp_path) == set()


def test_a_folder_that_cannot_be_written_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="results folder"):
        Store(tmp_path / "file" / "results").check_writable()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "point").write_text("")
    with pytest.raises(BadInput, match="point"):
        Store(tmp_path / "results").check_writable()

    def denied(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("bench.records.store.tempfile.TemporaryFile", denied)
    with pytest.raises(BadInput, match="Permission denied") as caught:
        Store(tmp_path / "other").check_writable()
    assert "\n" not in str(caught.value)


def test_records_import_neither_torch_nor_pandas() -> None:
    code = (
        "import sys, bench, bench.records.store, bench.records.ids, bench.records.read;"
        "print(sorted({'torch', 'pandas', 'numpy', 'matplotlib', 'wandb'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
