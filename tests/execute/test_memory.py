"""A training that does not fit: split where the recipe allows it, otherwise a failure that says what was asked for."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bench.errors import GpuLost
from bench.execute.cell import CellRun
from bench.execute.memory import in_memory, raise_if_lost
from bench.execute.outcome import describe_failure
from bench.records.schema import PointRecord, Scores, TrainRecord
from bench.records.store import Store
from bench.training import loop as training
from bench.training.memory import free_unused, is_out_of_memory
from bench.training.recipe import Recipe
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


@pytest.mark.parametrize("fits", [True, False])
def test_where_only_the_evaluation_does_not_fit_its_batches_are_split(
    fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the training are not to blame: it is not begun anew."""
    sizes: list[int] = []
    score = training.score

    def in_little_memory(network: nn.Module, batches: Iterable[Batch]) -> Scores:
        batches = list(batches)
        sizes.append(len(batches[0].targets))
        if not fits or sizes[-1] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return score(network, batches)

    monkeypatch.setattr(training, "score", in_little_memory)
    monkeypatch.setattr(training, "evaluation_batch", lambda shape: 128)
    monkeypatch.setitem(globals(), "ROOM", 128)
    memory, store, train_id, _ = run(tmp_path, monkeypatch, True)
    train = store.read("train", train_id)
    assert isinstance(train, TrainRecord)
    assert sum(memory.seen) == 1222  # one epoch
    if fits:
        assert sizes == [128, 64]
        assert train.status == "done"
        assert not train.notes
    else:
        assert sizes == [128, 64, 32, 16, 8]
        assert train.failure is not None
        assert train.failure.kind == "memory"
        assert train.failure.reason == (
            "out of memory: the validation split does not fit in batches of 8 images either (CUDA out of memory. "
            "Tried to allocate 2 GiB)"
        )


def test_no_advice_that_was_taken() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    asked, hint = "out of memory: 2 GiB more were asked for", "accumulate_on_out_of_memory"
    assert describe_failure(error).reason == asked
    assert describe_failure(error, Recipe(epochs=1, accumulate_on_out_of_memory=True)).reason == asked
    assert hint in describe_failure(error, Recipe(epochs=1)).reason


CUDA_SAYS = [
    "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
]


@pytest.mark.parametrize("message", CUDA_SAYS)
def test_what_libraries_cannot_allocate_is_out_of_memory_too(message: str) -> None:
    def large(parts: int) -> int:
        if parts < 4:
            raise RuntimeError(message)
        return parts

    assert in_memory(large, 8) == 4
    failure = describe_failure(RuntimeError(message))
    assert failure.kind == "memory"
    assert message.splitlines()[0] in failure.reason


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`"),
        ValueError("CUDA error: out of memory"),
    ],
)
def test_other_errors_are_not(error: Exception) -> None:
    def fails(parts: int) -> None:
        assert parts == 1
        raise error

    assert not is_out_of_memory(error)
    with pytest.raises(type(error)):
        in_memory(fails, 8)


def test_what_only_a_cycle_holds_is_freed_before_the_next_try() -> None:
    class Held:
        pass

    seen: list[weakref.ref[Held]] = []

    def large(parts: int) -> bool:
        if parts > 1:
            return seen[0]() is None
        held = Held()
        held.itself = held  # type: ignore[attr-defined]
        seen.append(weakref.ref(held))
        raise torch.OutOfMemoryError("no")

    gc.disable()
    try:
        assert in_memory(large, 2)
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("error", "answers"),
    [
        (None, True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_whether_the_gpu_answers(
    error: Exception | None, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def synchronize() -> None:
        if error is not None:
            raise error

    emptied: list[bool] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    assert free_unused() == answers
    assert bool(emptied) == (error is None)


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (
            "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling "
            "NumCudaDevices() that might have already set an error? Error 807: MPS server is not ready to accept new "
            "MPS client requests",
            True,
        ),
        ("Error 808: the hardware resources required to create MPS client have been exhausted", True),
        (
            "Error 809: the hardware resources required to support device connections have been exhausted",
            True,
        ),
        ("CUDA error: the MPS client has been terminated by the server", True),
        ("CUDA error: invalid argument", False),
        ("MPS backend out of memory", False),
        ("error 8051", False),
    ],
)
def test_a_gpu_that_takes_up_no_process_is_lost(error: str, lost: bool) -> None:
    """CUDA is then not initialised, and there is nothing to ask."""
    with pytest.raises(GpuLost) if lost else nullcontext():
        raise_if_lost(RuntimeError(error))


def test_given_up_at_single_images() -> None:
    tried: list[int] = []

    def never(parts: int) -> None:
        tried.append(parts)
        raise torch.OutOfMemoryError("no")

    with pytest.raises(torch.OutOfMemoryError):
        in_memory(never, 6)
    assert tried == [1, 2, 4, 6]


@pytest.mark.parametrize("answers", [True, False])
def test_without_its_gpu_a_cell_leaves_no_record(
    answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be another's fault; a failure of the cell's own, behind which the GPU answers, is recorded."""

    def fails(method: Dense, batch: Batch) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(Dense, "training_step", fails)
    monkeypatch.setattr("bench.execute.memory.free_unused", lambda: answers)
    (cell,) = cells_of(Case("dense"), (0.0,))
    cells = CellRun(replace(cell, pretraining=None), tmp_path, None, CPU, lambda fraction, doing: None)
    if answers:
        assert not cells.run()
    else:
        with pytest.raises(GpuLost, match="illegal memory access"):
            cells.run()
        with pytest.raises(GpuLost):
            cells.run_pretraining()
    assert (Store(tmp_path).status("train", cell.train_id) == "failed") == answers
