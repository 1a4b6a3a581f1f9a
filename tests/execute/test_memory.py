"""A training that does not fit: split where the recipe allows it, otherwise a failure that says what was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.execute.cell import CellRun
from bench.execute.memory import in_memory
from bench.records.schema import PointRecord, TrainRecord
from bench.records.store import Store
from methods.base import Batch
from methods.dense import Dense
from tests.contract.cases import CPU, Case, cells_of

ROOM = 40
"""Images that fit."""


class SmallMemory:
    """Stands in for the step of the method: torch's own error for what is too large."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.step = Dense.training_step

    def __call__(self, method: Dense, batch: Batch) -> torch.Tensor:
        self.seen.append(len(batch.targets))
        if len(batch.targets) > ROOM:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has a total capacity of 2.00 GiB"
            )
        return self.step(method, batch)


def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, allowed: bool
) -> tuple[SmallMemory, Store, str, str]:
    memory = SmallMemory()
    monkeypatch.setattr(Dense, "training_step", lambda method, batch: memory(method, batch))
    (cell,) = cells_of(Case("dense"), (0.0,))
    recipe = {**cell.workload.recipe, "epochs": 1, "accumulate_on_out_of_memory": allowed}
    cell = replace(cell, workload=cell.workload.model_copy(update={"recipe": recipe}), pretraining=None)
    CellRun(cell, tmp_path, None, CPU, lambda fraction, doing: None).run()
    return memory, Store(tmp_path), cell.train_id, cell.points[0][1]


def test_split_until_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, store, train_id, point_id = run(tmp_path, monkeypatch, True)
    assert memory.seen[:4] == [128, 64, 32, 32]
    train, point = store.read("train", train_id), store.read("point", point_id)
    assert isinstance(train, TrainRecord)
    assert isinstance(point, PointRecord)
    assert (train.status, point.status) == ("done", "done")
    assert "4 parts of at most 32 images" in train.notes[0]


def test_refused_with_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, store, train_id, _ = run(tmp_path, monkeypatch, False)
    assert memory.seen == [128]
    train = store.read("train", train_id)
    assert train is not None
    assert train.failure is not None
    assert train.failure.kind == "memory"
    assert "out of memory: 1.50 GiB more were asked for" in train.failure.reason
    assert "accumulate_on_out_of_memory" in train.failure.reason


def test_given_up_at_single_images() -> None:
    tried: list[int] = []

    def never(parts: int) -> None:
        tried.append(parts)
        raise torch.OutOfMemoryError("no")

    with pytest.raises(torch.OutOfMemoryError):
        in_memory(never, 6)
    assert tried == [1, 2, 4, 6]
