"""What a cell records where it is taken up again."""

from __future__ import annotations

import errno
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from bench.cells import Cell
from bench.data.registry import _prepared
from bench.errors import DiskFull
from bench.execute import cell as cells
from bench.execute import layout
from bench.execute.cell import CellRun
from bench.execute.subject import Subject
from bench.filters import Filters
from bench.plan import make_plan
from bench.records.schema import PointRecord, TrainRecord
from bench.records.store import Store
from bench.suite import Suite
from bench.training.checkpoint import read_state, write_state
from bench.training.loop import Loop
from methods.base import SparsityPlan
from methods.dense import Dense
from methods.magnitude import Magnitude
from tests.contract.cases import CPU, Case, cells_of


def cell_of(case: Case, strengths: tuple[float, ...], **recipe: object) -> Cell:
    (cell,) = cells_of(case, strengths)
    workload = cell.workload.model_copy(update={"recipe": {**cell.workload.recipe, **recipe}})
    return replace(cell, workload=workload, pretraining=None)


def run_of(cell: Cell, results: Path) -> CellRun:
    return CellRun(cell, results, None, CPU, lambda fraction, doing: None)


def trained(cell: Cell, results: Path) -> TrainRecord:
    record = Store(results).read("train", cell.train_id)
    assert isinstance(record, TrainRecord)
    return record


def test_what_fails_later_leaves_the_record_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another point is asked for, and the data set does not fit just then."""
    cell = cell_of(Case("magnitude", {"finetune": 0.0}), (0.5, 0.75), epochs=1)
    assert run_of(replace(cell, points=cell.points[:1]), tmp_path).run()
    before = trained(cell, tmp_path)

    def full(run: CellRun) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")

    with monkeypatch.context() as patch:
        patch.setattr(CellRun, "open_data", full)
        assert not run_of(cell, tmp_path).run()
    assert trained(cell, tmp_path) == before
    assert [Store(tmp_path).status("point", point) for _, point in cell.points] == ["done", "failed"]
    assert run_of(cell, tmp_path).run(retry_failed=True)
    assert trained(cell, tmp_path) == before


@pytest.mark.parametrize(
    ("left", "words"),
    [
        (lambda n: n.relu1.register_forward_hook(lambda *given: None), "1 forward hook on 'relu1'"),
        (lambda n: n.register_forward_pre_hook(lambda *given: None), "1 forward pre-hook on 'the network'"),
        (lambda n: n.bn1.register_parameter("gate", nn.Parameter(torch.ones(1))), "the parameter 'bn1.gate'"),
        (lambda n: n.bn1.register_buffer("mask", torch.ones(1)), "the buffer 'bn1.mask'"),
        (
            lambda n: n.relu1.register_full_backward_pre_hook(lambda *given: None),
            "1 backward pre-hook on 'relu1'",
        ),
        (
            lambda n: n.relu1.register_state_dict_post_hook(lambda *given: None),
            "1 state-dict hook on 'relu1'",
        ),
        (lambda n: n.register_load_state_dict_pre_hook(lambda *given: None), "1 load-state-dict pre-hook on"),
        (lambda n: setattr(n.relu1, "forward", torch.sigmoid), "a forward of its own on 'relu1'"),
    ],
)
def test_what_a_method_leaves_behind_is_no_result(
    left: Callable[[Any], object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def detach(method: Magnitude) -> None:
        left(method.network)

    monkeypatch.setattr(Magnitude, "detach", detach)
    cell = cell_of(Case("magnitude", {"finetune": 0.0}), (0.5,), epochs=1)
    assert not run_of(cell, tmp_path).run()
    failure = trained(cell, tmp_path).failure
    assert failure is not None
    assert f"detach of magnitude leaves {words}" in failure.reason
    assert failure.reason.endswith(": all that it puts in has to go")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
@pytest.mark.parametrize("writer", ["bench.execute.cell.write_state", "bench.execute.cell.save_compact"])
def test_a_full_disk_is_no_failure_of_a_cell(
    writer: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed record would stay when there is room again."""

    def full(path: Path, *_: object) -> None:
        raise OSError(number, os.strerror(number))

    cell = cell_of(Case("magnitude", {"finetune": 0.0}), (0.5,), epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(writer, full)
        with pytest.raises(DiskFull, match=os.strerror(number)):
            run_of(cell, tmp_path).run()
    assert not list(tmp_path.glob("point/*"))
    assert run_of(cell, tmp_path).run()


def test_what_comes_of_removed_units_is_not_left_by_the_method() -> None:
    """The rewritten network keeps what it reads as buffers, whether it was one before or not."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.full((4,), 2.0)
            self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(torch.relu(self.fc1(x * self.scale + torch.tensor([1.0, 2.0, 3.0, 4.0]))))

    network = Scaled()
    subject = Subject(network, [], Dense())
    subject.network = fx.symbolic_trace(network)
    assert {"scale", "_tensor_constant0"} <= set(subject.network.state_dict())
    subject.network.register_buffer("select_fc1", torch.ones(1), persistent=False)
    subject.detach()


DRAWS: dict[str, Callable[[Magnitude, int], Any]] = {
    "the method's own": lambda method, size: torch.randperm(size, generator=method.context.generator),
    "torch": lambda method, size: torch.randperm(size),
    "numpy": lambda method, size: torch.from_numpy(np.random.permutation(size)),  # noqa: NPY002
    "random": lambda method, size: torch.tensor(random.sample(range(size), size)),
}


@pytest.mark.parametrize("draws", DRAWS)
def test_what_a_plan_draws_does_not_depend_on_the_plans_before_it(
    draws: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both strengths in one go, the second one alone, or the second one of a training that is taken up."""

    def drawn(method: Magnitude, strength: float) -> SparsityPlan:
        orders = {site.name: DRAWS[draws](method, site.size) for site in method.sites}
        return SparsityPlan(kept={name: order >= strength * len(order) for name, order in orders.items()})

    monkeypatch.setattr(Magnitude, "plan", drawn)
    cell = cell_of(Case("magnitude", {"finetune": 0.0}), (0.25, 0.5), epochs=1)
    first, second = (replace(cell, points=cell.points[at : at + 1]) for at in (0, 1))
    for name, goes in {"at once": (cell,), "alone": (second,), "later": (first, second)}.items():
        for one in goes:
            assert run_of(one, tmp_path / name).run()
    _, point = cell.points[1]
    found = [Store(tmp_path / name).read("point", point) for name in ("at once", "alone", "later")]
    assert len({record.test.loss for record in found if isinstance(record, PointRecord) and record.test}) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n: n.conv2.weight.data.mul_(0.5), "changes conv2.weight"),
        (lambda n: n.bn1.running_mean.add_(1.0), "changes bn1.running_mean"),
    ],
)
def test_a_plan_that_changes_the_network_is_no_result_and_costs_no_other_point_its_own(
    change: Callable[[Any], object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_it_should, losses = Magnitude.plan, []
    cell = cell_of(Case("magnitude", {"finetune": 0.0}), (0.25, 0.5), epochs=1)
    (_, first), (_, second) = cell.points
    assert run_of(cell, tmp_path / "good").run()

    def changing(method: Magnitude, strength: float) -> SparsityPlan:
        if strength == 0.25:
            change(method.network)
        return as_it_should(method, strength)

    monkeypatch.setattr(Magnitude, "plan", changing)
    assert not run_of(cell, tmp_path / "changed").run()
    assert f"plan of magnitude {words}" in Store(tmp_path / "changed").reason("point", first)
    for folder in ("good", "changed"):
        record = Store(tmp_path / folder).read("point", second)
        assert isinstance(record, PointRecord)
        assert record.test is not None
        losses.append(record.test.loss)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("site", "units", "words"),
    [
        ("conv1", math.nan, "nan units of conv1, which has 16"),
        ("conv1", math.inf, "inf units of conv1"),
        ("conv1", -1.0, "-1 units of conv1"),
        ("conv1", 16.1, "16.1 units of conv1"),
        ("conf1", 1.0, "no site 'conf1' (did you mean 'conv1'?)"),
    ],
)
def test_an_activity_that_cannot_be_is_no_result(
    site: str, units: float, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Magnitude, "plan", lambda *given: SparsityPlan(expected_activity={site: units}))
    cell = cell_of(Case("magnitude", {"finetune": 0.0}), (0.5,), epochs=1)
    assert not run_of(cell, tmp_path).run()
    ((_, point),) = cell.points
    assert f"plan of magnitude, expected_activity: {words}" in Store(tmp_path).reason("point", point)


def test_numbers_that_no_record_can_hold_fail_their_point_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are not the method's, but come of its network."""
    score = cells.score

    def infinite(network: nn.Module, batches: Any) -> Any:
        return score(network, batches).model_copy(update={"calibration_error": math.nan})

    cell = cell_of(Case("magnitude", {"finetune": 0.0}), (0.25, 0.5), epochs=1)
    (_, first), (_, second) = cell.points
    with monkeypatch.context() as patch:
        patch.setattr(cells, "score", infinite)
        assert not run_of(replace(cell, points=cell.points[:1]), tmp_path).run()
    assert "does not fit the schema at 'validation.calibration_error'" in Store(tmp_path).reason(
        "point", first
    )
    assert not run_of(cell, tmp_path).run()
    assert Store(tmp_path).status("point", second) == "done"


def test_a_hook_that_a_plan_leaves_is_named_at_each_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hooking(method: Magnitude, strength: float) -> SparsityPlan:
        if strength == 0.25:
            method.network.get_submodule("relu1").register_forward_hook(lambda *given: None)
        return SparsityPlan()

    monkeypatch.setattr(Magnitude, "plan", hooking)
    cell = cell_of(Case("magnitude", {"finetune": 0.0}), (0.25, 0.5), epochs=1)
    assert not run_of(cell, tmp_path).run()
    for _, point in cell.points:
        assert "plan of magnitude leaves 1 forward hook on 'relu1'" in Store(tmp_path).reason("point", point)


def test_data_that_change_under_a_run_are_not_trained_on(tmp_path: Path) -> None:
    """The record would name the data that were there when it was planned."""
    path, images = tmp_path / "mine.npz", np.zeros((40, 8, 8), dtype=np.uint8)

    def write(value: int) -> None:
        images[0] = value
        labels = np.arange(40) % 2
        np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)

    write(1)
    entry = {"dataset": str(path), "network": "mlp-300-100", "recipe": {"epochs": 1}}
    mine = {"title": "mine", "seeds": [0], "workloads": [entry], "methods": [{"name": "dense"}]}
    (cell,) = make_plan(Suite.model_validate(mine), Filters(), None).cells
    write(2)
    _prepared.cache_clear()  # of the process that has planned
    assert not run_of(cell, tmp_path / "results").run()
    failure = trained(cell, tmp_path / "results").failure
    assert failure is not None
    assert failure.reason == f"BadInput: data set {str(path)!r}: has changed since the run was planned"


class Stop(BaseException):
    """As a signal: nothing catches it."""


def keep_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    init = Loop.__init__

    def opened(loop: Loop, *arguments: object, **settings: object) -> None:
        init(loop, *arguments, **settings)  # type: ignore[arg-type]
        loop.checkpoints.seconds = 0.0

    monkeypatch.setattr(Loop, "__init__", opened)


def stop(fraction: float, doing: str) -> None:
    if fraction > 0.5:
        raise Stop


@pytest.mark.parametrize(
    ("digest", "epochs"),
    [("of before the edit", ["train"] * 3), (None, ["train"] * 2), ("missing", ["train"] * 2)],
)
def test_a_training_is_not_gone_on_with_by_other_code(
    digest: str | None, epochs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that is known by its name has the same id before and after an edit of its file. None: the file is as it
    was; missing: a checkpoint of before it said whose it is."""
    cell = cell_of(Case("dense"), (0.0,), epochs=3)
    keep_all(monkeypatch)
    run = run_of(cell, tmp_path)
    run.report = stop
    with pytest.raises(Stop):
        run.run()
    path = layout.trained(tmp_path, cell.train_id)
    state = read_state(path)
    assert state is not None
    assert state["position"]["source_digest"] == cell.method.source_digest
    if digest == "missing":
        del state["position"]["source_digest"]
    elif digest is not None:
        state["position"]["source_digest"] = digest
    write_state(path, state)
    reported: list[str] = []
    run = run_of(cell, tmp_path)
    run.report = lambda fraction, doing: reported.append(doing)
    assert run.run()
    assert [doing for doing in reported if not doing.startswith("removing")] == epochs


def test_seconds_of_a_training_that_was_cut_off_are_those_of_all_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of(Case("dense"), (0.0,), epochs=3, batch_size=512)
    after_step = Dense.after_step

    def slow(method: Dense) -> None:
        after_step(method)
        time.sleep(0.1)

    monkeypatch.setattr(Dense, "after_step", slow)
    keep_all(monkeypatch)
    run = run_of(cell, tmp_path)
    run.report = stop
    with pytest.raises(Stop):
        run.run()
    assert run_of(cell, tmp_path).run()
    record = trained(cell, tmp_path)
    assert record.step_milliseconds is not None
    assert record.steps == 9
    assert record.seconds >= record.steps * record.step_milliseconds / 1000 >= 0.9
